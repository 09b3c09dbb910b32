"""TensorRtEngine on stand-ins for CUDA and TensorRT (tests/helpers/fake_cuda.py), and on a GPU if there is one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import BackendError
from camp_sdk.runtime import scoring
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.base import Arrays, Engine, check_contract
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.profiles import Limits, Profile
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.engine import TensorRtEngine
from camp_sdk.runtime.tensorrt.library import here_of, open_library
from tests.helpers.fake_cuda import (
    FakeContext,
    FakeCuda,
    FakeEngine,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    FakeTensorRt,
    install,
    write_plan,
)
from tests.helpers.profiles import SAME, feeds_of, profile_between

pytestmark = pytest.mark.usefixtures("young_garbage")
LARGEST = {"I": 8, "T": 8, "N": 16, "R": 16}
SIZES = {"I": 6, "T": 3, "N": 4, "R": 5}


@dataclass
class Setup:
    fake: FakeCuda
    trt: FakeTensorRt
    spec: GraphSpec
    profile: Profile
    plan: HeldFile
    graph: HeldFile

    def plain(self, feeds: Arrays) -> Arrays:
        with OnnxRuntimeEngine(self.graph) as engine:
            return engine.run(feeds)


@pytest.fixture
def setup(feature_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    fake, trt = install(monkeypatch)
    bundle = Bundle(feature_bundle)
    spec = bundle.manifest.graphs["scorer"]
    profile, graph = profile_between(spec, {}, LARGEST), bundle.file(spec.file)
    yield Setup(fake, trt, spec, profile, write_plan(tmp_path / "engine.plan", graph, profile), graph)
    gc.collect()
    assert fake.held == 0  # whatever a test did, nothing leaks


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("graph", ["scorer", "image", "text", "explainer"])
def test_every_graph_gives_what_onnx_runtime_gives(
    setup: Setup, feature_bundle: Path, tmp_path: Path, graph: str
) -> None:
    bundle = Bundle(feature_bundle)
    spec = bundle.manifest.graphs[graph]
    profile, path = profile_between(spec, {}, LARGEST), bundle.file(spec.file)
    feeds = feeds_of(spec, SIZES)
    plan = write_plan(tmp_path / "own.plan", path, profile)
    with TensorRtEngine(plan, "tensorrt") as engine, OnnxRuntimeEngine(path) as plain:
        assert_same(engine.run(feeds), plain.run(feeds))
        check_contract(engine, spec)


def test_buffers_are_set_once_and_grow_on_demand(setup: Setup) -> None:
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        small, large = feeds_of(setup.spec, SIZES | {"I": 2}), feeds_of(setup.spec, SIZES)
        assert_same(engine.run(small), setup.plain(small))
        assert_same(engine.run(large), setup.plain(large))
        allocations = setup.fake.allocations
        assert_same(engine.run(small), setup.plain(small))
        assert_same(engine.run(large), setup.plain(large))
        assert setup.fake.allocations == allocations


def test_results_stay_as_they_were_in_later_runs(setup: Setup) -> None:
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        feeds = feeds_of(setup.spec, SIZES)
        first = engine.run(feeds)["logits"]
        kept = first.copy()
        engine.run({name: array[::-1] if name == "image.V" else array for name, array in feeds.items()})
        np.testing.assert_array_equal(first, kept)


def test_held_slices_are_read_where_they_are(setup: Setup, feature_bundle: Path, tmp_path: Path) -> None:
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        feeds = feeds_of(
            setup.spec, SIZES | {"R": 16}
        )  # 16 x 16 numbers: every image begins at a multiple of 256 bytes
        held = engine.hold(feeds | {"other": np.zeros(3)})
        assert not isinstance(held.pop("other"), cuda.DeviceArray)
        setup.fake.copied.update(dict.fromkeys(setup.fake.copied, 0))
        part = slice(2, 5)
        found = engine.run({n: held[n][part] if n == "image.V" else held[n] for n in feeds})
        assert_same(found, setup.plain({n: a[part] if n == "image.V" else a for n, a in feeds.items()}))
        assert setup.fake.copied["cudaMemcpyHostToDevice"] == setup.fake.copied["cudaMemcpyDeviceToDevice"] == 0


def test_a_slice_that_is_not_aligned_is_copied_on_the_device(setup: Setup) -> None:
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        feeds = feeds_of(setup.spec, SIZES)  # 5 x 16 numbers: 320 bytes an image
        held = engine.hold(feeds)
        setup.fake.copied.update(dict.fromkeys(setup.fake.copied, 0))
        found = engine.run({n: a[1:4] if n == "image.V" else a for n, a in held.items()})
        assert_same(found, setup.plain({n: a[1:4] if n == "image.V" else a for n, a in feeds.items()}))
        assert setup.fake.copied["cudaMemcpyDeviceToDevice"] == 3 * 320
        assert setup.fake.copied["cudaMemcpyHostToDevice"] == 0


def test_hold_casts_to_what_the_graph_reads(setup: Setup) -> None:
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        feeds = feeds_of(setup.spec, SIZES)
        wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
        assert_same(engine.run(engine.hold(wide)), setup.plain(feeds))


def test_threads_never_share_a_context(setup: Setup) -> None:
    several = [feeds_of(setup.spec, SIZES | {"I": images}) for images in (1, 2, 3, 4)]
    expected = [setup.plain(feeds) for feeds in several]
    meeting = threading.Barrier(4, timeout=60)

    with TensorRtEngine(setup.plan, "tensorrt") as engine:

        def work(index: int) -> None:
            meeting.wait()
            for _ in range(10):
                assert_same(engine.run(several[index]), expected[index])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert 1 <= setup.trt.contexts <= 4


def test_more_images_and_texts_than_the_profile(setup: Setup) -> None:
    feeds = feeds_of(setup.spec, SIZES | {"I": 19, "T": 9})
    with SplittingEngine(TensorRtEngine(setup.plan, "tensorrt"), setup.spec, setup.profile) as engine:
        assert engine.blocks == (8, 8)
        held: Any = engine.hold(feeds)
        for given in (feeds, held):
            np.testing.assert_allclose(engine.run(given)["logits"], setup.plain(feeds)["logits"], **SAME)
        del held, given


def test_few_held_images_are_padded(setup: Setup, tmp_path: Path) -> None:
    profile = profile_between(setup.spec, {"I": 5, "T": 4}, LARGEST)
    plan = write_plan(tmp_path / "four.plan", setup.graph, profile)
    feeds = feeds_of(setup.spec, SIZES | {"I": 3})
    with SplittingEngine(TensorRtEngine(plan, "tensorrt"), setup.spec, profile) as engine:
        found = engine.run(engine.hold(feeds))["logits"]
        np.testing.assert_allclose(found, setup.plain(feeds)["logits"], **SAME)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (
            {"image.V": np.zeros((9, 5, 16), np.float32)},
            r"image\.V has the shape \(9, 5, 16\), which the engine was not built",
        ),
        ({"image.V": np.zeros((2, 5, 16), np.float64)}, r"image\.V is float64, expected float32"),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_nothing(setup: Setup, feeds: Arrays, message: str) -> None:
    good = feeds_of(setup.spec, SIZES)
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        with pytest.raises(BackendError, match=rf"TensorRT cannot run .*engine\.plan: {message}"):
            engine.run(good | feeds)
        assert setup.fake.held == 0  # a context is not used again after an error
        assert_same(engine.run(good), setup.plain(good))


def test_a_run_that_is_interrupted_leaves_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = feeds_of(setup.spec, SIZES)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        with monkeypatch.context() as patch:
            patch.setattr(FakeContext, "_execute", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.run(feeds)
        assert setup.fake.held == 0
        assert_same(engine.run(feeds), setup.plain(feeds))


def test_memory_that_does_not_suffice(setup: Setup) -> None:
    good = feeds_of(setup.spec, SIZES)
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        engine.run(good)
        setup.fake.room = setup.fake.used
        asked = r"cudaMalloc failed: out of memory \(\d+ bytes were asked for\): set memory_budget_bytes"
        with pytest.raises(BackendError, match=asked):
            engine.run(feeds_of(setup.spec, SIZES | {"I": 8, "R": 16}))
        setup.fake.room = setup.fake.used + good["image.V"].nbytes
        with pytest.raises(BackendError, match="cudaMalloc failed: out of memory"):
            engine.hold(good)
        setup.fake.room = 1 << 30
        assert_same(engine.run(good), setup.plain(good))


def test_contexts_that_are_still_to_come_keep_their_room(setup: Setup) -> None:
    setup.trt.context_bytes = 1 << 20
    with TensorRtEngine(setup.plan, "tensorrt") as engine:
        assert engine.room_bytes() == cuda.room_bytes(2 << 20) < cuda.room_bytes()
        engine.run(feeds_of(setup.spec, SIZES))
        assert engine.room_bytes() == cuda.room_bytes(1 << 20)


def test_a_closed_engine(setup: Setup) -> None:
    engine: Engine = TensorRtEngine(setup.plan, "tensorrt")
    feeds = feeds_of(setup.spec, SIZES)
    engine.run(feeds)
    engine.close()
    assert setup.fake.held == 0
    with pytest.raises(BackendError, match="was closed"):
        engine.run(feeds)


def test_an_engine_closed_during_a_run(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TensorRtEngine(setup.plan, "tensorrt")
    feeds, execute = feeds_of(setup.spec, SIZES), FakeContext._execute
    monkeypatch.setattr(FakeContext, "_execute", lambda *given: (engine.close(), execute(*given))[1])
    assert_same(engine.run(feeds), setup.plain(feeds))
    assert setup.fake.held == 0


def test_a_plan_that_is_none(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "broken.plan").write_bytes(b"broken")
    with pytest.raises(
        BackendError,
        match=r"cannot load .*broken\.plan: Magic tag does not match; rebuild it with camp build --force",
    ):
        TensorRtEngine(HeldFile(tmp_path / "broken.plan"), "tensorrt")


def test_without_a_driver_no_plan_is_touched(setup: Setup) -> None:
    setup.fake.driver = False
    with pytest.raises(BackendError, match="no NVIDIA GPU can be used here"):
        TensorRtEngine(setup.plan, "tensorrt")


# CUDA graphs


def several_of(spec: GraphSpec, sizes: dict[str, int], count: int = 4) -> list[Arrays]:
    """Feeds of the same shapes, of other numbers."""
    feeds = feeds_of(spec, sizes)
    return [feeds | {"image.V": np.float32(1 + turn / 2) * feeds["image.V"]} for turn in range(count)]


def meet_in_two_contexts(setup: Setup, engine: TensorRtEngine, feeds: list[Arrays]) -> None:
    """Two runs at the same time."""
    meeting = threading.Barrier(2, timeout=60)
    create = FakeEngine.create_execution_context

    def create_together(*given: Any) -> Any:
        meeting.wait()
        return create(*given)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(FakeEngine, "create_execution_context", create_together)
        for found, given in zip(pool.map(engine.run, feeds), feeds, strict=True):
            assert_same(found, setup.plain(given))


@pytest.mark.parametrize("held", [False, True])
def test_the_second_run_of_the_same_shapes_is_recorded_and_later_ones_replay_it(setup: Setup, held: bool) -> None:
    with TensorRtEngine(setup.plan, "tensorrt", cuda_graphs=True) as engine:
        for launches, feeds in enumerate(several_of(setup.spec, SIZES)):
            given = engine.hold(feeds) if held else feeds
            assert_same(engine.run(given), setup.plain(feeds))
            assert setup.fake.launches == launches
            del given


def test_other_shapes_are_recorded_anew(setup: Setup) -> None:
    with TensorRtEngine(setup.plan, "tensorrt", cuda_graphs=True) as engine:
        for images in (6, 3, 8):  # fewer, then enough to grow the buffers
            for feeds in several_of(setup.spec, SIZES | {"I": images}, 3):
                assert_same(engine.run(feeds), setup.plain(feeds))
        assert setup.fake.launches == 3 * 2


def test_shapes_go_to_the_context_that_ran_them_last(setup: Setup) -> None:
    sizes = [SIZES | {"I": images} for images in (2, 5)]
    with TensorRtEngine(setup.plan, "tensorrt", cuda_graphs=True) as engine:
        meet_in_two_contexts(setup, engine, [feeds_of(setup.spec, each) for each in sizes])
        for turn in range(1, 4):
            for each in sizes:
                feeds = several_of(setup.spec, each)[turn]
                assert_same(engine.run(feeds), setup.plain(feeds))
        assert (setup.trt.contexts, setup.fake.launches) == (2, 2 * 3)
        for images in (3, 4):  # no context ran these: neither stays as it was
            engine.run(feeds_of(setup.spec, SIZES | {"I": images}))
        assert engine.run(feeds_of(setup.spec, sizes[0]))["logits"].shape[0] == 2
        assert (setup.trt.contexts, setup.fake.launches) == (2, 2 * 3)


def test_what_cannot_be_recorded_runs_all_the_same(setup: Setup) -> None:
    setup.trt.can_record = False
    with TensorRtEngine(setup.plan, "tensorrt", cuda_graphs=True) as engine:
        held: Any = engine.hold(feeds_of(setup.spec, SIZES | {"R": 16}))
        for feeds in several_of(setup.spec, SIZES):
            assert_same(engine.run(feeds), setup.plain(feeds))
        assert_same(engine.run(held), setup.plain(feeds_of(setup.spec, SIZES | {"R": 16})))
        assert setup.fake.launches == 0
        del held
        with pytest.raises(BackendError) as later:  # what was logged of the recording is not its reason
            engine.run(feeds_of(setup.spec, SIZES | {"I": 9}))
        assert "capturing" not in str(later.value)


def test_threads_with_cuda_graphs(setup: Setup) -> None:
    several = [feeds_of(setup.spec, SIZES | {"I": images}) for images in (2, 2, 5, 5)]
    expected = [setup.plain(feeds) for feeds in several]
    with TensorRtEngine(setup.plan, "tensorrt", cuda_graphs=True) as engine, ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(engine.run, several * 10)):
            assert_same(found, expected[index % 4])


# TensorRT-RTX


@pytest.fixture
def rtx(setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRt:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    setup.fake, setup.trt = install(monkeypatch, "tensorrt_rtx")
    return setup.trt


def test_kernels_are_compiled_once_and_kept_for_later_processes(setup: Setup, rtx: FakeTensorRt) -> None:
    feeds = feeds_of(setup.spec, SIZES)
    first = TensorRtEngine(setup.plan, "tensorrt-rtx")
    assert_same(first.run(feeds), setup.plain(feeds))
    assert rtx.compiled == [b"logits"]
    with TensorRtEngine(setup.plan, "tensorrt-rtx") as second:  # as after a process that ended without closing anything
        assert_same(second.run(feeds), setup.plain(feeds))
    assert rtx.compiled == [b"logits"]
    first.close()


def test_a_gpu_that_tensorrt_rtx_is_not_made_for(setup: Setup, rtx: FakeTensorRt) -> None:
    rtx.faults = 3
    found = r"VERSION_MISMATCH, UNSUPPORTED_CC: .*; TensorRT-RTX does not run on compute capability 8.7: use another"
    with pytest.raises(BackendError, match=found + " backend"):
        TensorRtEngine(setup.plan, "tensorrt-rtx")
    rtx.faults = 1
    with pytest.raises(BackendError, match=r"VERSION_MISMATCH: .*; rebuild it with camp build"):
        TensorRtEngine(setup.plan, "tensorrt-rtx")


def test_every_plan_has_kernels_of_its_own(setup: Setup, rtx: FakeTensorRt, tmp_path: Path) -> None:
    feeds = feeds_of(setup.spec, SIZES)
    other = write_plan(tmp_path / "other.plan", setup.graph, profile_between(setup.spec, {}, {**LARGEST, "I": 9}))
    for plan in (setup.plan, other):
        with TensorRtEngine(plan, "tensorrt-rtx") as engine:
            engine.run(feeds)
    assert len(list((tmp_path / "cache" / "camp-sdk" / "kernels").iterdir())) == len(rtx.compiled) == 2


def test_kernels_that_do_not_fit_are_replaced(setup: Setup, rtx: FakeTensorRt, tmp_path: Path) -> None:
    feeds = feeds_of(setup.spec, SIZES)
    for _ in range(2):
        with TensorRtEngine(setup.plan, "tensorrt-rtx") as engine:
            assert_same(engine.run(feeds), setup.plain(feeds))
        (kept,) = (tmp_path / "cache" / "camp-sdk" / "kernels").iterdir()
        assert kept.read_bytes() == b"this GPU:logits"
        kept.write_bytes(b"another GPU:logits")
    assert rtx.compiled == [b"logits"] * 2


def test_a_cache_that_cannot_be_written_is_no_error(setup: Setup, rtx: FakeTensorRt, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    with TensorRtEngine(setup.plan, "tensorrt-rtx") as engine:
        feeds = feeds_of(setup.spec, SIZES)
        assert_same(engine.run(feeds), setup.plain(feeds))


@pytest.mark.parametrize(("asked", "name"), [(False, "DISABLED"), (True, "WHOLE_GRAPH_CAPTURE")])
def test_cuda_graphs_of_tensorrt_rtx_are_its_own(setup: Setup, rtx: FakeTensorRt, asked: bool, name: str) -> None:
    with TensorRtEngine(setup.plan, "tensorrt-rtx", cuda_graphs=asked) as engine:
        for feeds in several_of(setup.spec, SIZES):
            assert_same(engine.run(feeds), setup.plain(feeds))
    assert [strategy.name for strategy in rtx.strategies] == [name]
    assert setup.fake.launches == 0


# The real ones


def test_the_stand_ins_have_no_name_that_the_real_ones_lack() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    made = {FakeEngine: "ICudaEngine", FakeContext: "IExecutionContext"}
    made |= {FakeRuntimeConfig: "IRuntimeConfig", FakeRuntimeCache: "IRuntimeCache"}
    for kind, name in made.items():
        faces = {face for face in vars(kind) if not face.startswith("_")}
        assert {face for face in faces if not hasattr(getattr(real, name), face)} == set()
    for enum in ("TensorIOMode", "CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics"):
        assert {member.name for member in getattr(FakeTensorRt, enum)} <= set(getattr(real, enum).__members__)


def missing(backend: str) -> str:
    try:
        open_library(backend)
        cuda.gpu()
    except BackendError as error:
        return str(error)
    return ""


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("graph", ["scorer", "image", "text", "explainer"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_built_engine_on_a_gpu(
    bundle_copy: Path, backend: str, precision: str, graph: str, cuda_graphs: bool
) -> None:
    if reason := missing(backend):
        pytest.skip(reason)
    bundle, limits = Bundle(bundle_copy), Limits(max_images=8, max_texts=8, max_words=16, max_regions=16)
    spec = bundle.manifest.graphs_in(precision)[graph]
    build_engine(EngineOrder(bundle, graph, precision, here_of(backend), limits))
    sizes = [SIZES | {"I": images, "T": texts} for images, texts in ((2, 3), (19, 9), (8, 8), (1, 1))]
    feeds = [scoring.feeds_of(spec.inputs, feeds_of(spec, given)) for given in sizes]
    # Sums in another order, or halves (ten bits) with sums in another order.
    close = {"rtol": 0, "atol": 1e-4 if precision == "float32" else 2e-2}
    with (
        open_engine(bundle, graph, backend, precision=precision, cuda_graphs=cuda_graphs) as engine,
        open_engine(bundle, graph, "onnxruntime", precision=precision) as plain,
        ThreadPoolExecutor(4) as pool,
    ):
        expected = [plain.run(given) for given in feeds]
        held = [engine.hold(given) for given in feeds]
        for found in (list(pool.map(engine.run, feeds * 3)), list(pool.map(engine.run, held * 3))):
            for index, outputs in enumerate(found):
                for name, array in expected[index % len(feeds)].items():
                    np.testing.assert_allclose(outputs[name].astype(float), array.astype(float), **close)
        parts: Any = {name: array[:1] for name, array in held[0].items()}
        for name, array in plain.run({name: array[:1] for name, array in feeds[0].items()}).items():
            np.testing.assert_allclose(engine.run(parts)[name].astype(float), array.astype(float), **close)
