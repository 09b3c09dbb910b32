"""The GPU benchmark (benchmarks/gpu*.py) on stand-ins for devices and timers: what it counts and reports absent."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gpu
import gpu_measure
import gpu_methods
import gpu_report
import numpy as np
import pytest
from gpu_measure import Method
from numpy.typing import NDArray
from rich.console import Console

from camp_sdk import BackendError
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.runtime import backends
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.profiles import Limits
from tests.helpers.engines import install_plans
from tests.helpers.fake_cuda import FakeCuda, install
from tests.helpers.tiny import CAPTIONS

EXACT = np.linspace(-2, 2, 24).reshape(12, 2)  # [images, texts]
EAGER, TENSORRT, REPLAYED = gpu_methods.EAGER, "tensorrt float16", "tensorrt float16, CUDA graphs"
BLOCKS = ((1, 10), (6, 10))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU that TensorRT alone can use."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    return install(monkeypatch)[0]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every engine that is asked for was built before."""
    monkeypatch.setattr(gpu_methods, "built_engine", lambda order: order)
    install_plans(monkeypatch, tmp_path, "image", "text", "scorer")


@pytest.fixture
def case(checkpoints: Callable[[str, bool], Path], features: NDArray[np.float32]) -> gpu_methods.Case:
    return gpu_methods.encode(*load_checkpoint(checkpoints("paper", False)), features, CAPTIONS)


# Measuring


def test_figures_are_medians_of_turns_after_a_warm_up() -> None:
    turns: list[str] = []

    def maker(name: str, seconds: list[float]) -> Callable[[], Method]:
        def timer(call: Callable[[], object]) -> float:
            turns.append(name)
            call()
            return seconds.pop(0)

        return lambda: Method(lambda block: EXACT[: block[1], : block[0]], timer)

    warm_up = [9.0] * gpu_measure.WARM_UPS
    makers = {"a": maker("a", [*warm_up, 1.0, 5.0, 2.0]), "b": maker("b", [*warm_up, 0.5, 0.5, 0.5])}
    rows, absent = gpu_measure.measure_case(makers, EXACT, [(2, 10)], 3)
    assert absent == {}
    assert turns == ["a", "b"] * 6
    figures = rows["a"]["blocks"]["2 x 10"]
    assert figures == {"pairs_per_s": 10.0, "median_s": 2.0, "min_s": 1.0, "max_s": 5.0, "repeats": 3}
    assert rows["b"]["blocks"]["2 x 10"]["pairs_per_s"] == 40.0
    assert (rows["a"]["max_score_error"], rows["a"]["top10_agreement"]) == (0.0, 1.0)


def test_what_fails_is_named_and_the_others_are_measured() -> None:
    def refused() -> Method:
        raise BackendError("no\n such library")

    def no_memory(block: tuple[int, int]) -> NDArray[Any]:
        if block[1] > 12:
            raise RuntimeError("CUDA out of memory")
        return EXACT + 1e-3

    makers = {
        "absent": refused,
        "small": lambda: Method(no_memory, gpu_measure.wall_s),
        "broken": lambda: Method(lambda block: EXACT * np.nan, gpu_measure.wall_s),
    }
    makers["wrong"] = lambda: Method(lambda block: EXACT + 1, gpu_measure.wall_s)
    rows, absent = gpu_measure.measure_case(makers, EXACT, [(2, 12), (2, 500)], 3)
    assert absent.pop("absent") == "no such library"
    assert absent.pop("broken") == "its scores are off by nan, at most 0.005 is allowed"
    assert "its scores are off by" in absent.pop("wrong")
    assert not absent
    assert rows["small"]["blocks"]["2 x 12"]["repeats"] == 3
    assert rows["small"]["blocks"]["2 x 500"] == {"failed": "CUDA out of memory"}
    assert 0 < rows["small"]["max_score_error"] < 1e-3
    assert rows.keys() == {"small"}
    json.dumps(rows, allow_nan=False)


def test_slow_devices_have_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_measure, "BLOCK_LIMIT_S", -1.0)
    times, _ = gpu_measure.time_block({"a": Method(lambda block: None, lambda call: 1.0)}, (1, 1), 100)
    assert len(times["a"]) == gpu_measure.MIN_ROUNDS


def test_a_slow_warm_up_takes_nothing_from_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def timer(call: Callable[[], object]) -> float:
        now[0] += 100.0 if now[0] == 0 else 1.0  # the first call compiles
        return 1.0

    monkeypatch.setattr("gpu_measure.time.monotonic", lambda: now[0])
    times, _ = gpu_measure.time_block({"a": Method(lambda block: None, timer)}, (1, 1), 7)
    assert len(times["a"]) == 7


def test_peaks_are_the_devices_rates_by_the_work_of_a_pair() -> None:
    peaks = gpu_measure.peaks_of("paper", 16, 2 * 53 * 1024**2 * 1e6, 2 * 2 * 52 * 1024 * 1e7)
    assert peaks == {"products": 1e6, "copies": 1e7}  # (36 + 16 + 1) maps of d x d; 36 + 16 vectors, read and written
    assert gpu_measure.peaks_of("scalar", 32, None, None) == {"products": None, "copies": None}


# Reporting


def test_shares_and_targets_are_of_the_same_block() -> None:
    def row(*rates: float) -> dict[str, Any]:
        blocks = {title: {"pairs_per_s": rate} for title, rate in zip(("1 x 1000", "256 x 256"), rates, strict=True)}
        return {"max_score_error": 1e-3, "top10_agreement": 1.0, "blocks": blocks}

    rows = {EAGER: row(10, 20), TENSORRT: row(15, 80), "onnxruntime-cuda float16": row(90, 40)}
    rows[TENSORRT]["blocks"]["1 x 1000"] = {"failed": "out of memory"}
    gpu_report.add_shares(rows, {"products": 160.0, "copies": None})
    assert rows[TENSORRT]["blocks"]["256 x 256"] == {
        "pairs_per_s": 80, "of_products": 0.5, "of_copies": None, "x_eager": 4.0,
    }  # fmt: skip
    targets = gpu_report.targets_of({"16": {"rows": rows}})
    assert targets == {"16": {"engine": TENSORRT, "of_products": 0.5, "x_eager": 4.0}}
    table = printed([gpu_report.speed_table("paper", {"rows": rows})])
    assert "(50%, -, 4.0 x)" in table
    assert "failed" in table
    assert gpu_report.targets_of({"16": {"rows": {EAGER: row(10, 20)}}}) == {}


def printed(tables: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO


# Scoring methods


def test_engines_and_pytorch_score_what_float64_does(
    fake: FakeCuda,
    built: None,
    case: gpu_methods.Case,
    feature_bundle: Path,
    checkpoints: Callable[[str, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_cpu(bundle: Bundle, graph: str, backend: str, precision: str, cuda_graphs: bool = False) -> Any:
        if backend != "onnxruntime-cuda":
            return backends.open_engine(bundle, graph, backend, precision=precision, cuda_graphs=cuda_graphs)
        engine = backends.open_engine(bundle, graph, "onnxruntime", precision=precision)
        engine.blocks = (3, 2)
        return engine

    monkeypatch.setattr(gpu_methods, "open_engine", open_cpu)
    model = load_checkpoint(checkpoints("paper", False))[0]
    limits, names = Limits(4, 4), (TENSORRT, REPLAYED, "onnxruntime-cuda float32", "onnxruntime-cuda float16")
    with ExitStack() as stack:
        openers = gpu_methods.openers_of(model, Bundle(feature_bundle), limits, stack)
        methods = {name: openers[name]()(case) for name in names}
        methods["pytorch"] = gpu_methods.torch_method(model.scorer.half(), case, limits, "cpu", gpu_measure.wall_s)
        for name, method in methods.items():
            found = gpu_measure.errors_of(method, case.exact)
            assert found["max_score_error"] < (1e-5 if "float32" in name else 5e-3), name
            assert method.fetch(method.score((3, 7))).shape == (7, 3), name
        before = fake.copied["cudaMemcpyHostToDevice"]
        methods[TENSORRT].score((3, 7))
        assert fake.copied["cudaMemcpyHostToDevice"] == before  # both sides are there already
        expected = methods[TENSORRT].score((3, 4))
        for _ in range(2):  # one run each
            np.testing.assert_array_equal(methods[REPLAYED].score((3, 4)), expected)
        assert fake.launches > 0
        del methods, method
    assert fake.held == 0


def test_large_gpus_are_given_more_at_once() -> None:
    assert (gpu_methods.limits_for(8 << 30).max_images, gpu_methods.limits_for(80 << 30).max_images) == (256, 1024)


# The command


@pytest.fixture
def tiny(
    bundle_copy: Path,
    checkpoints: Callable[[str, bool], Path],
    features: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """The command on a tiny network, without ONNX Runtime's CUDA; where its results go."""

    def no_provider(bundle: Bundle, graph: str, backend: str, **options: Any) -> Any:
        if backend == "onnxruntime-cuda":
            raise BackendError("this onnxruntime has no CUDA")
        return backends.open_engine(bundle, graph, backend, **options)

    monkeypatch.setattr(gpu_methods, "open_engine", no_provider)
    monkeypatch.setattr(gpu, "make_bundle", lambda *args, **options: (checkpoints("paper", False), bundle_copy))
    monkeypatch.setattr(gpu, "inputs_of", lambda images, texts: (features, {16: CAPTIONS}))
    sizes = {"BLOCKS": BLOCKS, "GALLERIES": (4, 25), "QUERIES": (1, 3), "RANK_REPEATS": 2, "VARIANTS": ("paper",)}
    for name, value in (sizes | {"RESULTS": tmp_path / "results" / "gpu.json"}).items():
        monkeypatch.setattr(gpu, name, value)
    return tmp_path / "results" / "gpu.json"


def test_the_command_measures_what_there_is(
    fake: FakeCuda, built: None, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.main(tmp_path / "bench", rounds=3)
    report = json.loads(tiny.read_text())
    rows = report["variants"]["paper"]["words"]["16"]["rows"]
    assert list(rows) == [TENSORRT, REPLAYED]
    for row in rows.values():
        assert list(row["blocks"]) == ["1 x 10", "6 x 10"]
        assert row["max_score_error"] < 5e-3
    assert report["variants"]["paper"]["rank_backend"] == "tensorrt"
    assert list(report["variants"]["paper"]["rank_ms"]) == [
        f"{queries} queries, {images} images{graphs}"
        for graphs in ("", ", CUDA graphs")
        for images in (4, 25)
        for queries in (1, 3)
    ]
    assert fake.launches > 0
    assert report["gpu"]["name"] == "Fake GPU"
    assert {"camp-sdk", "numpy", "onnxruntime"} < report["versions"].keys()
    assert report["versions"]["tensorrt"] == "10.3.0"  # of the library: no package of that name is installed
    absent = report["absent"]
    assert "finds no GPU" in absent[f"paper: {EAGER}"]
    assert "finds no GPU" in absent["the device's rates"]
    assert "pip install" in absent["paper: tensorrt-rtx float16"]
    assert absent["paper: onnxruntime-cuda float32"] == "this onnxruntime has no CUDA"
    shown = capsys.readouterr().out
    assert "paper, 16 words" in shown
    assert "absent: paper: tensorrt-rtx float16" in shown
    assert "pip install '.[tensorrt-rtx]'" in shown
    assert fake.held == 0


def test_a_gpu_that_nothing_can_use_is_reported_so(
    fake: FakeCuda, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    gpu.main(tmp_path / "bench", rounds=3)
    report = json.loads(tiny.read_text())
    found = report["variants"]["paper"]
    assert found["words"]["16"]["rows"] == {}
    assert (found["rank_backend"], found["rank_ms"], report["targets"]) == (None, {}, {})
    assert "pip install" in report["absent"]["paper: tensorrt float16"]


def test_without_a_gpu_the_command_ends_at_once(fake: FakeCuda, tiny: Path, tmp_path: Path) -> None:
    fake.driver = False
    with pytest.raises(BackendError, match="no NVIDIA GPU can be used here"):
        gpu.main(tmp_path / "bench")
    assert not (tmp_path / "bench").exists()
    assert not tiny.exists()
