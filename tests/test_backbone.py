"""CAMP on a frozen network, which gives the regions, the words and the shortlist, and which training leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from camp_sdk import BundleError, InputError, Retriever, evaluate_matrix, load_split
from camp_sdk.combination import RATIOS, choose_weight, combine
from camp_sdk.evaluation import evaluate, similarity_matrices
from camp_sdk.export.bundling.writer import SHORTLIST, export_bundle
from camp_sdk.export.import_pretrained import import_pretrained
from camp_sdk.export.network.backbones import BOX, boxes_of
from camp_sdk.export.network.checkpoint import KEY, load_checkpoint, write_checkpoint
from camp_sdk.export.network.frozen import FrozenNetwork
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.tower_parts import ClassToken, TowerText
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import Run, run_training
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest
from camp_sdk.runtime.manifest_values import FirstStage
from tests.helpers.command import Camp as Command
from tests.helpers.tiny import save_tiny_checkpoint
from tests.helpers.training import run_until_killed, saved, write_features

pytest.importorskip("transformers")
from tests.helpers import published  # needs transformers

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = replace(published.TINY_CLIP, vision=published.TINY_CLIP.vision | {"image_size": 64})
MAKERS = {
    "clip": published.write_clip,
    "siglip": lambda folder: published.write_siglip(folder, second=False),
    "siglip2": lambda folder: published.write_siglip(folder, second=True),
}


def on(backbone: Path, data: Path, output: Path, **options: Any) -> TrainConfig:
    sizes = {"width": 8, "epochs": 2, "batch_size": 24, "devices": "1", "backbone": backbone}
    return TrainConfig(data, output, **(sizes | options))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder of an imported model: 8 x 8 patches, more than 49."""
    folder = tmp_path_factory.mktemp("clip")
    return import_pretrained(str(published.write_clip(folder / "source", SHAPE)), folder / "run").parent


@pytest.fixture(scope="module")
def frozen_bundle(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(clip / "best.ckpt", tmp_path_factory.mktemp("frozen") / "bundle").folder


@pytest.fixture(scope="module")
def trained(clip: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run on top of it."""
    return run_training(on(clip, scenes, tmp_path_factory.mktemp("trained") / "run"))


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(trained, tmp_path_factory.mktemp("exported") / "bundle").folder


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Iterator[Retriever]:
    with Retriever(bundle, "onnxruntime") as opened:
        yield opened


@pytest.fixture
def short_bundle(bundle: Path, tmp_path: Path) -> Path:
    """The bundle with a default shortlist of three."""
    copy = Path(shutil.copytree(bundle, tmp_path / "short"))
    manifest = read_manifest(copy / MANIFEST_FILE)
    assert manifest.first_stage is not None
    write_manifest(copy, replace(manifest, first_stage=replace(manifest.first_stage, shortlist=3)))
    return copy


# What the frozen network gives


@pytest.mark.parametrize("kind", MAKERS)
def test_vectors_are_those_of_the_published_model(kind: str, tmp_path: Path) -> None:
    model, origin = load_checkpoint(import_pretrained(str(MAKERS[kind](tmp_path / "source")), tmp_path / "run"))
    frozen = FrozenNetwork(model)
    pixels = torch.rand(3, 3, *frozen.size)
    tokens, lengths = torch.randint(0, origin.model.vocabulary_size, (4, 7)), torch.tensor([7, 2, 5, 1])
    vectors = model.encode_images(model.region_features(pixels))["image.global"]
    assert torch.equal(frozen(pixels)[:, 0, -frozen.vector_width :], vectors)
    assert torch.equal(frozen(pixels)[:, -1, -frozen.vector_width :], vectors)
    assert torch.equal(frozen.read(tokens, lengths)[1], model.encode_texts(tokens, lengths)["text.global"])
    assert frozen(pixels).shape == (3, frozen.grid**2, frozen.width)


@pytest.mark.parametrize("kind", MAKERS)
def test_words_are_the_states_of_a_texts_own_tokens(kind: str, tmp_path: Path) -> None:
    model, origin = load_checkpoint(import_pretrained(str(MAKERS[kind](tmp_path / "source")), tmp_path / "run"))
    frozen, encoder = FrozenNetwork(model), model.text_encoder
    assert isinstance(encoder, TowerText)
    tokens, lengths = torch.randint(0, origin.model.vocabulary_size, (2, 6)), torch.tensor([6, 3])
    words, _ = frozen.read(tokens, lengths)
    states = encoder.states(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        first = states.shape[1] - length if getattr(encoder, "pad_left", False) else 0
        assert torch.equal(words[row, :length], states[row, first : first + length])
    alone, _ = frozen.read(tokens[1:, :3], lengths[1:])
    assert torch.allclose(words[1, :3], alone[0, :3], atol=1e-6)  # sums of a batch come in another order


def test_regions_are_the_patch_tokens_averaged_over_a_grid_of_seven(clip: Path) -> None:
    model, _ = load_checkpoint(clip / "best.ckpt")
    frozen, encoder = FrozenNetwork(model), model.image_encoder
    assert isinstance(encoder, ClassToken)
    pixels = torch.rand(2, 3, 64, 64)
    found = frozen(pixels)
    patches = encoder.norm(model.region_features(pixels)[:, 1:]).unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(patches, 7).flatten(2).transpose(1, 2)  # [2, 49, D]
    assert torch.allclose(found[:, :, : pooled.shape[2]], pooled, atol=1e-6)  # sums in another order
    boxes = found[0, :, pooled.shape[2] : pooled.shape[2] + 4]
    assert torch.equal(boxes, boxes_of(7)[0])
    assert boxes[0].tolist() == pytest.approx([-BOX, -BOX, -BOX + 20 / 7, -BOX + 20 / 7])
    assert boxes[-1, 2:].tolist() == pytest.approx([BOX, BOX])


def test_few_patches_stay_as_they_are(tmp_path: Path) -> None:
    model, _ = load_checkpoint(import_pretrained(str(published.write_clip(tmp_path / "source")), tmp_path / "run"))
    frozen, encoder = FrozenNetwork(model), model.image_encoder
    assert isinstance(encoder, ClassToken)
    pixels = torch.rand(2, 3, *frozen.size)
    patches = encoder.patches(model.region_features(pixels))
    assert torch.equal(frozen(pixels)[:, :, : patches.shape[2]], patches)


def test_a_network_trained_here_can_be_below_another(checkpoints: Any, scenes: Path, tmp_path: Path) -> None:
    below = checkpoints("scalar", True)
    frozen, _ = load_checkpoint(below)
    pixels = torch.rand(2, 3, *frozen.vision.size)  # type: ignore[union-attr]  # it takes pictures
    tokens, lengths = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]]), torch.tensor([4, 3])
    best = run_training(on(below, scenes, tmp_path / "run", epochs=1))
    above, origin = load_checkpoint(best)
    image, text = above.encode_images(above.region_features(pixels)), above.encode_texts(tokens, lengths)
    assert torch.equal(image["image.global"], frozen.encode_images(frozen.region_features(pixels))["image.global"])
    assert torch.equal(text["text.global"], frozen.encode_texts(tokens, lengths)["text.global"])
    assert export_bundle(best, tmp_path / "bundle").manifest.first_stage is not None  # the parity gate passed
    assert origin.pixels is not None
    assert origin.pixels.grid == (6, 6)


# Training


def test_training_leaves_the_frozen_network_alone(clip: Path, trained: Path) -> None:
    before, after = load_checkpoint(clip / "best.ckpt")[0], load_checkpoint(trained)[0]
    assert isinstance(after.vision, FrozenNetwork)
    found = after.vision.network.state_dict()
    assert found.keys() == before.state_dict().keys()
    assert all(torch.equal(found[name], weight) for name, weight in before.state_dict().items())
    pixels, tokens = torch.rand(2, 3, 64, 64), torch.tensor([[1, 5, 2]])
    in_training = after.train().encode_images(after.region_features(pixels))["image.global"]
    assert in_training.shape == (2, 8)  # of the encoders that are trained, for their loss
    assert after.encode_texts(tokens, torch.tensor([3]))["text.global"].shape == (1, 8)


def test_the_run_records_what_it_stands_on(clip: Path, trained: Path) -> None:
    training = load_checkpoint(trained)[1].training
    assert training["backbone"] == load_checkpoint(clip / "best.ckpt")[1].training
    assert training["vision"] == training["words"] == "backbone"
    assert training["dev"]["combination_weight"] >= 0
    assert training["dev"]["combined_rsum"] >= max(training["dev"]["rsum"], 0)


def test_a_killed_run_continues_to_the_same_weights(clip: Path, scenes: Path, tmp_path: Path) -> None:
    whole = run_training(on(clip, scenes, tmp_path / "whole"))
    config = on(clip, scenes, tmp_path / "killed")
    run_until_killed(config, tmp_path, config.output, 8)
    found = run_training(replace(config, resume=True))
    expected, resumed = (saved(path.parent / "last.ckpt")["state_dict"] for path in (whole, found))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_run_does_not_continue_on_another_network(clip: Path, scenes: Path, tmp_path: Path) -> None:
    other = import_pretrained(
        str(published.write_clip(tmp_path / "source", replace(SHAPE, scale=5.0))), tmp_path / "other"
    )
    config = on(clip, scenes, tmp_path / "run", epochs=1)
    run_training(config)
    with pytest.raises(InputError, match="another `backbone`"):
        run_training(replace(config, resume=True, backbone=other))


def test_a_later_run_starts_from_the_trained_one(trained: Path, scenes: Path, tmp_path: Path) -> None:
    config = TrainConfig(scenes, tmp_path / "run", start=trained, epochs=1, batch_size=24, devices="1")
    model, origin = load_checkpoint(run_training(config))
    assert isinstance(model.vision, FrozenNetwork)
    assert origin.model == load_checkpoint(trained)[1].model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "all-minilm-l6-v2"}, "`words` all-minilm-l6-v2: .* has backbone, which is fixed"),
        ({"vision": "efficientnet-lite0"}, "`vision` efficientnet-lite0: .* has backbone, which is fixed"),
        ({"picture_size": 96}, "`picture_size` 96: .* has 64"),
        ({"tune_vision": True}, "`tune_vision`: backbone is never trained"),
        ({"pixel_mean": "0,0,0"}, "`pixel_mean`, `pixel_std`: .* has its own"),
        ({"unknown_words": 0.1}, "`unknown_words` 0.1: .* knows every word"),
        ({"min_count": 2}, "`min_count` 2: .* has its own words"),
    ],
)
def test_what_the_frozen_network_fixes(
    clip: Path, scenes: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Run(on(clip, scenes, tmp_path / "run", **options))


def test_without_a_loss_on_vectors_there_are_none_to_train(clip: Path, scenes: Path, tmp_path: Path) -> None:
    model, origin = load_checkpoint(run_training(on(clip, scenes, tmp_path / "run", epochs=1, global_weight=0.0)))
    assert not any(name.startswith("global_") for name in model.state_dict())
    assert origin.model.has_vectors
    assert model.encode_texts(torch.tensor([[1, 5, 2]]), torch.tensor([3]))["text.global"].shape == (1, 20)


def test_networks_that_cannot_be_frozen_below_another(
    clip: Path, trained: Path, checkpoints: Any, scenes: Path, tmp_path: Path
) -> None:
    without = save_tiny_checkpoint(tmp_path / "without.ckpt", "paper", True)
    loaded = saved(without)
    loaded[KEY]["model"]["global_vectors"] = False
    loaded["state_dict"] = {name: w for name, w in loaded["state_dict"].items() if "global_" not in name}
    write_checkpoint(loaded, without)
    cases = [
        (on(checkpoints("paper", False), scenes, tmp_path / "run"), "takes features"),
        (on(trained, scenes, tmp_path / "run"), "was itself trained on a frozen network"),
        (on(without, scenes, tmp_path / "run"), "has no global vectors"),
        (on(clip, scenes, tmp_path / "run", start=trained), "not possible for a run with `start`"),
        (on(clip, write_features(tmp_path), tmp_path / "run"), "only for pictures"),
        (TrainConfig(scenes, tmp_path / "run", vision="backbone"), "`vision` backbone: expected small"),
        (TrainConfig(scenes, tmp_path / "run", words="backbone"), "words 'backbone': expected one of learned"),
    ]
    for config, message in cases:
        with pytest.raises(InputError, match=message):
            Run(config)
    with pytest.raises(BundleError, match="not found: expected a checkpoint"):
        Run(on(tmp_path / "nothing", scenes, tmp_path / "run"))


# The bundle


def test_the_bundle_has_the_vectors_of_the_frozen_network(
    retriever: Retriever, frozen_bundle: Path, scenes: Path
) -> None:
    split = load_split(scenes, "test")
    with Retriever(frozen_bundle, "onnxruntime") as frozen:
        for found, expected, name in (
            (retriever.encode_images(split.images), frozen.encode_images(split.images), "image.global"),
            (retriever.encode_texts(split.captions), frozen.encode_texts(split.captions), "text.global"),
        ):
            ours, theirs = found.encoded.tensors[name], expected.encoded.tensors[name]
            np.testing.assert_allclose(ours, theirs, atol=1e-5)  # engines fuse the graphs differently


def test_the_bundle_says_how_it_ranks(bundle: Path, trained: Path, camp: Command) -> None:
    first = read_manifest(bundle / MANIFEST_FILE).first_stage
    assert first == FirstStage(SHORTLIST, load_checkpoint(trained)[1].training["dev"]["combination_weight"])
    assert "the 200 images nearest by global vector" in camp("info", str(bundle)).out


def test_rankings_use_the_bundles_shortlist(short_bundle: Path, scenes: Path, tmp_path: Path) -> None:
    split = load_split(scenes, "test")
    with Retriever(short_bundle, "onnxruntime") as retriever:
        gallery = retriever.encode_images(split.images)
        query = split.captions[0]
        ours, three = retriever.rank(query, gallery, top_k=2), retriever.rank(query, gallery, 2, shortlist=3)
        assert (list(ours), ours.shortlist) == (list(three), 3)
        every = retriever.rank(query, gallery, 2, shortlist=0)
        assert every.shortlist is None
        assert every[0].logit == max(match.logit for match in retriever.rank(query, gallery, len(gallery), 0))
        assert len(retriever.rank(query, gallery, top_k=5)) == 5  # more than the bundle's shortlist
        assert retriever.rank(query, gallery.select([0, 1, 2]), top_k=2).shortlist is None
        texts = retriever.encode_texts(split.captions)
        assert retriever.rank(split.images[0], texts, top_k=2).shortlist == 3
        with retriever.open_index(tmp_path / "pictures.index", create=True, precision="float32") as index:
            index.add(split.images)
            found = retriever.rank(query, index, top_k=2)
            assert ([match.logit for match in found], found.shortlist) == ([match.logit for match in ours], 3)
            assert len(retriever.rank(query, index, top_k=2, offset=2)) == 2  # more than the bundle's shortlist
            assert retriever.rank(split.images[0], index, top_k=2, by="image").shortlist is None


def test_the_command_says_when_the_bundle_decides(short_bundle: Path, scenes: Path, camp: Command) -> None:
    arguments = ["rank", str(short_bundle), "--images", str(scenes / "test"), "--query", "a red circle", "--top-k", "2"]
    assert "scored the 3 of " in camp(*arguments).err
    assert "scored the" not in camp(*arguments, "--shortlist", "0").err
    assert json.loads(camp(*arguments, "--json").out)["rankings"][0]["shortlist"] == 3
    assert json.loads(camp(*arguments, "--json", "--shortlist", "0").out)["rankings"][0]["shortlist"] is None


def test_an_evaluation_shows_both_stages_and_their_combination(
    retriever: Retriever, bundle: Path, scenes: Path, camp: Command
) -> None:
    split = load_split(scenes, "test")
    first = retriever.bundle.manifest.first_stage
    assert first is not None
    assert first.weight is not None
    result = evaluate(retriever, split, shortlists=[5])
    logits, products = similarity_matrices(
        retriever, retriever.encode_images(split.images), split.captions, lambda done: None
    )
    assert products is not None
    assert result.combination is not None
    assert result.combination.metrics == evaluate_matrix(
        logits + np.float32(first.weight) * products, split.image_of_caption
    )
    assert list(result.combined_shortlists) == [5]
    answer = json.loads(camp("eval", str(bundle), "--data", str(scenes), "--shortlist", "5", "--json").out)
    assert answer["combination"]["weight"] == first.weight
    assert answer["combination"]["rsum"] == result.combination.metrics.rsum
    assert answer["combination"]["shortlists"]["5"]["rsum"] == result.combined_shortlists[5].rsum
    shown = camp("eval", str(bundle), "--data", str(scenes), "--shortlist", "5").out
    assert "x dot product of the vectors" in shown


def test_the_weight_with_the_highest_rsum_is_chosen() -> None:
    rng = np.random.default_rng(0)
    owner = np.arange(40).repeat(2)
    truth = (owner == np.arange(40)[:, None]).astype(np.float32)  # [40, 80]
    logits, products = (truth + rng.normal(0, 0.5, truth.shape).astype(np.float32) for _ in range(2))
    weight = choose_weight(logits, products, owner)
    unit = logits.std() / products.std()
    rsums = [evaluate_matrix(combine(logits, products, ratio * unit), owner).rsum for ratio in RATIOS]
    assert evaluate_matrix(combine(logits, products, weight), owner).rsum == max(rsums) > rsums[0]
    assert choose_weight(truth, np.zeros_like(truth), owner) == 0  # vectors that are all alike
    assert choose_weight(truth, truth, owner) == 0  # the smallest of equals


# Broken files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": 7}, "does not fit its own configuration"),
        ({"backbone": {"variant": "paper"}}, "does not fit its own configuration"),
        ({"backbone": None}, "does not fit its own configuration"),
        ({"feature_width": 10}, "does not fit its own configuration|features of"),
    ],
)
def test_a_checkpoint_whose_frozen_network_does_not_fit(
    trained: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    loaded = saved(trained)
    loaded[KEY]["model"] |= change
    write_checkpoint(loaded, tmp_path / "broken.ckpt")
    with pytest.raises((BundleError, InputError), match=message):
        load_checkpoint(tmp_path / "broken.ckpt")


def test_frozen_networks_do_not_nest(trained: Path, tmp_path: Path) -> None:
    loaded = saved(trained)
    loaded[KEY]["model"]["backbone"]["backbone"] = dict(loaded[KEY]["model"]["backbone"])
    write_checkpoint(loaded, tmp_path / "nested.ckpt")
    model, _ = load_checkpoint(tmp_path / "nested.ckpt")  # what is nested is not read
    assert isinstance(model, Camp)
    assert model.config.backbone is not None
    assert model.config.backbone.backbone is None


def test_a_weight_on_dev_that_is_no_number(trained: Path, tmp_path: Path) -> None:
    loaded = saved(trained)
    loaded[KEY]["training"]["dev"]["combination_weight"] = float("nan")
    write_checkpoint(loaded, tmp_path / "broken.ckpt")
    with pytest.raises(BundleError, match="combination_weight"):
        export_bundle(tmp_path / "broken.ckpt", tmp_path / "bundle")


@pytest.mark.parametrize(
    "value", [{"shortlist": 0}, {"shortlist": True}, {"shortlist": 5, "weight": -1}, {"weight": 1}, [1], 7, "x"]
)
def test_a_first_stage_that_is_none(bundle: Path, tmp_path: Path, value: Any) -> None:
    raw = json.loads((bundle / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(raw | {"first_stage": value}))
    with pytest.raises(BundleError, match="breaks the contract"):
        read_manifest(tmp_path / MANIFEST_FILE)


def test_a_first_stage_without_vectors(released_bundle: Any, tmp_path: Path) -> None:
    raw = json.loads((released_bundle("gate_fusion") / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(raw | {"first_stage": {"shortlist": 5}}))
    with pytest.raises(BundleError, match="there are no global vectors"):
        read_manifest(tmp_path / MANIFEST_FILE)
