"""The same scores by every path: engines, precisions, narrow galleries, blocks, memory budgets, shortlists."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BackendError, Bundle, BundleError, Gallery, InputError, Retriever
from camp_sdk.evaluation import shortlist_metrics
from camp_sdk.gallery import texts_of
from camp_sdk.runtime import blocks as blocks_module
from camp_sdk.runtime import scoring
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.blocks import Blocks, plan_blocks
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.encoded import EncodedImages, narrow, narrow_specs, widen
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.nearest import nearest
from camp_sdk.runtime.scoring import PairScorer, best_images
from camp_sdk.runtime.threads import physical_cores
from tests.helpers.hardware import needs_bfloat16
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

QUERY = "a small red circle"
# Float32 sums of 16 terms in another order: engines, batches and blocks differ by about 1e-6.
SAME = {"rtol": 0, "atol": 1e-5}
# What the issue of speed allows of a lower precision.
REDUCED = 5e-3


@pytest.fixture(scope="module")
def openvino(feature_bundle: Path) -> Iterator[Retriever]:
    with Retriever(feature_bundle, "openvino") as retriever:
        yield retriever


@pytest.fixture(scope="module")
def many() -> NDArray[np.float32]:
    """Features of 100 images with five regions."""
    return np.random.default_rng(1).standard_normal((100, 5, FEATURE_WIDTH), dtype=np.float32)


# OpenVINO


@pytest.mark.parametrize("bundle", ["feature_bundle", "picture_bundle"])
def test_every_graph_gives_the_same_by_both_engines(bundle: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(bundle)
    rng = np.random.default_rng(2)
    with Retriever(folder, "onnxruntime") as one, Retriever(folder, "openvino") as other:
        regions = 36 if one.bundle.manifest.pixels else 5
        images = rng.standard_normal((7, regions, FEATURE_WIDTH), dtype=np.float32)
        np.testing.assert_allclose(
            other.score_matrix(images, CAPTIONS, logits=True), one.score_matrix(images, CAPTIONS, logits=True), **SAME
        )
        explained = [retriever.explain(QUERY, images[0]) for retriever in (one, other)]
        np.testing.assert_allclose(explained[1].to_words, explained[0].to_words, **SAME)
        if one.bundle.manifest.pixels:
            pictures = [rng.integers(0, 256, (50, 40, 3), dtype=np.uint8) for _ in range(3)]
            found, expected = (r.score_matrix(pictures, CAPTIONS, logits=True) for r in (other, one))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # sums of up to 864 terms in convolutions


def test_openvino_scores_from_many_threads_as_from_one(openvino: Retriever, many: NDArray[np.float32]) -> None:
    gallery = openvino.encode_images(many)
    expected = [openvino.score_matrix(gallery, [caption]) for caption in CAPTIONS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda caption: openvino.score_matrix(gallery, [caption]), CAPTIONS * 5))
    for index, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[index % len(CAPTIONS)])


def test_a_run_of_openvino_that_fails_names_the_graph(openvino: Retriever) -> None:
    with pytest.raises(BackendError, match=r"OpenVINO cannot run .*image\.onnx"):
        openvino._engines["image"].run({"features": np.zeros((2, 2), np.float32)})


def test_openvino_refuses_what_is_no_graph(bundle_copy: Path) -> None:
    from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine

    (bundle_copy / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be opened: it is"):
        OpenVinoEngine(HeldFile(bundle_copy / "broken.onnx"))


@needs_bfloat16
def test_bfloat16_scores_nearly_the_same(feature_bundle: Path, many: NDArray[np.float32]) -> None:
    with Retriever(feature_bundle, precision="bfloat16") as retriever:
        assert (retriever.backend, retriever.precision) == ("openvino", "bfloat16")
        found = retriever.score_matrix(many, CAPTIONS)
    with Retriever(feature_bundle, "openvino") as exact:
        assert 0 < np.abs(found - exact.score_matrix(many, CAPTIONS)).max() < 5e-3  # what the gate allows


@needs_bfloat16
def test_bfloat16_is_refused_by_other_processors(feature_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.Core.get_property", lambda *names: ["FP32"])
    with pytest.raises(BackendError, match="does not compute in bfloat16: use precision float32"):
        Retriever(feature_bundle, precision="bfloat16")


@pytest.mark.parametrize("kind", [OpenVinoEngine, OnnxRuntimeEngine])
def test_an_engine_that_was_closed_says_so(
    feature_bundle: Path, features: NDArray[np.float32], kind: type[OpenVinoEngine] | type[OnnxRuntimeEngine]
) -> None:
    engine = kind(HeldFile(feature_bundle / "image.onnx"))
    engine.close()
    with pytest.raises(BackendError, match=r"image.onnx: it was closed"):
        engine.run({"features": features})


# Blocks


class SideBySide(Engine):
    """An engine of streams that answers only once as many runs have come."""

    def __init__(self, streams: int = 2) -> None:
        self.streams = self.callers = streams
        self.all = threading.Barrier(streams, timeout=30)

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        self.all.wait()
        return {"logits": feeds["x"] * 2}

    def close(self) -> None: ...

    def interface(self) -> tuple[Interface, Interface]:
        raise NotImplementedError


ALONE = SideBySide(1)


def images_of(count: int, width: int = 1024) -> EncodedImages:
    return EncodedImages({"image.V": np.broadcast_to(np.float32(0), (count, 36, width))})


def test_blocks_stay_within_bytes_and_counts(feature_retriever: Retriever) -> None:
    texts = texts_of(feature_retriever.encode_texts(CAPTIONS * 50))
    blocks = plan_blocks(images_of(1000), texts, ALONE)
    assert blocks.texts == blocks_module.BLOCK_TEXTS
    pair_bytes = images_of(1).item_bytes + texts.item_bytes
    assert blocks.images * blocks.texts * pair_bytes <= Engine.block_bytes
    assert plan_blocks(images_of(1000), texts, ALONE, 1 << 40) == blocks


@pytest.mark.parametrize(
    ("budget", "streams", "at_once"),
    [
        (5_000_000, 1, 1),
        (5_000_000, 2, 1),
        (10_000_000, 2, 2),
        (20_000_000, 1, 1),
        (20_000_000, 2, 3),
        (100_000_000, 2, 3),
    ],
)
def test_blocks_stay_within_a_budget(feature_retriever: Retriever, budget: int, streams: int, at_once: int) -> None:
    texts = texts_of(feature_retriever.encode_texts(CAPTIONS * 50))
    blocks = plan_blocks(images_of(1000), texts, SideBySide(streams), budget)
    pair_bytes = images_of(1).item_bytes + texts.item_bytes
    assert blocks.at_once == at_once
    assert at_once * blocks.images * blocks.texts * pair_bytes * blocks_module.WORKING_COPIES <= budget / 2
    assert blocks.group * texts.item_bytes * len(texts.tensors) <= budget / 4


def test_few_images_or_texts_are_shared_among_streams(feature_retriever: Retriever) -> None:
    texts = texts_of(feature_retriever.encode_texts(CAPTIONS * 50))
    assert [plan_blocks(images_of(count), texts, SideBySide()).images for count in (1, 2, 9)] == [1, 1, 5]
    few = texts.select(range(7))
    assert [plan_blocks(images_of(count), few, SideBySide()).texts for count in (1, 2)] == [4, 7]


def test_an_engine_of_one_stream_and_two_callers_has_two_full_blocks_on_their_way(
    feature_retriever: Retriever,
) -> None:
    texts = texts_of(feature_retriever.encode_texts(CAPTIONS * 50))
    engine = SideBySide(2)
    engine.streams, engine.blocks = 1, (128, 8)
    assert plan_blocks(images_of(1000), texts, engine) == Blocks(128, 8, blocks_module.GROUP_TEXTS, 2)


def test_blocks_are_scored_side_by_side_and_come_in_order() -> None:
    scorer = PairScorer(SideBySide(), (TensorSpec("x", "float32", ("I",)),))
    meetings = [(key, {"x": np.full(1, key, np.float32)}, {}) for key in range(4)]
    assert [(key, float(logits[0])) for key, logits in scorer.run_each(meetings, 3)] == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_a_block_that_fails_leaves_no_thread() -> None:
    scorer = PairScorer(SideBySide(), (TensorSpec("x", "float32", ("I",)),))
    good: dict[str, Any] = {"x": np.zeros(1, np.float32)}
    before = threading.active_count()
    with pytest.raises(KeyError):
        list(scorer.run_each([(0, good, {}), (1, {}, {}), (2, good, {})], 3))
    assert threading.active_count() == before


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_only_the_scorer_runs_in_streams_and_not_of_a_single_core(feature_bundle: Path, backend: str) -> None:
    pytest.importorskip(backend)
    bundle = Bundle(feature_bundle)
    graphs = (("scorer", 2), ("scorer", 1), ("text", 2))
    assert [open_engine(bundle, graph, backend, threads).streams for graph, threads in graphs] == [2, 1, 1]


@pytest.mark.parametrize(("threads", "pool"), [(None, 3), (4, 3), (2, 1)])
def test_streams_share_the_threads_they_are_given(
    feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, pool: int
) -> None:
    """Two callers and ONNX Runtime's own threads, one fewer than its setting, make the number asked for."""
    ort = pytest.importorskip("onnxruntime")
    opened = []

    def session(path: str, settings: Any, **options: Any) -> Any:
        opened.append(settings.intra_op_num_threads)
        return made(path, settings, **options)

    made = ort.InferenceSession
    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    monkeypatch.setattr("camp_sdk.runtime.engines.onnxruntime_engine.physical_cores", lambda: 4)
    OnnxRuntimeEngine(HeldFile(feature_bundle / "scorer.onnx"), threads=threads, streams=2).close()
    assert opened == [pool]


def test_hardware_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n", encoding="ascii")
    monkeypatch.setattr("camp_sdk.runtime.threads.CPUS", tmp_path)
    for there, cores in (({0, 1, 2, 3}, 2), ({0, 1}, 1), ({0, 2}, 2), ({8, 9}, 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, there=there: there, raising=False)
        assert physical_cores() == cores


def test_a_budget_below_a_pair_is_refused_with_what_it_needs(feature_bundle: Path, many: NDArray[np.float32]) -> None:
    retriever = Retriever(feature_bundle, "onnxruntime", memory_budget_bytes=1000)
    with pytest.raises(InputError, match=r"`memory_budget_bytes` is 1000: a single pair needs \d+"):
        retriever.rank(QUERY, many)


@pytest.mark.parametrize("budget", [None, 100_000, 1_000_000])
@pytest.mark.parametrize("top_k", [1, 7, 100, 1000])
def test_a_ranking_is_the_order_of_the_matrix(
    feature_bundle: Path, many: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, budget: int | None, top_k: int
) -> None:
    monkeypatch.setattr(scoring, "MERGE_IMAGES", 16)
    monkeypatch.setattr(Engine, "block_bytes", 20_000)
    with Retriever(feature_bundle, "onnxruntime", memory_budget_bytes=budget) as retriever:
        gallery = retriever.encode_images(many)
        matrix = retriever.score_matrix(gallery, CAPTIONS, logits=True)
        for column, matches in zip(matrix.T, retriever.rank(CAPTIONS, gallery, top_k), strict=True):
            assert [match.corpus_id for match in matches] == np.argsort(-column, kind="stable")[:top_k].tolist()
            assert [match.logit for match in matches] == pytest.approx(np.sort(column)[::-1][:top_k].tolist(), abs=1e-5)


def test_equal_logits_keep_the_gallerys_order_through_every_merge(
    feature_retriever: Retriever, many: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MERGE_IMAGES", 16)
    monkeypatch.setattr(Engine, "block_bytes", 20_000)
    run = scoring.PairScorer.run
    monkeypatch.setattr(scoring.PairScorer, "run", lambda *arguments: np.round(run(*arguments)))
    images = feature_retriever.model.images_of(feature_retriever.encode_images(many))
    texts = texts_of(feature_retriever.encode_texts(CAPTIONS))
    scorer = feature_retriever.model.scorer()
    found, _ = best_images(scorer, images, texts, 50)
    matrix = scoring.logit_matrix(scorer, images, texts)
    assert len(np.unique(matrix)) < 20
    np.testing.assert_array_equal(found, np.argsort(-matrix.T, axis=1, kind="stable")[:, :50])


# Galleries in fewer bits


def test_narrowing_is_rounding_and_widening_undoes_it() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "image.V": rng.standard_normal((4, 5, 16), dtype=np.float32),
        "image.flat": rng.standard_normal((4, 16), dtype=np.float32),
        "image.global": np.ones((4, 16), np.float32),
    }
    tensors["image.V"][2, :, 3] = 0
    specs = [TensorSpec("image.V", "float32", ("I", "R", 16))]
    specs += [TensorSpec(name, "float32", ("I", 16)) for name in ("image.flat", "image.global")]
    half, eighth = narrow(tensors, specs, "float16"), narrow(tensors, specs, "int8")
    np.testing.assert_array_equal(half["image.V.float16"], tensors["image.V"].astype(np.float16))
    assert eighth["image.V.scale"].shape == (4, 1, 16)
    assert eighth["image.flat.scale"].shape == (4, 1)
    assert np.abs(eighth["image.V.int8"].astype(int)).max(axis=1).ravel().tolist() == [127] * 35 + [0] + [127] * 28
    wide = widen(eighth)
    for name in ("image.V", "image.flat"):
        assert eighth[f"{name}.int8"].dtype == np.int8
        error = np.abs(wide[name] - tensors[name])
        assert (error <= eighth[f"{name}.scale"] * 0.5001).all()  # half a step, and float32's rounding
    for found in (half, eighth, wide, widen(half)):
        assert found["image.global"] is tensors["image.global"]
    assert wide.keys() == widen(half).keys() == tensors.keys()


def test_widening_a_float16_is_exact() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    wide = widen({"x.float16": finite})["x"]
    np.testing.assert_array_equal(wide.view(np.uint32), finite.astype(np.float32).view(np.uint32))  # zeros' signs, too


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_contract_of_narrowed_tensors(precision: str) -> None:
    sizes = {"I": 4, "R": 5}
    specs = [
        TensorSpec("image.V", "float32", ("I", "R", 16)),
        TensorSpec("image.G", "float32", ("I", "R", "R")),
        TensorSpec("image.flat", "float32", ("I", 16)),
        TensorSpec("image.single", "float32", ("I", 1, 16)),
        TensorSpec("image.weights", "float32", ("I", "R")),
        TensorSpec("image.number", "float32", ("I",)),
        TensorSpec("image.mask", "bool", ("I", "R")),
        TensorSpec("image.global", "float32", ("I", 16)),
    ]
    tensors = {s.name: np.ones([sizes.get(str(n), n) for n in s.shape], s.dtype) for s in specs}  # type: ignore[misc]  # str
    found = narrow(tensors, specs, precision)
    contract = {s.name: (s.dtype, tuple(sizes.get(str(n), n) for n in s.shape)) for s in narrow_specs(specs, precision)}
    assert contract == {name: (array.dtype.name, array.shape) for name, array in found.items()}


def test_what_float16_cannot_hold_is_refused() -> None:
    spec = TensorSpec("image.V", "float32", ("I", "R", 2))
    with pytest.raises(InputError, match="more than float16 can: use float32 or int8"):
        narrow({"image.V": np.full((1, 1, 2), 1e5, np.float32)}, [spec], "float16")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "bytes_of"), [("float16", 0.5), ("int8", 0.25)])
def test_a_narrower_gallery_scores_nearly_the_same(
    feature_bundle: Path, many: NDArray[np.float32], tmp_path: Path, backend: str, precision: str, bytes_of: float
) -> None:
    with Retriever(feature_bundle, backend) as retriever:
        whole, narrower = retriever.encode_images(many), retriever.encode_images(many, precision=precision)
        tensors = narrower.encoded.tensors
        kept = sum(array.nbytes for name, array in tensors.items() if name.endswith(precision))
        assert kept == whole.encoded.tensors["image.V"].nbytes * bytes_of
        exact, found = (retriever.score_matrix(gallery, CAPTIONS) for gallery in (whole, narrower))
        # int8 rounds a column to half a step of 127, 0.4% of its largest value, and the weights spread that.
        assert 0 < np.abs(found - exact).max() < {"float16": REDUCED, "int8": 0.1}[precision]
        narrower.save(tmp_path / "gallery")
        opened = retriever.open_gallery(tmp_path / "gallery")
        assert opened.precision == precision
        np.testing.assert_array_equal(retriever.score_matrix(opened, CAPTIONS), found)
        part = opened.select([3, 1])
        np.testing.assert_allclose(retriever.score_matrix(part, CAPTIONS), found[[3, 1]], **SAME)
        assert retriever.explain(QUERY, part.select([0])).score == pytest.approx(
            float(retriever.score_matrix(part, [QUERY])[0, 0]), abs=1e-5
        )


def test_an_unknown_gallery_precision(feature_retriever: Retriever, many: NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="gallery precision 'int4': expected one of float32, float16, int8"):
        feature_retriever.encode_images(many, precision="int4")


# Shortlists


def test_nearest_are_the_largest_products_in_the_items_order() -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.standard_normal((150, 8), dtype=np.float32), rng.standard_normal((40, 8), dtype=np.float32)
    expected = np.sort(np.argsort(-(queries @ items.T), axis=1)[:, :7], axis=1)
    for budget in (None, 1, 16 * len(items) * 9):
        np.testing.assert_array_equal(nearest(queries, items, 7, budget), expected)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_shortlist_ranks_the_nearest_alone(
    feature_retriever: Retriever, many: NDArray[np.float32], precision: str
) -> None:
    gallery = feature_retriever.encode_images(many, precision=precision)
    texts = feature_retriever.encode_texts(CAPTIONS)
    products = gallery.encoded.tensors["image.global"] @ texts.encoded.tensors["text.global"].T
    matrix = feature_retriever.score_matrix(gallery, texts, logits=True)
    rankings = feature_retriever.rank(CAPTIONS, gallery, 4, shortlist=9)
    for text, matches in enumerate(rankings):
        near = np.argsort(-products[:, text])[:9]
        expected = near[np.argsort(-matrix[near, text])][:4]
        assert [match.corpus_id for match in matches] == expected.tolist()
        assert [match.logit for match in matches] == pytest.approx(matrix[expected, text].tolist(), abs=1e-5)


def test_an_image_ranks_a_shortlist_of_texts(feature_retriever: Retriever, many: NDArray[np.float32]) -> None:
    image, texts = feature_retriever.encode_images(many[:1]), feature_retriever.encode_texts(CAPTIONS)
    products = (image.encoded.tensors["image.global"] @ texts.encoded.tensors["text.global"].T)[0]
    logits = feature_retriever.score_matrix(image, texts, logits=True)[0]
    near = np.argsort(-products)[:3]
    expected = near[np.argsort(-logits[near])][:2].tolist()
    assert [m.corpus_id for m in feature_retriever.rank(many[0], texts, 2, shortlist=3)] == expected


def test_a_shortlist_of_everything_is_the_exhaustive_ranking(
    feature_retriever: Retriever, many: NDArray[np.float32]
) -> None:
    gallery = feature_retriever.encode_images(many)
    every = feature_retriever.rank(QUERY, gallery, 5)
    assert feature_retriever.rank(QUERY, gallery, 5, shortlist=100) == every
    assert feature_retriever.rank(QUERY, gallery, 5, shortlist=0) == every


@pytest.mark.parametrize("shortlist", [4, -1, 2.5, "9", True, False])
def test_a_shortlist_that_is_none_is_refused(
    feature_retriever: Retriever, many: NDArray[np.float32], shortlist: Any
) -> None:
    with pytest.raises(InputError, match="expected a whole number, at least `top_k` = 5, or 0 to score"):
        feature_retriever.rank(QUERY, many, 5, shortlist=shortlist)


def test_without_global_vectors_there_is_no_shortlist(
    released_bundle: Callable[[str], Path], many: NDArray[np.float32]
) -> None:
    with (
        Retriever(released_bundle("gate_fusion"), "onnxruntime") as retriever,
        pytest.raises(InputError, match="`shortlist`: this bundle has no global vectors to make one with, leave it"),
    ):
        retriever.rank(QUERY, many, 5, shortlist=9)


def test_what_a_shortlist_leaves_out_is_a_miss_however_few_there_are() -> None:
    logits = np.eye(8, dtype=np.float32)
    found = shortlist_metrics(logits, -logits, np.arange(8), 1)
    for side in (found.text_to_image, found.image_to_text):
        assert (side.r1, side.r5, side.r10) == (0, 0, 0)
        assert side.median_rank == 11
    assert shortlist_metrics(logits, logits, np.arange(8), 1).rsum == 600


@pytest.mark.parametrize("large", [np.inf, -np.inf, np.nan])
def test_a_score_is_a_number_or_an_error(
    feature_retriever: Retriever, many: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, large: float
) -> None:
    run = PairScorer.run
    monkeypatch.setattr(PairScorer, "run", lambda *arguments: run(*arguments) + np.float32(large))
    with pytest.raises(InputError, match="a logit is NaN or infinite: the features are too large for this precision"):
        feature_retriever.rank(QUERY, many)
    with pytest.raises(InputError, match="a logit is NaN or infinite"):
        feature_retriever.score([(many[0], QUERY)])
    for logits in (False, True):
        with pytest.raises(InputError, match="a logit is NaN or infinite"):
            feature_retriever.score_matrix(many, [QUERY], logits=logits)


# Memory

RANK = """
import re, sys
import numpy as np
from camp_sdk import Retriever
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
budget = int(sys.argv[3]) or None
retriever = Retriever(sys.argv[1], "onnxruntime", threads=1, memory_budget_bytes=budget)
retriever.rank("a red circle", np.zeros((1, 5, 12), np.float32))
gallery = retriever.open_gallery(sys.argv[2])
before = peak()
assert len(retriever.rank(["a red circle"] * 3, gallery, 5)[0]) == 5
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_a_gallery_larger_than_the_budget_is_ranked_inside_it(
    feature_bundle: Path, feature_retriever: Retriever, tmp_path: Path
) -> None:
    one = feature_retriever.encode_images(np.ones((1, 20_000, FEATURE_WIDTH), np.float32))
    tensors = {name: np.broadcast_to(array, (80, *array.shape[1:])) for name, array in one.encoded.tensors.items()}
    gallery = Gallery(EncodedImages(tensors), [None] * 80, feature_retriever.bundle)  # 1.3 MB an image
    gallery.save(tmp_path / "gallery")

    def growth(budget: int) -> int:
        command = [sys.executable, "-c", RANK, str(feature_bundle), str(tmp_path / "gallery"), str(budget)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    budget = 64 << 20
    assert gallery.nbytes > 1.5 * budget
    assert growth(budget) < budget
    assert growth(0) > gallery.nbytes  # otherwise the line above could not fail


@pytest.mark.parametrize("top_k", [1, 3, 10, 49, 50, 80])
def test_the_best_are_those_of_a_stable_sort(top_k: int) -> None:
    logits = np.random.default_rng(0).integers(0, 8, 50).astype(np.float32)  # ties everywhere
    numbers = np.arange(100, 150)
    order = np.argsort(-logits, kind="stable")[:top_k]
    found = scoring.best(numbers, logits, top_k)
    np.testing.assert_array_equal(found[0], numbers[order])
    np.testing.assert_array_equal(found[1], logits[order])


def test_a_logit_without_a_place_is_seen_wherever_it_is() -> None:
    """One that is NaN would be left out of the best without a word."""
    logits = np.array([3, 2, np.nan, 1], np.float32)
    for top_k in (1, 4):
        with pytest.raises(InputError, match="a logit is NaN or infinite"):
            scoring.best(np.arange(4), logits, top_k)
