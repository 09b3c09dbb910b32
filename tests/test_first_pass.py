"""Rankings in two passes: equal to those in one, however far the first pass is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BackendError, BundleError, InputError, Retriever, ranking
from camp_sdk.first_pass import best_in_two_passes
from camp_sdk.runtime import processor
from camp_sdk.runtime.backends import fast_first_pass, open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.manifest import write_manifest
from camp_sdk.runtime.scoring import best
from tests.helpers.engines import install_plans
from tests.helpers.fake_cuda import install
from tests.helpers.hardware import needs_bfloat16
from tests.helpers.tiny import CAPTIONS

Matrix = NDArray[np.float32]
INT8 = ("--precision", "int8")
Lookup = Callable[[NDArray[np.intp]], Matrix]


def looked_up(logits: Matrix, asked: list[NDArray[np.intp]]) -> Lookup:
    """A second pass that looks logits up, and notes the pairs."""

    def exact(pairs: NDArray[np.intp]) -> Matrix:
        asked.append(pairs)
        found: Matrix = logits[pairs[:, 0], pairs[:, 1]]
        return found

    return exact


def a_case(seed: int, error: float, items: int = 400, queries: int = 6) -> tuple[Matrix, Matrix]:
    """Logits, and coarse ones that are off by at most an error."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((queries, items)).astype(np.float32)
    off = rng.uniform(-error, error, logits.shape).astype(np.float32)
    return logits, logits + off


def expected(logits: Matrix, top_k: int) -> list[list[int]]:
    return [best(np.arange(len(row)), row, top_k)[0].tolist() for row in logits]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top_k", [1, 10, 400, 1000])
def test_an_error_within_the_recorded_one_costs_nothing(seed: int, top_k: int) -> None:
    logits, coarse = a_case(seed, 0.05)
    asked: list[NDArray[np.intp]] = []
    found = best_in_two_passes(coarse, top_k, looked_up(logits, asked), error=0.05)
    assert [numbers.tolist() for numbers, _ in found] == expected(logits, top_k)
    for (numbers, own), row in zip(found, logits, strict=True):
        np.testing.assert_array_equal(own, row[numbers])
    pairs = np.concatenate(asked)
    assert len(np.unique(pairs, axis=0)) == len(pairs)  # none is scored twice
    if top_k <= 10:
        assert len(pairs) < logits.size / 4


@pytest.mark.parametrize("seed", range(8))
def test_larger_errors_than_recorded_are_seen_and_allowed_for(seed: int) -> None:
    """With a recorded error of zero, the errors that the second pass meets widen it."""
    logits, coarse = a_case(seed, 1.0)
    found = best_in_two_passes(coarse, 10, looked_up(logits, []), error=0.0)
    for (numbers, _), wanted in zip(found, expected(logits, 10), strict=True):
        assert len(set(numbers.tolist()) & set(wanted)) >= 9
    useless = np.random.default_rng(seed).standard_normal(logits.shape).astype(np.float32) * 100
    found = best_in_two_passes(useless, 10, looked_up(logits, []), error=0.0)
    assert [numbers.tolist() for numbers, _ in found] == expected(logits, 10)


def test_a_useless_first_pass_takes_few_rounds() -> None:
    """Each query rescores at least as many items again as it has, once its error is seen to be larger."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((3, 3000)).astype(np.float32)
    asked: list[NDArray[np.intp]] = []
    found = best_in_two_passes(rng.permuted(logits, axis=1), 10, looked_up(logits, asked), error=0.0)
    assert [numbers.tolist() for numbers, _ in found] == expected(logits, 10)
    assert len(asked) < 12


def test_a_count_scores_that_many_again() -> None:
    logits, coarse = a_case(0, 0.5)
    asked: list[NDArray[np.intp]] = []
    found = best_in_two_passes(coarse, 3, looked_up(logits, asked), error=0.0, count=7)
    assert np.bincount(np.concatenate(asked)[:, 0]).tolist() == [7] * len(logits)
    ties = best_in_two_passes(np.zeros_like(coarse), 3, looked_up(logits, asked := []), error=0.0, count=7)
    assert np.concatenate(asked)[:, 1].tolist() == list(range(7)) * len(logits)
    assert len(ties[0][0]) == 3
    for (numbers, own), row, rough in zip(found, logits, coarse, strict=True):
        among = np.sort(np.argsort(-rough)[:7])
        np.testing.assert_array_equal(numbers, among[np.argsort(-row[among])[:3]])
        np.testing.assert_array_equal(own, row[numbers])


def test_equal_logits_keep_the_order_of_the_items() -> None:
    logits = np.array([[1, 3, 3, 3, 0, 3]], np.float32)
    found = best_in_two_passes(logits + np.float32([[0, 0, 0.1, 0, 0, 0.2]]), 3, looked_up(logits, []), error=0.2)
    assert found[0][0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("broken", ["coarse", "exact"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(broken: str, value: float) -> None:
    logits, coarse = a_case(0, 0.1)
    (coarse if broken == "coarse" else logits)[2] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        best_in_two_passes(coarse, 5, looked_up(logits, []), error=0.1)


# `Retriever.rank`


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def retriever(request: pytest.FixtureRequest, feature_bundle: Path) -> Iterator[Retriever]:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    with Retriever(feature_bundle, request.param) as opened:
        yield opened


def assert_same(found: Any, expected: Any) -> None:
    """Compare matches, or several rankings. Logits of about one, from blocks of other shapes, are other sums."""
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, list):
            assert_same(one, other)
        else:
            assert one.corpus_id == other.corpus_id
            np.testing.assert_allclose(one.logit, other.logit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"shortlist": 60}, {"offset": 4}])
def test_two_passes_rank_as_one_does(
    retriever: Retriever,
    many: NDArray[np.float32],
    how: dict[str, Any],
    two_passes: list[Matrix],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "QUERIES_AT_ONCE", 4)  # of six queries, sorted by length
    gallery = retriever.encode_images(many)
    scored: list[int] = []
    one = retriever.rank(CAPTIONS, gallery, 5, **how)
    two = retriever.rank(CAPTIONS, gallery, 5, on_progress=scored.append, precision="int8", **how)
    assert_same(two, one)
    assert [len(coarse) for coarse in two_passes] == [4, 2]
    assert [found.shortlist for found in two] == [found.shortlist for found in one]
    assert sum(scored) == len(CAPTIONS) * how.get("shortlist", len(many))


def test_scores_are_those_of_float32(retriever: Retriever, many: NDArray[np.float32]) -> None:
    matches = retriever.rank(CAPTIONS[0], many, 10, precision="int8", rescore=20)
    expected = retriever.score_matrix(many, CAPTIONS[:1], logits=True)[:, 0]
    # Sums in the blocks of a few images are made in another order: single precision of logits of about one.
    np.testing.assert_allclose([m.logit for m in matches], expected[[m.corpus_id for m in matches]], rtol=0, atol=1e-5)


def test_texts_are_ranked_in_two_passes_too(
    retriever: Retriever, many: NDArray[np.float32], two_passes: list[Matrix]
) -> None:
    texts = retriever.encode_texts([f"{first} {second}" for first in CAPTIONS for second in CAPTIONS])
    one, two = (retriever.rank(many[3], texts, 5, precision=precision) for precision in (None, "int8"))
    assert_same(two, one)
    assert [coarse.shape for coarse in two_passes] == [(1, 36)]


def test_an_index_is_ranked_in_two_passes(
    retriever: Retriever, many: NDArray[np.float32], two_passes: list[Matrix], tmp_path: Path
) -> None:
    with retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add(many, [f"image {number}" for number in range(len(many))])
        one, two = [retriever.rank(CAPTIONS, index, 5, precision=precision) for precision in (None, "int8")]
    assert_same(two, one)
    assert [len(coarse) for coarse in two_passes] == [6]


def test_a_small_memory_budget_scores_fewer_queries_at_once(
    feature_bundle: Path, many: NDArray[np.float32], two_passes: list[Matrix]
) -> None:
    with Retriever(feature_bundle, "onnxruntime", memory_budget_bytes=50_000) as small:
        gallery = small.encode_images(many)
        one, two = (small.rank(CAPTIONS, gallery, 5, precision=precision) for precision in (None, "int8"))
    assert_same(two, one)
    assert [len(coarse) for coarse in two_passes] == [2, 2, 2]


def test_a_second_pass_can_be_stopped(feature_retriever: Retriever, many: NDArray[np.float32]) -> None:
    texts = feature_retriever.encode_texts(CAPTIONS)
    for query, corpus in ((CAPTIONS[0], feature_retriever.encode_images(many)), (many[0], texts)):

        def stop(pairs: int) -> None:
            if not pairs:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            feature_retriever.rank(query, corpus, 5, on_progress=stop, precision="int8")


def test_auto_takes_what_the_processor_multiplies(
    retriever: Retriever, many: NDArray[np.float32], two_passes: list[Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = retriever.rank(CAPTIONS[0], many, 5)
    for able, lower in ((False, None), (True, "int8")):
        monkeypatch.setattr("camp_sdk.runtime.backends.is_fast", lambda precision, able=able: able)
        assert fast_first_pass(retriever.bundle, retriever.backend) == lower
        assert_same(retriever.rank(CAPTIONS[0], many, 5, precision="auto"), one)
        assert len(two_passes) == able


@pytest.mark.parametrize(
    ("text", "fast"), [("flags : sse avx512_vnni", True), ("Features : fp i8mm", True), ("flags : sse", False)]
)
def test_the_processor_says_what_it_multiplies(
    text: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    assert processor.multiplies_int8.__wrapped__() == fast
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "missing")
    assert not processor.multiplies_int8.__wrapped__()


@needs_bfloat16
def test_bfloat16_makes_a_first_pass(feature_bundle: Path, many: NDArray[np.float32], two_passes: list[Matrix]) -> None:
    with Retriever(feature_bundle, "openvino") as opened:
        gallery = opened.encode_images(many)
        one, two = (opened.rank(CAPTIONS, gallery, 5, precision=precision) for precision in (None, "bfloat16"))
    assert_same(two, one)
    assert len(two_passes) == 1


def test_float8_makes_a_first_pass(float8_bundle: Path, many: NDArray[np.float32], two_passes: list[Matrix]) -> None:
    """With ONNX Runtime, which computes it in float32."""
    with Retriever(float8_bundle, "onnxruntime") as opened:
        gallery = opened.encode_images(many)
        one, two = (opened.rank(CAPTIONS, gallery, 5, precision=precision) for precision in (None, "float8"))
        assert fast_first_pass(opened.bundle, opened.backend) is None  # "auto" does not take it
    assert_same(two, one)
    assert len(two_passes) == 1


def test_engines_make_a_first_pass(
    feature_bundle: Path,
    many: NDArray[np.float32],
    two_passes: list[Matrix],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, _ = install(monkeypatch)
    install_plans(monkeypatch, tmp_path, "scorer")
    with Retriever(feature_bundle, "tensorrt") as opened:
        gallery = opened.encode_images(many)
        one, two = (opened.rank(CAPTIONS, gallery, 5, precision=precision) for precision in (None, "int8"))
        assert fast_first_pass(opened.bundle, opened.backend) is None  # nothing has been measured on GPUs
    assert_same(two, one)
    assert len(two_passes) == 1
    with Retriever(feature_bundle, "onnxruntime") as opened:
        opened.rank(CAPTIONS, opened.encode_images(many), 5, precision="int8")
    np.testing.assert_allclose(two_passes[0], two_passes[1], rtol=0, atol=0.1)  # bytes at a step's edge may differ
    assert fake.held == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precision": "int4"}, "`precision` 'int4': expected one of auto, int8, float8, bfloat16"),
        ({"precision": "float32"}, "`precision` 'float32': expected"),
        ({"rescore": 10}, "`rescore` is for rankings in two passes"),
        ({"precision": "int8", "rescore": 4}, "`rescore` is 4: expected 'auto', or at least the 5 items wanted"),
        ({"precision": "int8", "rescore": True}, "`rescore` is True"),
        ({"precision": "int8", "rescore": "all"}, "`rescore` is 'all'"),
        ({"precision": "auto", "rescore": 2}, "`rescore` is 2"),
        ({"precision": "int8", "rescore": 7, "offset": 3}, "at least the 8 items wanted"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    feature_retriever: Retriever, how: dict[str, Any], message: str, features: NDArray[np.float32]
) -> None:
    with pytest.raises(InputError, match=message):
        feature_retriever.rank(CAPTIONS[0], features, 5, **how)


def test_likeness_has_no_passes(feature_retriever: Retriever, features: NDArray[np.float32], tmp_path: Path) -> None:
    with feature_retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add(features[:2], ["a", "b"])
        with pytest.raises(InputError, match="does not score pairs: leave out `precision` and `rescore`"):
            feature_retriever.rank(features[0], index, by="image", precision="int8")


def test_a_bundle_that_does_not_know_its_error_needs_a_count(bundle_copy: Path, features: NDArray[np.float32]) -> None:
    manifest = Bundle(bundle_copy).manifest
    unknown = {name: replace(own, logit_error=None) for name, own in manifest.precisions.items()}
    write_manifest(bundle_copy, replace(manifest, precisions=unknown))
    with Retriever(bundle_copy, "onnxruntime") as opened:
        with pytest.raises(BundleError, match="does not record the error of its int8 logits: give `rescore` a number"):
            opened.rank(CAPTIONS[0], features, 2, precision="int8")
        assert len(opened.rank(CAPTIONS[0], features, 2, precision="int8", rescore=2)) == 2
        assert fast_first_pass(opened.bundle, opened.backend) is None
        assert len(opened.rank(CAPTIONS[0], features, 2, precision="auto")) == 2


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_few_bits_have_no_scores_of_their_own(feature_bundle: Path, float8_bundle: Path, precision: str) -> None:
    made = feature_bundle if precision == "int8" else float8_bundle
    with pytest.raises(
        BackendError, match=rf"{precision} is too coarse for scores of its own.*first pass of a ranking"
    ):
        Retriever(made, "onnxruntime", precision)


def test_a_bundle_without_int8_says_how_to_get_it(picture_bundle: Path) -> None:
    with (
        Retriever(picture_bundle, "onnxruntime") as opened,
        pytest.raises(BundleError, match="no int8 graphs; export it with: camp export --precision int8"),
    ):
        opened.rank(CAPTIONS[0], [np.zeros((96, 96, 3), np.uint8)], 1, precision="int8")


def test_blocks_are_smaller_in_int8(feature_bundle: Path) -> None:
    engines = [open_engine(Bundle(feature_bundle), "scorer", "onnxruntime", precision=p) for p in ("float32", "int8")]
    wide, narrow = (engine.block_bytes for engine in engines)
    for engine in engines:
        engine.close()
    assert narrow == wide // 2
