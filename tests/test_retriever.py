"""The retriever: every path to a score gives the same score, and every bad input a clear answer."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import (
    BackendError,
    Bundle,
    BundleError,
    Gallery,
    InputError,
    Match,
    MissingExtraError,
    Retriever,
    load_split,
)
from camp_sdk.runtime import blocks, encode, scoring
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.scoring import activate
from tests.helpers.hardware import needs_bfloat16
from tests.helpers.manifests import put, rewrite
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

Features = NDArray[np.float32]
Logits = NDArray[np.float32]

# Logits are near 1 and float32 keeps seven digits: other batches sum in another order, nothing else differs.
LOGIT_ATOL = 1e-5
SCORE_ATOL = 1e-6  # a float64 sigmoid rounded to float32 is within an ulp or two of ours
QUERY = "a small red circle"


@pytest.fixture
def gallery(feature_retriever: Retriever, features: Features) -> Gallery:
    return feature_retriever.encode_images(features)


@pytest.fixture
def logits(feature_retriever: Retriever, gallery: Gallery) -> Logits:
    return feature_retriever.score_matrix(gallery, CAPTIONS, logits=True)


@pytest.fixture
def drawn(scenes: Path) -> list[Path]:
    return [Path(path) for path in load_split(scenes, "test").images]


def test_the_tiny_model_tells_pairs_apart(logits: Logits) -> None:
    assert logits.shape == (10, 6)
    assert logits.dtype == np.float32
    assert np.ptp(logits, axis=0).min() > 0.1
    assert np.ptp(logits, axis=1).min() > 0.1


# One score, many paths


def test_images_one_by_one(feature_retriever: Retriever, features: Features, logits: Logits) -> None:
    rows = [feature_retriever.score_matrix([image], CAPTIONS, logits=True)[0] for image in features]
    np.testing.assert_allclose(rows, logits, atol=LOGIT_ATOL)


def test_texts_one_by_one(feature_retriever: Retriever, gallery: Gallery, logits: Logits) -> None:
    columns = [feature_retriever.score_matrix(gallery, [text], logits=True)[:, 0] for text in CAPTIONS]
    np.testing.assert_allclose(np.transpose(columns), logits, atol=LOGIT_ATOL)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_any_split_of_the_images(feature_retriever: Retriever, features: Features, logits: Logits, cut: int) -> None:
    parts = [feature_retriever.score_matrix(part, CAPTIONS, logits=True) for part in (features[:cut], features[cut:])]
    np.testing.assert_allclose(np.concatenate(parts), logits, atol=LOGIT_ATOL)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_any_split_of_the_texts(feature_retriever: Retriever, gallery: Gallery, logits: Logits, cut: int) -> None:
    parts = [feature_retriever.score_matrix(gallery, part, logits=True) for part in (CAPTIONS[:cut], CAPTIONS[cut:])]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits, atol=LOGIT_ATOL)


@pytest.mark.parametrize("block_bytes", [1, 5_000, 20_000, 1 << 30])
@pytest.mark.parametrize("block_texts", [1, 2, 100])
@pytest.mark.parametrize("encode_texts", [1, 4])
def test_any_blocks(
    feature_retriever: Retriever,
    gallery: Gallery,
    logits: Logits,
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
    block_texts: int,
    encode_texts: int,
) -> None:
    monkeypatch.setattr(Engine, "block_bytes", block_bytes)
    monkeypatch.setattr(blocks, "BLOCK_TEXTS", block_texts)
    monkeypatch.setattr(encode, "ENCODE_TEXTS", encode_texts)
    matrix = feature_retriever.score_matrix(gallery, CAPTIONS, logits=True)
    np.testing.assert_allclose(matrix, logits, atol=LOGIT_ATOL)


def test_blocks_hear_every_pair_once(
    feature_retriever: Retriever, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "block_bytes", 20_000)
    heard: list[int] = []
    feature_retriever.score_matrix(gallery, CAPTIONS, on_progress=heard.append)
    assert sum(heard) == 10 * 6
    assert len(heard) > 1
    for corpus, query, shortlist, pairs in ((gallery, list(CAPTIONS), None, 10 * 6), (gallery, CAPTIONS[0], 3, 3)):
        heard.clear()
        feature_retriever.rank(query, corpus, 2, shortlist, heard.append)
        assert sum(heard) == pairs


def test_the_order_of_texts_is_the_order_of_columns(
    feature_retriever: Retriever, gallery: Gallery, logits: Logits
) -> None:
    order = [3, 5, 0, 4, 2, 1]
    matrix = feature_retriever.score_matrix(gallery, [CAPTIONS[index] for index in order], logits=True)
    np.testing.assert_allclose(matrix, logits[:, order], atol=LOGIT_ATOL)


def test_the_order_of_images_is_the_order_of_rows(
    feature_retriever: Retriever, features: Features, logits: Logits
) -> None:
    matrix = feature_retriever.score_matrix(features[::-1], CAPTIONS, logits=True)
    np.testing.assert_allclose(matrix, logits[::-1], atol=LOGIT_ATOL)


@pytest.mark.parametrize("beside", ["star", "a red circle " * 15])
def test_a_text_beside_it_does_not_matter(feature_retriever: Retriever, gallery: Gallery, beside: str) -> None:
    alone = feature_retriever.score_matrix(gallery, [QUERY], logits=True)[:, 0]
    together = feature_retriever.score_matrix(gallery, [beside, QUERY], logits=True)[:, 1]
    np.testing.assert_allclose(together, alone, atol=LOGIT_ATOL)


def test_a_caption_over_the_limit_is_the_cut_caption(feature_retriever: Retriever, gallery: Gallery) -> None:
    words = ["red", "star", "circle"] * 30
    cut, whole = (feature_retriever.score_matrix(gallery, [" ".join(words[:n])], logits=True) for n in (47, 90))
    np.testing.assert_array_equal(whole, cut)


@pytest.mark.parametrize("repeats", [1, 4])
def test_batches_of_images(feature_retriever: Retriever, features: Features, logits: Logits, repeats: int) -> None:
    many = feature_retriever.score_matrix(np.tile(features, (repeats * 4, 1, 1)), CAPTIONS, logits=True)
    np.testing.assert_allclose(many, np.tile(logits, (repeats * 4, 1)), atol=LOGIT_ATOL)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(list, id="list"),
        pytest.param(iter, id="iterator"),
        pytest.param(lambda features: (image for image in features), id="generator"),
        pytest.param(lambda features: features.astype(np.float64), id="float64"),
        pytest.param(np.asfortranarray, id="other strides"),
    ],
)
def test_forms_of_features(
    feature_retriever: Retriever, features: Features, logits: Logits, form: Callable[[Features], Any]
) -> None:
    np.testing.assert_array_equal(feature_retriever.score_matrix(form(features), CAPTIONS, logits=True), logits)


def test_memory_mapped_features(
    feature_retriever: Retriever, features: Features, logits: Logits, tmp_path: Path
) -> None:
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(feature_retriever.score_matrix(mapped, CAPTIONS, logits=True), logits)


def test_galleries_may_differ_in_regions(feature_retriever: Retriever, features: Features) -> None:
    assert feature_retriever.score_matrix(features[:, :3], CAPTIONS).shape == (10, 6)


def test_score_of_pairs_is_an_entry_of_the_matrix(
    feature_retriever: Retriever, features: Features, gallery: Gallery
) -> None:
    rng = np.random.default_rng(2)
    where = np.stack([rng.integers(0, 10, 25), rng.integers(0, 6, 25)], axis=1)
    images = list(features)
    scores = feature_retriever.score([(images[i], CAPTIONS[t]) for i, t in where])
    matrix = feature_retriever.score_matrix(gallery, CAPTIONS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, matrix[where[:, 0], where[:, 1]], atol=LOGIT_ATOL)


def test_score_of_pairs_in_small_blocks(
    feature_retriever: Retriever, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(image, text) for image in features for text in CAPTIONS]
    whole = feature_retriever.score(pairs)
    monkeypatch.setattr(Engine, "block_bytes", 1)
    np.testing.assert_allclose(feature_retriever.score(pairs), whole, atol=LOGIT_ATOL)


def test_score_of_no_pair(feature_retriever: Retriever) -> None:
    assert feature_retriever.score([]).shape == (0,)


def test_path_picture_and_array_are_the_same_image(picture_retriever: Retriever, drawn: list[Path]) -> None:
    pictures = [Image.open(path).convert("RGB") for path in drawn]
    forms: list[Sequence[Any]] = [drawn, [str(path) for path in drawn], pictures, [np.asarray(p) for p in pictures]]
    first, *others = [picture_retriever.score_matrix(form, CAPTIONS, logits=True) for form in forms]
    for matrix in others:
        np.testing.assert_array_equal(matrix, first)


def test_pictures_one_by_one(picture_retriever: Retriever, drawn: list[Path]) -> None:
    whole = picture_retriever.score_matrix(drawn, CAPTIONS, logits=True)
    rows = [picture_retriever.score_matrix([path], CAPTIONS, logits=True)[0] for path in drawn]
    np.testing.assert_allclose(rows, whole, atol=LOGIT_ATOL)


def test_threads_do_not_matter(feature_bundle: Path, gallery: Gallery, logits: Logits) -> None:
    with Retriever(feature_bundle, "onnxruntime", threads=1) as retriever:
        np.testing.assert_allclose(retriever.score_matrix(gallery, CAPTIONS, logits=True), logits, atol=LOGIT_ATOL)


# Activation


def test_sigmoid_is_exact_in_float32() -> None:
    logits = np.linspace(-80, 80, 10_001, dtype=np.float32)
    scores = activate(logits, "sigmoid")
    exact = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert scores.dtype == np.float32
    # The exponential, the sum and the division each round once: three half-ulps of float32 (6e-8), and as much again.
    np.testing.assert_allclose(scores, exact, rtol=4e-7)


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40))
def test_sigmoid_is_monotone_and_between_0_and_1(values: list[float]) -> None:
    scores = activate(np.sort(np.array(values, np.float32)), "sigmoid")
    assert (np.diff(scores) >= 0).all()
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_sigmoid_of_extremes() -> None:
    logits = np.array([-math.inf, -1e30, 0, 1e30, math.inf], np.float32)
    assert activate(logits, "sigmoid").tolist() == [0, 0, 0.5, 1, 1]


def test_no_activation_is_identity(logits: Logits) -> None:
    np.testing.assert_array_equal(activate(logits, "none"), logits)


def test_scores_are_activated_logits(feature_retriever: Retriever, gallery: Gallery, logits: Logits) -> None:
    exact = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(feature_retriever.score_matrix(gallery, CAPTIONS), exact, atol=SCORE_ATOL)


def test_a_bundle_without_activation_scores_with_logits(bundle_copy: Path, gallery: Gallery, logits: Logits) -> None:
    with Retriever(rewrite(bundle_copy, put("none", "activation")), "onnxruntime") as retriever:
        np.testing.assert_array_equal(retriever.score_matrix(gallery, CAPTIONS), logits)


# Ranking


def test_ranking_sorts_the_matrix(feature_retriever: Retriever, features: Features) -> None:
    gallery = feature_retriever.encode_images(features, names=[f"image {index}" for index in range(10)])
    matches = feature_retriever.rank(QUERY, gallery, top_k=10)
    column = feature_retriever.score_matrix(gallery, [QUERY], logits=True)[:, 0]
    order = np.argsort(-column, kind="stable").tolist()
    assert [match.corpus_id for match in matches] == order
    assert [match.logit for match in matches] == column[order].tolist()
    assert [match.rank for match in matches] == list(range(1, 11))
    assert [match.document for match in matches] == [f"image {index}" for index in order]


def test_scores_of_a_ranking_are_those_of_the_matrix(feature_retriever: Retriever, gallery: Gallery) -> None:
    column = feature_retriever.score_matrix(gallery, [QUERY])[:, 0]
    for match in feature_retriever.rank(QUERY, gallery, top_k=10):
        # numpy may take another path through exp for few numbers than for many.
        assert match.score == pytest.approx(float(column[match.corpus_id]), abs=SCORE_ATOL)


def test_equal_logits_keep_the_gallerys_order(
    feature_retriever: Retriever, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring.PairScorer, "run", lambda self, images, text: np.ones((len(images["image.V"]), 1)))
    assert [match.corpus_id for match in feature_retriever.rank(QUERY, gallery, 4)] == [0, 1, 2, 3]


def test_saturated_scores_are_ranked_by_logit(
    feature_retriever: Retriever, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = np.arange(50, 60, dtype=np.float32)[:, None]
    monkeypatch.setattr(scoring, "iter_logits", lambda *given: [(slice(0, 10), np.array([0]), rising)])
    matches = feature_retriever.rank(QUERY, gallery, 3)
    assert [(match.corpus_id, match.score) for match in matches] == [(9, 1.0), (8, 1.0), (7, 1.0)]


def test_a_list_of_queries_gives_a_list_of_rankings(feature_retriever: Retriever, gallery: Gallery) -> None:
    queries = [QUERY, "star", "a large blue star and a small red circle"]
    rankings = feature_retriever.rank(queries, gallery, 3)
    for query, ranking in zip(queries, rankings, strict=True):
        assert [m.corpus_id for m in ranking] == [m.corpus_id for m in feature_retriever.rank(query, gallery, 3)]


def test_an_image_ranks_texts(feature_retriever: Retriever, features: Features) -> None:
    texts = feature_retriever.encode_texts(CAPTIONS)
    row = feature_retriever.score_matrix(features[3:4], texts, logits=True)[0]
    matches = feature_retriever.rank(features[3], texts, top_k=6)
    assert [match.corpus_id for match in matches] == np.argsort(-row, kind="stable").tolist()
    assert [match.document for match in matches] == [CAPTIONS[match.corpus_id] for match in matches]


def test_an_image_ranks_a_raw_list_of_texts(feature_retriever: Retriever, features: Features) -> None:
    texts = feature_retriever.encode_texts(CAPTIONS)
    assert feature_retriever.rank(features[3], CAPTIONS, 6) == feature_retriever.rank(features[3], texts, 6)


@pytest.mark.parametrize("kind", [Path, str])
def test_a_path_ranks_a_gallery_of_texts(picture_retriever: Retriever, drawn: list[Path], kind: type) -> None:
    texts = picture_retriever.encode_texts(CAPTIONS)
    assert picture_retriever.rank(kind(drawn[0]), texts) == picture_retriever.rank(Image.open(drawn[0]), texts)


def test_a_text_ranks_a_raw_list_of_paths(picture_retriever: Retriever, drawn: list[Path]) -> None:
    matches = picture_retriever.rank(QUERY, drawn, 3)
    assert matches == picture_retriever.rank(QUERY, picture_retriever.encode_images(drawn), 3)
    assert [match.document for match in matches] == [str(drawn[match.corpus_id]) for match in matches]


def test_a_text_ranks_a_raw_list_of_arrays(feature_retriever: Retriever, features: Features, gallery: Gallery) -> None:
    matches = feature_retriever.rank(QUERY, list(features))
    assert matches == feature_retriever.rank(QUERY, gallery)
    assert {match.document for match in matches} == {None}


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (5, 5), (10, 10), (11, 10), (10**9, 10)])
def test_top_k(feature_retriever: Retriever, gallery: Gallery, top_k: int, count: int) -> None:
    assert len(feature_retriever.rank(QUERY, gallery, top_k)) == count


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "5", None, True])
def test_a_top_k_that_is_no_count(feature_retriever: Retriever, gallery: Gallery, top_k: Any) -> None:
    with pytest.raises(InputError, match=f"`top_k` is {top_k!r}: expected a whole number, 1 or more"):
        feature_retriever.rank(QUERY, gallery, top_k)


def test_a_match_reads_by_name() -> None:
    match = Match(3, 0.5, 0.0, 1, "a.png", "a", {"year": 2024})
    assert {field: match[field] for field in match} == vars(match)


@pytest.mark.parametrize("field", ["", "scores", "__class__"])
def test_a_match_has_no_other_field(field: str) -> None:
    with pytest.raises(KeyError):
        Match(3, 0.5, 0.0, 1)[field]


def test_a_match_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Match(3, 0.5, 0.0, 1).score = 1.0  # type: ignore[misc]  # frozen, on purpose


# Bad input


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query(feature_retriever: Retriever, gallery: Gallery, query: str) -> None:
    with pytest.raises(InputError, match="is empty: expected at least one word"):
        feature_retriever.rank(query, gallery)


def test_a_query_of_unknown_words_only(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match=r"no word of the query 'zebra quux' .*use words the model was trained on"):
        feature_retriever.rank("zebra quux", gallery)


def test_a_query_with_one_known_word_is_ranked(feature_retriever: Retriever, gallery: Gallery) -> None:
    assert len(feature_retriever.rank("zebra star quux", gallery)) == 5


@pytest.mark.parametrize("query", [5, None, ["star", 5], [None]])
def test_a_query_that_is_no_text(feature_retriever: Retriever, gallery: Gallery, query: Any) -> None:
    with pytest.raises(InputError, match=r"expected a string"):
        feature_retriever.rank(query, gallery)


def test_the_bad_query_of_a_list_is_named_by_its_place(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match="text 2"):
        feature_retriever.rank([QUERY, "star", ""], gallery)


def test_no_query(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match=r"query is \[\]: expected a string, or a list of at least one string"):
        feature_retriever.rank([], gallery)


@pytest.mark.parametrize("texts", [[], "star", ()])
def test_encode_texts_wants_a_list_of_texts(feature_retriever: Retriever, texts: Any) -> None:
    with pytest.raises(InputError, match="expected a list of at least one string"):
        feature_retriever.encode_texts(texts)


def test_one_text_in_place_of_a_list(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match="expected a list of at least one string"):
        feature_retriever.score_matrix(gallery, "star")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 7, 35])
def test_features_that_are_not_finite(feature_retriever: Retriever, value: float, index: int) -> None:
    features = np.zeros((40, 5, FEATURE_WIDTH), np.float32)
    features[index, 2, 3] = value
    with pytest.raises(InputError, match=f"image {index} has features that are NaN or infinite"):
        feature_retriever.encode_images(features)


def test_features_too_large_for_float32(feature_retriever: Retriever, features: Features) -> None:
    huge = features.astype(np.float64)
    huge[4, 0, 0] = 1e300
    with pytest.raises(InputError, match="image 4"):
        feature_retriever.encode_images(huge)


@pytest.mark.parametrize("index", [1, 31, 32, 39])
def test_another_number_of_regions(feature_retriever: Retriever, index: int) -> None:
    images = [np.zeros((6 if k == index else 5, FEATURE_WIDTH), np.float32) for k in range(40)]
    with pytest.raises(InputError, match=f"image {index} has 6 regions, those before it have 5"):
        feature_retriever.encode_images(images)


@pytest.mark.parametrize("shape", [(5, FEATURE_WIDTH + 1), (5, 0), (0, FEATURE_WIDTH)])
def test_features_of_wrong_dimensions(feature_retriever: Retriever, shape: tuple[int, int]) -> None:
    good = np.zeros((5, FEATURE_WIDTH), np.float32)
    with pytest.raises(InputError, match=rf"image 1 has features \({shape[0]}, {shape[1]}\): expected \[R, 12\]"):
        feature_retriever.encode_images([good, np.zeros(shape, np.float32)])


@pytest.mark.parametrize(
    ("image", "found"),
    [
        pytest.param(np.zeros(FEATURE_WIDTH, np.float32), r"float32.*\(12,\)", id="one axis"),
        pytest.param(np.zeros((1, 5, FEATURE_WIDTH), np.float32), r"float32.*\(1, 5, 12\)", id="three axes"),
        pytest.param(np.zeros((5, FEATURE_WIDTH), np.int64), r"int64.*\(5, 12\)", id="integers"),
    ],
)
def test_arrays_that_are_no_features_are_described(feature_retriever: Retriever, image: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"image 0 .*{found}"):
        feature_retriever.encode_images([image])


@pytest.mark.parametrize("images", [[], (), iter([]), np.zeros((0, 5, FEATURE_WIDTH), np.float32)])
def test_no_images(feature_retriever: Retriever, images: Any) -> None:
    with pytest.raises(InputError, match="no images to encode: expected at least one"):
        feature_retriever.encode_images(images)


def test_an_empty_corpus(feature_retriever: Retriever) -> None:
    with pytest.raises(InputError, match="no images to encode"):
        feature_retriever.rank(QUERY, [])


def test_a_selection_of_no_image(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError):
        feature_retriever.rank(QUERY, gallery.select([]))


def test_a_selection_of_no_text(feature_retriever: Retriever, features: Features) -> None:
    with pytest.raises(InputError):
        feature_retriever.rank(features[0], feature_retriever.encode_texts(CAPTIONS).select([]))


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_in_place_of_a_list(picture_retriever: Retriever, drawn: list[Path], kind: type) -> None:
    with pytest.raises(InputError, match="list"):
        picture_retriever.encode_images(kind(drawn[0]))


def test_pictures_for_a_model_of_features(feature_retriever: Retriever, drawn: list[Path]) -> None:
    with pytest.raises(
        InputError, match=r"000000.png is a picture, but this bundle takes region features, float \[R, 12\]"
    ):
        feature_retriever.encode_images(drawn)


@pytest.mark.parametrize("index", [1, 32, 35])
def test_features_and_pictures_mixed(picture_retriever: Retriever, drawn: list[Path], index: int) -> None:
    images: list[Any] = [np.zeros((36, FEATURE_WIDTH), np.float32) for _ in range(40)]
    images[index:] = [drawn[0]] * (40 - index)
    with pytest.raises(InputError, match="encode them separately"):
        picture_retriever.encode_images(images)


def test_a_model_of_pictures_takes_their_features_too(picture_retriever: Retriever) -> None:
    assert len(picture_retriever.encode_images(np.zeros((3, 36, FEATURE_WIDTH), np.float32))) == 3


def test_the_unreadable_picture_is_named(picture_retriever: Retriever, drawn: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"broken\.png cannot be read as a picture"):
        picture_retriever.encode_images([*drawn, tmp_path / "broken.png"])


def test_names_are_as_many_as_images(feature_retriever: Retriever, features: Features) -> None:
    with pytest.raises(InputError, match="2 names for 10 images: expected one each"):
        feature_retriever.encode_images(features, names=["a", "b"])
    with pytest.raises(InputError, match="names is 'ab': expected a list of strings or paths"):
        feature_retriever.encode_images(features, names="ab")


def test_encoding_reports_its_progress(feature_retriever: Retriever) -> None:
    heard: list[int] = []
    feature_retriever.encode_images(np.zeros((70, 5, FEATURE_WIDTH), np.float32), on_progress=heard.append)
    assert sum(heard) == 70


def test_a_gallery_from_another_bundle(picture_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match="made by another bundle: encode it again with this retriever"):
        picture_retriever.rank(QUERY, gallery)


def test_a_gallery_from_a_copy_of_the_bundle(bundle_copy: Path, gallery: Gallery, feature_retriever: Retriever) -> None:
    with Retriever(Bundle(bundle_copy), "onnxruntime") as retriever:
        assert retriever.rank(QUERY, gallery) == feature_retriever.rank(QUERY, gallery)


def test_a_gallery_of_the_wrong_kind(feature_retriever: Retriever, gallery: Gallery) -> None:
    texts = feature_retriever.encode_texts(CAPTIONS)
    with pytest.raises(InputError, match="this is a gallery of texts: expected images here"):
        feature_retriever.score_matrix(texts, texts)
    with pytest.raises(InputError, match="this is a gallery of images: expected texts here"):
        feature_retriever.score_matrix(gallery, gallery)


# Explaining


def test_an_explanation_is_made_of_distributions(feature_retriever: Retriever, features: Features) -> None:
    explanation = feature_retriever.explain("A small RED circle", features[2])
    assert explanation.words == ("<start>", "A", "small", "RED", "circle", "<end>")
    assert explanation.to_words.shape == explanation.to_regions.shape == (5, 6)
    assert (explanation.region_gates.shape, explanation.word_gates.shape) == ((5,), (6,))
    # A softmax of a few float32 numbers sums to 1 within a few ulps.
    np.testing.assert_allclose(explanation.to_words.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(explanation.to_regions.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("weights", ["to_words", "to_regions", "region_gates", "word_gates"])
def test_weights_are_between_0_and_1(feature_retriever: Retriever, features: Features, weights: str) -> None:
    array = getattr(feature_retriever.explain(QUERY, features[2]), weights)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1


def test_an_explanation_scores_as_the_ranking(feature_retriever: Retriever, features: Features) -> None:
    explanation = feature_retriever.explain(QUERY, features[2])
    assert explanation.score == float(feature_retriever.score_matrix(features[2:3], [QUERY])[0, 0])


def test_a_gallery_of_one_is_explained(feature_retriever: Retriever, features: Features, gallery: Gallery) -> None:
    of_gallery = feature_retriever.explain(QUERY, gallery.select([2]))
    of_features = feature_retriever.explain(QUERY, features[2])
    # A batch of ten images and one image sum in another order.
    np.testing.assert_allclose(of_gallery.to_words, of_features.to_words, atol=1e-6)


def test_a_gallery_of_many_is_not(feature_retriever: Retriever, gallery: Gallery) -> None:
    with pytest.raises(InputError, match=r"explain takes one image, this gallery has 10: use gallery\.select"):
        feature_retriever.explain(QUERY, gallery)


@pytest.mark.parametrize("text", ["", "zebra"])
def test_a_text_that_cannot_be_explained(feature_retriever: Retriever, features: Features, text: str) -> None:
    with pytest.raises(InputError, match="word"):
        feature_retriever.explain(text, features[0])


def test_regions_of_features_tile_no_picture(feature_retriever: Retriever, features: Features) -> None:
    explanation = feature_retriever.explain(QUERY, features[0])
    assert explanation.grid is None
    with pytest.raises(InputError, match="do not tile the picture: read to_words instead"):
        explanation.word_map(1)


def test_a_word_map_is_a_picture(picture_retriever: Retriever, drawn: list[Path]) -> None:
    explanation = picture_retriever.explain(QUERY, drawn[0])
    word_map = explanation.word_map(2)
    assert word_map.shape == explanation.grid == (6, 6)
    np.testing.assert_array_equal(word_map.ravel(), explanation.to_words[:, 2])
    assert word_map.sum() == pytest.approx(1, abs=1e-5)  # 36 float32 numbers summed


@pytest.mark.parametrize("word", [-1, 6, 100])
def test_a_word_map_of_no_word(picture_retriever: Retriever, drawn: list[Path], word: int) -> None:
    with pytest.raises(InputError, match=f"word {word}: expected 0 to 5"):
        picture_retriever.explain(QUERY, drawn[0]).word_map(word)


@pytest.mark.parametrize("query", ["star", QUERY, "star $$ circle"])
@pytest.mark.parametrize("with_picture", [True, False])
def test_plot_writes_a_picture(
    picture_retriever: Retriever, drawn: list[Path], tmp_path: Path, query: str, with_picture: bool
) -> None:
    explanation = picture_retriever.explain(query, drawn[0])
    explanation.plot(tmp_path / "plot.png", drawn[0] if with_picture else None)
    with Image.open(tmp_path / "plot.png") as plotted:
        assert plotted.format == "PNG"
        assert plotted.width > 100


def test_plot_knows_its_endings(picture_retriever: Retriever, drawn: list[Path], tmp_path: Path) -> None:
    explanation = picture_retriever.explain(QUERY, drawn[0])
    there = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"why v1\.2 ends in \.2: expected one of \..*, \.png"):
        explanation.plot(tmp_path / "why v1.2")
    assert set(tmp_path.iterdir()) == there


def test_plot_takes_what_the_retriever_takes(picture_retriever: Retriever, drawn: list[Path], tmp_path: Path) -> None:
    explanation = picture_retriever.explain(QUERY, drawn[0])
    pixels = np.asarray(Image.open(drawn[0]).convert("RGB"))
    explanation.plot(tmp_path / "array.png", pixels)
    explanation.plot(tmp_path / "path.png", drawn[0])
    assert (tmp_path / "array.png").read_bytes() == (tmp_path / "path.png").read_bytes()


def test_plot_turns_the_picture_as_the_model_saw_it(
    picture_retriever: Retriever, drawn: list[Path], tmp_path: Path
) -> None:
    upright = Image.open(drawn[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "camera.png", exif=exif)
    explanation = picture_retriever.explain(QUERY, tmp_path / "camera.png")
    explanation.plot(tmp_path / "camera_plot.png", tmp_path / "camera.png")
    explanation.plot(tmp_path / "upright_plot.png", upright)
    assert (tmp_path / "camera_plot.png").read_bytes() == (tmp_path / "upright_plot.png").read_bytes()


def test_plot_without_matplotlib_names_the_extra(
    picture_retriever: Retriever, drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    explanation = picture_retriever.explain(QUERY, drawn[0])
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*pip install '.\[plot\]'"):
        explanation.plot(tmp_path / "plot.png")


def test_a_bundle_without_an_explainer(bundle_copy: Path, features: Features) -> None:
    rewrite(bundle_copy, lambda manifest: manifest["graphs"].pop("explainer") and None)
    retriever = Retriever(bundle_copy, "onnxruntime")
    with pytest.raises(BundleError, match="has no explainer graph; it has"):
        retriever.explain(QUERY, features[0])


# Engines


def test_an_unknown_backend(feature_bundle: Path) -> None:
    with pytest.raises(BackendError, match="backend 'torch': expected auto or one of onnxruntime, onnxruntime-cuda"):
        Retriever(feature_bundle, "torch")


def encode_with(bundle: Path, backend: str, features: Features) -> Gallery:
    with Retriever(bundle, backend) as retriever:
        return retriever.encode_images(features)


def test_a_device_that_is_not_there_is_an_error(
    feature_bundle: Path, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider.*pip install '.\[gpu\]'"):
        encode_with(feature_bundle, "onnxruntime-cuda", features)


def test_auto_takes_the_cpu_where_there_is_nothing_else(feature_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert Retriever(feature_bundle).backend == "onnxruntime"


@pytest.mark.parametrize(
    ("machine", "backend"), [("x86_64", "openvino"), ("AMD64", "openvino"), ("arm64", "onnxruntime")]
)
def test_auto_takes_openvino_on_x86(
    feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, machine: str, backend: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert Retriever(feature_bundle).backend == backend


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float4"}, "precision 'float4': expected one of float32, float16, bfloat16"),
        (
            {"backend": "openvino", "precision": "float16"},
            "openvino does not score in float16: use backend onnxruntime",
        ),
    ],
)
def test_a_precision_that_is_not_there(feature_bundle: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Retriever(feature_bundle, **options)  # type: ignore[arg-type]  # strings all


def test_a_bundle_that_is_no_path() -> None:
    with pytest.raises(InputError, match="bundle is None: expected the path of a folder"):
        Retriever(None)  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize(
    ("name", "sizes", "counts"),
    [("threads", "from 1 to 1024", (0, -1, "2", 1.5, True, 1025)), ("memory_budget_bytes", "1 or more", (0, "2", 1.5))],
)
def test_a_count_that_is_none(feature_bundle: Path, name: str, sizes: str, counts: tuple[Any, ...]) -> None:
    for count in counts:
        with pytest.raises(InputError, match=f"{name} is {count!r}: expected a whole number, {sizes}, or None"):
            Retriever(feature_bundle, "onnxruntime", **{name: count})


def test_counts_of_numpy_are_taken(feature_bundle: Path, gallery: Gallery) -> None:
    counts: list[Any] = [np.int64(1), np.int32(1 << 24)]
    with (
        Retriever(feature_bundle, "onnxruntime") as plain,
        Retriever(feature_bundle, "onnxruntime", "float32", *counts) as retriever,
    ):
        assert [m.corpus_id for m in retriever.rank(QUERY, gallery)] == [
            m.corpus_id for m in plain.rank(QUERY, gallery)
        ]


def test_an_array_of_no_axes_holds_nothing(feature_retriever: Retriever) -> None:
    with pytest.raises(InputError, match="expected a list of images"):
        feature_retriever.encode_images(np.array(3.0))
    with pytest.raises(InputError, match="expected a list of at least one string"):
        feature_retriever.encode_texts(np.array("x"))


@pytest.mark.parametrize(("backend", "extra"), [("auto", "cpu"), ("onnxruntime", "cpu"), ("onnxruntime-cuda", "gpu")])
def test_a_missing_onnxruntime_names_the_extra(
    feature_bundle: Path, features: Features, monkeypatch: pytest.MonkeyPatch, backend: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=rf"onnxruntime is not installed.*pip install '.\[{extra}\]'"):
        encode_with(feature_bundle, backend, features)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_a_missing_openvino_names_the_extra(
    feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed.*pip install '.\[openvino\]'"):
        Retriever(feature_bundle, "openvino", precision)


def test_a_closed_retriever_opens_again(feature_bundle: Path, gallery: Gallery) -> None:
    retriever = Retriever(feature_bundle, "onnxruntime")
    before = retriever.rank(QUERY, gallery)
    retriever.close()
    retriever.close()
    assert retriever.rank(QUERY, gallery) == before


def test_leaving_the_context_closes_every_engine(
    feature_bundle: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = [], []
    create, close = OnnxRuntimeEngine.__init__, OnnxRuntimeEngine.close
    monkeypatch.setattr(
        OnnxRuntimeEngine, "__init__", lambda self, *a, **k: (opened.append(self), create(self, *a, **k))[1]
    )
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda self: (closed.append(self), close(self))[1])
    with Retriever(feature_bundle, "onnxruntime") as retriever:
        retriever.rank(QUERY, gallery)
        assert (len(opened), closed) == (2, [])
    assert closed == opened


def test_repr_tells_bundle_and_backend(feature_retriever: Retriever, feature_bundle: Path) -> None:
    assert repr(feature_retriever) == f"Retriever({str(feature_bundle)!r}, backend='onnxruntime')"


@pytest.mark.parametrize("pairs", [[("a.jpg",)], [("a.jpg", "b", "c")], ["ab"], [5]])
def test_what_is_no_pair_is_refused(picture_retriever: Retriever, pairs: Any) -> None:
    with pytest.raises(InputError, match=r"pair 0 is .*: expected \(image, text\)"):
        picture_retriever.score(pairs)


def test_pairs_and_names_may_come_from_generators(feature_retriever: Retriever, features: Features) -> None:
    pairs = [(image, QUERY) for image in features]
    np.testing.assert_array_equal(feature_retriever.score(iter(pairs)), feature_retriever.score(pairs))
    assert feature_retriever.encode_images(features, iter("abcdefghij")).documents == tuple("abcdefghij")
