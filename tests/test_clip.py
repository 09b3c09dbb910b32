"""CLIP from the files of its makers to a ranking, and the numbers of `transformers` on the way.

No published weights can be had where these tests run: small random models take their place, written by `transformers`
itself. Its processors, tokenizers and networks are what ours are compared with.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camp_sdk import Bundle, BundleError, InputError, Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.import_pretrained import import_pretrained
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.pictures import normalise, read_pixels
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.selftest import self_test
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tokenizer import Tokenizer
from tests.helpers.command import Camp
from tests.helpers.processes import run_blocked

pytest.importorskip("transformers")
from tests.helpers import published  # needs transformers

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    "a photo of a dog",
    "two people on the left of the red house, don't",
    "x",
    "a blue star above the cat's house " * 4,  # longer than the model reads
    "eine Katze, 東京 und ♥",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_pretrained(str(model), tmp_path_factory.mktemp("imported") / "run")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("exported") / "bundle", ["float16"]).folder


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Iterator[Retriever]:
    with Retriever(bundle, "onnxruntime") as opened:
        yield opened


# Exact


@pytest.mark.parametrize("name", published.PICTURES)
def test_pixels_are_those_of_the_models_own_processor(checkpoint: Path, model: Path, name: str) -> None:
    from transformers import CLIPImageProcessorPil

    _, origin = load_checkpoint(checkpoint)
    assert origin.pixels is not None
    assert (origin.pixels.fit, origin.pixels.resample) == ("crop", "bicubic")
    data = published.PICTURES[name]()
    found = normalise(read_pixels(data, origin.pixels, name)[None], origin.pixels)[0]
    expected = published.theirs(data, CLIPImageProcessorPil.from_pretrained(model))
    step = 1 / 255 / np.array(origin.pixels.std).reshape(3, 1, 1)  # one of 255, after it is normalised
    assert (np.abs(found - expected) <= 1.001 * step).all()


def test_token_ids_are_those_of_the_models_own_tokenizer(checkpoint: Path, model: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model)
    ours = Tokenizer(load_checkpoint(checkpoint)[1].tokenizer).encode(texts := published.captions())
    expected = tokenizer(texts, truncation=True, max_length=published.LONGEST)["input_ids"]
    assert [ids[:n].tolist() for ids, n in zip(ours.ids, ours.lengths, strict=True)] == expected
    assert len(set(ours.lengths.tolist())) > 10  # short ones, and ones that are cut


def test_logits_and_order_are_those_of_the_model(retriever: Retriever, model: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    pictures = [published.picture(40 + 9 * index, 64, index) for index in range(8)]
    tokens = CLIPTokenizer.from_pretrained(model)(
        TEXTS, padding=True, truncation=True, max_length=published.LONGEST, return_tensors="pt"
    )
    pixels = CLIPImageProcessorPil.from_pretrained(model)(pictures, return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(model)(**tokens, **pixels).logits_per_image.numpy()
    assert np.ptp(expected) > 3  # the scores differ, so that an order means something
    found = retriever.score_matrix(pictures, TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # what the issue of the import demands
    gallery = retriever.encode_images(pictures)
    for text, caption in enumerate(TEXTS):
        order = [match.corpus_id for match in retriever.rank(caption, gallery, top_k=8)]
        assert order == np.argsort(-expected[:, text]).tolist()


# As a bundle


def test_the_bundle_is_two_towers(retriever: Retriever) -> None:
    manifest = retriever.bundle.manifest
    assert (manifest.variant, manifest.activation) == ("clip", "none")
    assert [spec.name for spec in manifest.image_tensors] == ["image.global"]
    assert [spec.name for spec in manifest.text_tensors] == ["text.global"]
    assert {spec.name for spec in manifest.graphs["scorer"].inputs} == {"image.global", "text.global"}
    assert manifest.graphs["vision"].outputs[0].shape == ("B", 17, 32)  # 4 x 4 patches, and the class token
    assert manifest.training == {"pretrained": "tiny-clip", "revision": None}
    assert manifest.max_words == published.LONGEST - 2


def test_the_first_stage_orders_as_the_scorer_does(retriever: Retriever) -> None:
    gallery = retriever.encode_images([published.picture(50, 50, index) for index in range(9)])
    whole = retriever.rank(TEXTS[0], gallery, top_k=3)
    assert [m.corpus_id for m in retriever.rank(TEXTS[0], gallery, top_k=3, shortlist=3)] == [
        m.corpus_id for m in whole
    ]


def test_padding_does_not_matter(retriever: Retriever) -> None:
    alone = [retriever.score_matrix([published.picture(40, 40)], [text])[0, 0] for text in TEXTS]
    together = retriever.score_matrix([published.picture(40, 40)], TEXTS)[0]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)  # float32 sums of masked zeros in another order


def test_it_passes_its_self_test(retriever: Retriever) -> None:
    assert self_test(retriever.bundle, "onnxruntime", "float32").passed


def test_half_precision_is_written_with_the_towers_in_it(retriever: Retriever) -> None:
    lowered = retriever.bundle.manifest.precisions["float16"]
    assert {"image", "text", "scorer", "vision"} == set(lowered.graphs)


@pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_graph_builds(bundle: Path, tmp_path: Path, precision: str) -> None:
    """TensorRT-RTX needs no GPU to build."""
    opened = Bundle(shutil.copytree(bundle, tmp_path / "bundle"))
    here = replace(here_of("tensorrt-rtx"), compute_capability=None)
    for graph in ("vision", "image", "text", "scorer"):
        record = build_engine(EngineOrder(opened, graph, precision, here, Limits()))
        assert (record.graph, record.precision) == (graph, precision)


def test_a_marker_typed_in_a_text_is_ordinary_text(checkpoint: Path) -> None:
    tokenizer = Tokenizer(load_checkpoint(checkpoint)[1].tokenizer)
    end = tokenizer.vocabulary_size - 1
    assert tokenizer.encode(["a <|endoftext|> dog"]).ids[0].tolist().count(end) == 1


def test_a_ranking_needs_neither_torch_nor_transformers(bundle: Path, retriever: Retriever) -> None:
    code = """
import numpy as np
from camp_sdk import Retriever
pictures = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8) for seed in range(5)]
with Retriever(sys.argv[1]) as retriever:
    print(*(match.corpus_id for match in retriever.rank("a photo of a dog", pictures, top_k=5)))
"""
    pictures = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8) for seed in range(5)]
    expected = [str(match.corpus_id) for match in retriever.rank("a photo of a dog", pictures, top_k=5)]
    done = run_blocked(code, bundle)
    assert (done.stderr, done.stdout.split()) == ("", expected)


# What is refused


def copied(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights are read from safetensors only"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json not found: expected a folder with"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "save the model's fast tokenizer"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be read as safetensors"),
    "another model": (lambda f: change(f / "config.json", model_type="bert"), "model_type 'bert': expected clip"),
    "a configuration that is a list": (lambda f: (f / "config.json").write_text("[]"), "it is not an object"),
    "another width": (
        lambda f: change(f / "config.json", projection_dim=7),
        r"does not fit config\.json: visual_projection\.weight is \(20, 32\), expected \(7, 32\)",
    ),
    "raw pixels": (lambda f: change(f / "preprocessor_config.json", do_normalize=False), "do_normalize off"),
    "another filter": (lambda f: change(f / "preprocessor_config.json", resample=1), r"resample 1: expected 2"),
    "another cut": (
        lambda f: change(f / "preprocessor_config.json", crop_size={"height": 24, "width": 24}),
        "a shortest_edge that is also cut out",
    ),
    "another size": (
        lambda f: change(f / "preprocessor_config.json", size=24, crop_size=24),
        "makes pictures of 24 x 24, its model takes 32 squared",
    ),
    "other rules for words": (
        lambda f: change(f / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}}),
        "is not a tokenizer of CLIP",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(model: Path, tmp_path: Path, what: str) -> None:
    spoil, message = REFUSED[what]
    spoil(folder := copied(model, tmp_path / "model"))
    with pytest.raises(BundleError, match=message):
        import_pretrained(str(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sizes_as_numbers_are_read_as_those_of_old_files(model: Path, tmp_path: Path) -> None:
    change(copied(model, tmp_path / "model") / "preprocessor_config.json", size=32, crop_size=32)
    _, origin = load_checkpoint(import_pretrained(str(tmp_path / "model"), tmp_path / "run"))
    assert isinstance(origin.pixels, PixelSpec)
    assert (origin.pixels.height, origin.pixels.fit) == (32, "crop")


def test_a_folder_that_is_not_empty_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        import_pretrained(str(model), tmp_path)


@pytest.mark.parametrize(
    ("side", "name", "value", "message"),
    [
        ("text", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("text", "_attn_implementation", "somebody/kernels", "expected hidden_size"),
        ("vision", "hidden_act", "anything", "hidden_act is 'anything'"),
        ("vision", "patch_size", 0, "patch_size is 0"),
    ],
)
def test_a_checkpoint_with_other_sizes(
    checkpoint: Path, tmp_path: Path, side: str, name: str, value: object, message: str
) -> None:
    """Refused before a network of these sizes is built, and before `transformers` reads anything it names."""
    raw = torch.load(checkpoint, weights_only=True)
    raw["camp"]["model"]["towers"][side][name] = value
    torch.save(raw, tmp_path / "best.ckpt")
    with pytest.raises(BundleError, match=f"does not fit its own configuration: .*{message}"):
        load_checkpoint(tmp_path / "best.ckpt")


def test_it_is_not_a_start_for_training(checkpoint: Path, tmp_path: Path) -> None:
    from camp_sdk.export.scenes import write_scenes
    from camp_sdk.export.training.config import TrainConfig
    from camp_sdk.export.training.run import run_training

    write_scenes(tmp_path / "scenes", {"train": 2, "dev": 2})
    with pytest.raises(InputError, match="holds a published model, which cannot be trained: use camp export"):
        run_training(TrainConfig(data=tmp_path / "scenes", output=tmp_path / "run", start=checkpoint))


# The command


def test_import_of_a_released_checkpoint_stays_what_it_was(camp: Camp) -> None:
    done = camp("import", "nowhere.pth.tar", "--vocab", "nowhere.pkl", "--output", "nowhere")
    assert done.code == 1
    assert "nowhere.pth.tar" in done.err
    assert "--vocab" in camp("import", "--help").out
    assert "--revision" in camp("import", "clip", "--help").out


def test_without_a_network_it_names_what_to_download(
    camp: Camp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*arguments: Any, **options: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    done = camp("import", "clip", "owner/tiny", "--output", str(tmp_path / "run"), "--revision", "v1")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: owner/tiny cannot be fetched: download config.json, model.safetensors, ")
    assert "https://huggingface.co/owner/tiny/tree/v1 into a folder" in line


def test_a_repository_is_fetched_and_its_commit_recorded(
    camp: Camp, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def fetch(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, "model.safetensors" in allow_patterns))
        return str(copied(model, tmp_path / "0123abcd"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    done = camp("import", "clip", "owner/tiny", "--output", str(tmp_path / "run"))
    assert (done.code, asked) == (0, [("owner/tiny", None, True)])
    _, origin = load_checkpoint(tmp_path / "run" / "best.ckpt")
    assert origin.training == {"pretrained": "owner/tiny", "revision": "0123abcd"}


def test_a_name_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is no folder: expected a model's folder, or a repository"):
        import_pretrained("nowhere", tmp_path / "run")
