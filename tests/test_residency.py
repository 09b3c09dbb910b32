"""Galleries in device memory: what is uploaded, when and how much, and when it is freed; scores stay the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from camp_sdk import InputError, Retriever
from camp_sdk.runtime.blocks import plan_blocks
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.residency import resident_parts
from camp_sdk.runtime.scoring import PairScorer, best_images, logit_matrix
from camp_sdk.runtime.tensorrt.engine import TensorRtEngine
from tests.helpers.fake_cuda import FakeCuda, install, write_plan
from tests.helpers.profiles import SAME, profile_between
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

pytestmark = pytest.mark.usefixtures("young_garbage")
IMAGE_BYTES = 5 * 16 * 4  # of image.V, all that the scorer reads of an image


@dataclass
class Setup:
    fake: FakeCuda
    scorer: PairScorer
    images: EncodedImages
    texts: EncodedTexts
    expected: np.ndarray


@pytest.fixture(params=["tensorrt", "onnxruntime"])
def setup(
    request: pytest.FixtureRequest,
    feature_retriever: Retriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Setup]:
    rng = np.random.default_rng(1)
    gallery = feature_retriever.encode_images(rng.standard_normal((100, 5, FEATURE_WIDTH), dtype=np.float32))
    images, texts = gallery.encoded, feature_retriever.encode_texts(CAPTIONS).encoded
    expected = feature_retriever.score_matrix(gallery, CAPTIONS, logits=True)
    fake, _ = install(monkeypatch)
    spec = feature_retriever.bundle.manifest.graphs["scorer"]
    graph = feature_retriever.bundle.file(spec.file)
    engine: Engine
    if request.param == "tensorrt":
        profile = profile_between(spec, {}, {"I": 8, "T": 4, "N": 32, "R": 8})
        plan = write_plan(tmp_path / "engine.plan", graph, profile)
        engine = SplittingEngine(TensorRtEngine(plan, "tensorrt"), spec, profile)
    else:
        engine = OnnxRuntimeEngine(graph)
        engine._device, engine._memory, engine.blocks = "cuda", ("cpu", 0), (8, 4)  # the fake's memory is the host's
    yield Setup(fake, PairScorer(engine, spec.inputs), images, texts, expected)
    engine.close()
    gc.collect()
    assert fake.held == 0


def test_a_gallery_is_uploaded_once_and_scored_from_there(setup: Setup) -> None:
    np.testing.assert_allclose(logit_matrix(setup.scorer, setup.images, setup.texts), setup.expected, **SAME)
    uploaded = setup.fake.copied["cudaMemcpyHostToDevice"]
    texts = sum(array.nbytes for array in setup.texts.tensors.values())
    assert 100 * IMAGE_BYTES <= uploaded < 100 * IMAGE_BYTES + 3 * texts
    found, _ = best_images(setup.scorer, setup.images, setup.texts, 7)
    np.testing.assert_array_equal(found, np.argsort(-setup.expected.T, axis=1, kind="stable")[:, :7])
    assert setup.fake.copied["cudaMemcpyHostToDevice"] - uploaded < 100 * IMAGE_BYTES


def test_threads_upload_a_gallery_once(setup: Setup) -> None:
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: logit_matrix(setup.scorer, setup.images, setup.texts), range(8)):
            np.testing.assert_allclose(found, setup.expected, **SAME)
    texts = sum(array.nbytes for array in setup.texts.tensors.values())
    assert setup.fake.copied["cudaMemcpyHostToDevice"] < 100 * IMAGE_BYTES + 8 * 3 * texts


def test_what_is_held_is_freed_with_the_images(setup: Setup) -> None:
    images = EncodedImages(setup.images.tensors)
    next(resident_parts(setup.scorer.engine, images, [spec.name for spec in setup.scorer.inputs]))
    assert setup.fake.used == 100 * IMAGE_BYTES
    del images
    gc.collect()
    assert setup.fake.used == 0


def test_what_is_held_is_freed_with_the_engine(setup: Setup) -> None:
    logit_matrix(setup.scorer, setup.images, setup.texts)
    setup.scorer.engine.close()
    gc.collect()
    assert setup.fake.held == 0


@pytest.mark.parametrize("top_k", [1, 7, 100])
def test_a_gallery_that_does_not_fit_is_scored_part_by_part(setup: Setup, top_k: int) -> None:
    setup.fake.room = 30 * IMAGE_BYTES * 100 // 60
    parts = [(first, len(part)) for first, part in resident_parts(setup.scorer.engine, setup.images, ["image.V"])]
    assert parts == [(0, 30), (30, 30), (60, 30), (90, 10)]
    setup.fake.room = 1 << 20
    scorer = replace(setup.scorer, memory_budget_bytes=60_000)
    assert len(list(scorer.parts(setup.images))) == 2
    found, logits = best_images(scorer, setup.images, setup.texts, top_k)
    order = np.argsort(-setup.expected.T, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(logits, np.take_along_axis(setup.expected.T, order, axis=1), **SAME)
    assert setup.fake.copied["cudaMemcpyHostToDevice"] < 10 * 100 * IMAGE_BYTES


def test_no_room_for_a_single_image(setup: Setup) -> None:
    setup.fake.room = IMAGE_BYTES
    with pytest.raises(InputError, match=f"an image takes {IMAGE_BYTES} bytes of device memory, 192 may be used"):
        next(resident_parts(setup.scorer.engine, setup.images, ["image.V"]))


def test_blocks_are_what_the_engine_prefers(setup: Setup) -> None:
    blocks = plan_blocks(setup.images, setup.texts, setup.scorer.engine)
    assert (blocks.images, blocks.texts) == (8, 4)


def test_on_the_host_nothing_moves(setup: Setup, feature_retriever: Retriever) -> None:
    engine = feature_retriever._engines["scorer"]
    assert next(resident_parts(engine, setup.images, ["image.V"])) == (0, setup.images)
    assert engine.hold(setup.images.tensors) is setup.images.tensors
    assert setup.fake.allocations == 0


def test_older_galleries_make_room(setup: Setup) -> None:
    """A budget is for all galleries together."""
    names = [spec.name for spec in setup.scorer.inputs]
    first, second = EncodedImages(setup.images.tensors), EncodedImages(setup.images.tensors)
    budget = 2 * 150 * IMAGE_BYTES  # half of it holds one of them
    for images in (first, second, first):
        next(resident_parts(setup.scorer.engine, images, names, budget))
        assert list(setup.scorer.engine.residents) == [images]
        gc.collect()
        assert setup.fake.used == 100 * IMAGE_BYTES


def test_galleries_that_fit_stay_beside_each_other(setup: Setup) -> None:
    names = [spec.name for spec in setup.scorer.inputs]
    both = EncodedImages(setup.images.tensors), EncodedImages(setup.images.tensors)
    for images in both:
        next(resident_parts(setup.scorer.engine, images, names, 2 * 200 * IMAGE_BYTES))
    assert len(setup.scorer.engine.residents) == 2
