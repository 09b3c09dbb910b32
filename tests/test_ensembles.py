"""`camp eval` of several bundles: the mean of their scores, each with its own words and its own pictures."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from camp_sdk import Bundle, InputError, Retriever, Split, evaluate, evaluate_matrix, load_split
from camp_sdk.ensembles import ScoreMean, names_of
from camp_sdk.evaluation import ENCODING, SCORING, work_of
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.checkpoint import KEY
from camp_sdk.export.network.model import Camp as Network
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.runtime.manifest import MANIFEST_FILE, PixelSpec, read_manifest, write_manifest
from tests.helpers.command import Camp
from tests.helpers.tiny import CAPTIONS, tiny_origin

Matrix = NDArray[np.float64]
repeatable = settings(deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `paper` for pictures, with fewer words and of another size than those of `picture_bundle`."""
    folder, tiny = tmp_path_factory.mktemp("other"), tiny_origin("paper", True)
    tokenizer = build_tokenizer(CAPTIONS[:2], min_count=1)
    origin = replace(
        tiny,
        model=replace(tiny.model, vocabulary_size=tokenizer.get_vocab_size(), picture_size=192),
        pixels=PixelSpec(192, 192, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (6, 6), "letterbox"),
        tokenizer=tokenizer.to_str(),
        example_images=torch.from_numpy(np.random.default_rng(1).integers(0, 256, (12, 192, 192, 3), np.uint8)),
        example_captions=CAPTIONS[:2],
    )
    torch.manual_seed(1)
    weights = {name: 2.5 * own if own.ndim == 2 else own for name, own in Network(origin.model).state_dict().items()}
    weights["scorer.mlp.2.bias"] += 9  # scores around those of the other network, so that both of them decide
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": weights, KEY: origin.as_dict()}, folder / "other.ckpt")
    return export_bundle(folder / "other.ckpt", folder / "bundle").folder


@pytest.fixture(scope="module")
def other_retriever(other_bundle: Path) -> Iterator[Retriever]:
    with Retriever(other_bundle, "onnxruntime") as retriever:
        yield retriever


@pytest.fixture
def test_split(scenes: Path) -> Split:
    return load_split(scenes, "test")


def sigmoid(logits: NDArray[np.float32]) -> Matrix:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


# The mean


def test_a_network_with_itself_is_the_network(picture_retriever: Retriever, test_split: Split) -> None:
    alone = evaluate(picture_retriever, test_split)
    twice = evaluate([picture_retriever] * 2, test_split)
    assert twice.network == alone.network
    assert list(twice.members.values()) == [alone.network] * 2
    assert evaluate([picture_retriever], test_split) == alone


def test_the_mean_is_that_of_the_scores(
    picture_retriever: Retriever, other_retriever: Retriever, test_split: Split
) -> None:
    """Members with words, pixels and vision networks of their own."""
    pair = [picture_retriever, other_retriever]
    matrices = [
        retriever.score_matrix(retriever.encode_images(test_split.images), test_split.captions, logits=True)
        for retriever in pair
    ]
    expected = evaluate_matrix(sum(map(sigmoid, matrices)) / 2, test_split.image_of_caption)
    found = evaluate(pair, test_split)
    assert found.network == expected
    alone = [evaluate(retriever, test_split).network for retriever in pair]
    assert found.members == dict(zip(("scalar", "paper"), alone, strict=True))
    assert expected not in alone  # or the test could not fail
    tokens = [retriever._tokenizer.encode(test_split.captions[:9]).ids for retriever in pair]
    assert not np.array_equal(*tokens)


def test_the_order_of_the_networks_does_not_matter(
    picture_retriever: Retriever, other_retriever: Retriever, test_split: Split
) -> None:
    orders = itertools.permutations([picture_retriever, other_retriever, picture_retriever])
    first, *others = [evaluate(order, test_split).network for order in orders]
    assert others == [first] * 5


def test_folds_are_averaged_like_those_of_one(
    picture_retriever: Retriever, other_retriever: Retriever, test_split: Split
) -> None:
    pair = [picture_retriever, other_retriever]
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        chosen = np.flatnonzero((test_split.image_of_caption >= part.start) & (test_split.image_of_caption < part.stop))
        captions = [test_split.captions[index] for index in chosen]
        own = test_split.image_of_caption[chosen] - part.start
        halves.append(evaluate(pair, Split("half", test_split.images[part], captions, own)).network)
    found = evaluate(pair, test_split, folds=2).network
    assert found.rsum == pytest.approx(sum(half.rsum for half in halves) / 2, rel=1e-12)  # the last bits of two means


def test_progress_ends_at_the_work_that_was_announced(
    picture_retriever: Retriever, other_retriever: Retriever, test_split: Split
) -> None:
    done = {ENCODING: 0, SCORING: 0}

    def advance(step: str, number: int) -> None:
        done[step] += number

    evaluate([picture_retriever, other_retriever], test_split, 2, advance)
    assert done == work_of(test_split, 2, 2)


logits_of = st.lists(st.floats(-120, 120, width=32), min_size=6, max_size=6)


@repeatable
@given(st.lists(logits_of, min_size=1, max_size=4))
def test_the_logit_of_a_mean_orders_as_the_mean_does(rows: list[list[float]]) -> None:
    """Exact fractions are out of reach; where float64 can tell two means apart clearly, the order is that of them."""
    networks = [np.array([row], np.float32) for row in rows]
    mean = ScoreMean(["sigmoid"] * len(networks), (1, 6))
    for network in networks:
        mean.add(network)
    found = mean.similarity()[0]
    scores = sum(map(sigmoid, networks))[0] / len(networks)
    above = scores[:, None] > scores + 1e-6  # a difference that a float32 logit shows at any size of it
    assert (found[:, None] > found)[above].all()


def test_certain_scores_keep_their_order() -> None:
    """Both scores are 1 in float64, and so is their mean: only the logits tell the pairs apart."""
    first, second = np.array([[40, 50, 60, 90]], np.float32), np.array([[41, 40, 70, 90]], np.float32)
    mean = ScoreMean(["sigmoid"] * 2, (1, 4))
    mean.add(first)
    mean.add(second)
    found = mean.similarity()[0]
    assert (sigmoid(first) + sigmoid(second) == 2).all()
    assert (np.diff(found) > 0).all()  # the lower of two decides how far their mean is from 1, and then the other


@pytest.mark.parametrize("value", [-800.0, 800.0])
def test_scores_of_0_or_1_to_the_last_bit_are_numbers(value: float) -> None:
    mean = ScoreMean(["sigmoid"] * 2, (1, 2))
    mean.add(np.array([[value, 0]], np.float32))
    mean.add(np.array([[value, 0]], np.float32))
    found = mean.similarity()[0]
    assert found[1] == 0
    assert bool(found[0] > 0) is (value > 0)
    assert not np.isnan(found).any()


def test_cosines_are_averaged_as_they_are() -> None:
    """Beside a sigmoid and a cosine, which stays within -1 and 1, logits would decide alone."""
    cosines, logits = np.array([[0.5, -0.25]], np.float32), np.array([[-3, 20]], np.float32)
    mean = ScoreMean(["none", "sigmoid"], (1, 2))
    mean.add(cosines)
    mean.add(logits)
    np.testing.assert_array_equal(mean.similarity(), (cosines.astype(np.float64) + sigmoid(logits)) / 2)


def test_equal_captions_tie(picture_retriever: Retriever, other_retriever: Retriever, scenes: Path) -> None:
    """As many captions as are encoded in several groups, all of two kinds: every rank is a tie."""
    whole = load_split(scenes, "test")
    split = Split("test", whole.images[:2], [CAPTIONS[0]] * 300, np.arange(300) % 2)
    found = evaluate([picture_retriever, other_retriever], split).network
    assert found.image_to_text.median_rank == 1 + 150 / 2  # the half of 150 others


# Names


def renamed(bundle: Path, folder: Path) -> Bundle:
    return Bundle(shutil.copytree(bundle, folder))


def test_networks_with_one_name_get_their_folders(picture_bundle: Path, feature_bundle: Path, tmp_path: Path) -> None:
    first, second = renamed(picture_bundle, tmp_path / "a"), renamed(picture_bundle, tmp_path / "b")
    third = renamed(picture_bundle, tmp_path / "more" / "b")
    assert names_of([first]) == ["scalar"]
    assert names_of([first, Bundle(feature_bundle)]) == ["scalar", "paper"]
    assert names_of([first, second]) == ["scalar (a)", "scalar (b)"]
    assert names_of([second, third]) == [f"scalar ({second.folder})", f"scalar ({third.folder})"]
    assert names_of([first, first]) == [f"scalar ({first.folder}), 1", f"scalar ({first.folder}), 2"]


# What is refused


def test_a_bundle_of_features_beside_one_of_pictures_is_named(
    picture_retriever: Retriever, feature_retriever: Retriever, test_split: Split
) -> None:
    with pytest.raises(InputError) as refused:
        evaluate([picture_retriever, feature_retriever], test_split, on_progress=pytest.fail)
    folder = feature_retriever.bundle.folder
    assert str(refused.value).startswith(f"{folder} takes features [I, R, 12], split test has pictures: expected ")


def test_features_of_another_width_are_refused_by_name(
    picture_retriever: Retriever, feature_retriever: Retriever, features: NDArray[np.float32]
) -> None:
    split = Split("test", features[..., :7], [CAPTIONS[2]] * 10, np.arange(10))
    with pytest.raises(InputError, match=r"takes features \[I, R, 12\], split test has \[10, 5, 7\]: expected "):
        evaluate(feature_retriever, split)


def test_shortlists_are_for_one_network(picture_retriever: Retriever, test_split: Split) -> None:
    with pytest.raises(InputError, match=r"`shortlist`: 2 networks have no common global vectors .*; leave it out"):
        evaluate([picture_retriever] * 2, test_split, shortlists=[3])


def test_no_retriever_is_an_error(test_split: Split) -> None:
    with pytest.raises(InputError, match="expected at least one retriever"):
        evaluate([], test_split)


# The command


def test_the_command_averages(
    camp: Camp, picture_bundle: Path, other_bundle: Path, scenes: Path, tmp_path: Path
) -> None:
    options = ["--data", scenes, "--backend", "onnxruntime", "--json"]
    answer = json.loads(camp("eval", picture_bundle, other_bundle, *options, "--output", tmp_path / "x.json").out)
    with Retriever(picture_bundle, "onnxruntime") as first, Retriever(other_bundle, "onnxruntime") as second:
        expected = evaluate([first, second], load_split(scenes, "test")).as_dict()
    assert answer == expected | {"split": "test", "backend": "onnxruntime", "precision": "float32"}
    assert answer["global_vectors"] is None
    assert list(answer["members"]) == ["scalar", "paper"]
    assert set(answer["members"]["paper"]) == {"text_to_image", "image_to_text", "rsum"}
    assert json.loads((tmp_path / "x.json").read_text()) == answer


def test_the_table_has_every_network_and_the_average(
    camp: Camp, picture_bundle: Path, other_bundle: Path, scenes: Path
) -> None:
    out = camp("eval", picture_bundle, other_bundle, "--data", scenes, "--backend", "onnxruntime").out
    assert [name for name in ("scalar", "paper", "average of 2", "global vectors", "CAMP") if name in out] == [
        "scalar",
        "paper",
        "average of 2",
    ]
    assert out.count("text to image") == 3


def test_the_table_names_the_network(camp: Camp, picture_bundle: Path, scenes: Path, tmp_path: Path) -> None:
    folder = renamed(picture_bundle, tmp_path / "bundle").folder
    manifest = read_manifest(folder / MANIFEST_FILE)
    write_manifest(folder, replace(manifest, variant="[red]odd\x1b[0m"))
    out = camp("eval", folder, "--data", scenes, "--backend", "onnxruntime").out
    assert r"[red]odd\x1b[0m" in out
    assert "global vectors alone" in out
    assert "average" not in out


def test_shortlists_of_several_end_in_one_line(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    result = camp("eval", picture_bundle, picture_bundle, "--data", scenes, "--shortlist", 5)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: --shortlist: 2 networks have no common global vectors")
