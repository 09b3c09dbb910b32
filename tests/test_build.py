"""Building engines. TensorRT-RTX builds every graph of every variant here, since it needs no GPU."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from camp_sdk import BackendError, Bundle, BundleError
from camp_sdk.export.bundling.writer import check_output
from camp_sdk.export.network.networks import NETWORKS
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.files import cache_folder, sha256_of
from camp_sdk.runtime.tensorrt import build as build_module
from camp_sdk.runtime.tensorrt import library as tensorrt_library
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine, built_engine, trtexec_command
from camp_sdk.runtime.tensorrt.build_progress import BuildProgress
from camp_sdk.runtime.tensorrt.library import here_of, open_library
from camp_sdk.runtime.tensorrt.plans import Here, find_plan, read_records, was_built_here
from tests.helpers.command import Camp
from tests.helpers.processes import run_blocked

rtx = pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")
GRAPHS = [(variant, graph) for variant in NETWORKS for graph in ("image", "text", "scorer", "explainer")]


@functools.cache
def here() -> Here:
    return replace(here_of("tensorrt-rtx"), compute_capability=None)


def order_of(
    folder: Path, graph: str = "image", precision: str = "float32", limits: Limits | None = None
) -> EngineOrder:
    return EngineOrder(Bundle(folder), graph, precision, here(), limits or Limits())


# Every graph


@rtx
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("variant", "graph"), [*GRAPHS, ("scalar", "vision")])
def test_every_graph_builds(
    tmp_path: Path, variant: str, graph: str, precision: str, half_bundle: Callable[[str], Path]
) -> None:
    bundle = Bundle(half_bundle(variant))
    order = EngineOrder(bundle, graph, precision, here())
    (tmp_path / order.spec.file).parent.mkdir(exist_ok=True)
    (tmp_path / order.spec.file).write_bytes(bundle.file(order.spec.file).read())
    bundle.folder = tmp_path  # engines are written here
    record = build_engine(order)
    assert (record.graph, record.precision) == (graph, order.own_precision)
    assert find_plan(bundle, graph, precision, replace(here(), compute_capability="8.9"))[1] == record
    assert (record.low_share >= 0.5) == (order.own_precision == "float16")


@rtx
def test_a_record_says_what_was_built(bundle_copy: Path) -> None:
    shares: list[float] = []
    record = build_engine(order_of(bundle_copy, "scorer", limits=Limits(max_images=32)), shares.append)
    plan = bundle_copy / "engines" / record.key / "engine.plan"
    assert (record.library, record.compute_capability) == ("tensorrt_rtx", None)
    assert record.library_version == open_library("tensorrt-rtx").trt.__version__
    assert record.graph_sha256 == sha256_of(bundle_copy / "scorer.onnx")
    assert (record.plan_sha256, record.plan_bytes) == (sha256_of(plan), plan.stat().st_size)
    assert record.profile["image.V"] == ((1, 1, 16), (32, 36, 16), (32, 100, 16))
    assert record.low_share == 0
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


@rtx
def test_an_old_gpu_gets_an_engine_of_its_own(bundle_copy: Path) -> None:
    """In half precision: for GPUs before Ampere the library multiplies no float32 matrices."""
    turing, folder = replace(here(), compute_capability="7.5"), bundle_copy
    record = build_engine(replace(order_of(folder, precision="float16"), here=turing))
    assert record.compute_capability == "7.5"
    assert find_plan(Bundle(folder), "image", "float16", turing)[1] == record
    with pytest.raises(BackendError, match=r"compute capability 7.5, this machine has 8.9"):
        find_plan(Bundle(folder), "image", "float16", replace(here(), compute_capability="8.9"))
    with pytest.raises(BackendError, match=r"cannot be built: .*FP32 GEMM is not supported"):
        build_engine(replace(order_of(folder), here=turing))


@rtx
def test_the_workspace_is_bounded(bundle_copy: Path) -> None:
    order = order_of(bundle_copy, limits=Limits(workspace_bytes=1 << 20))
    library = open_library("tensorrt-rtx")
    config = build_module._configured(library, order, library.trt.Builder(library.logger))
    assert config.get_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE) == 1 << 20
    assert not config.get_flag(library.trt.BuilderFlag.TF32)


# Half precision that is none


def with_half_that_is_none(folder: Path) -> Path:
    """A bundle with a float16 image graph whose matrix product is in float32."""
    width = Bundle(folder).manifest.graphs["image"].outputs[0].shape[-1]
    weights = onnx.helper.make_tensor("W", onnx.TensorProto.FLOAT, (12, width), [0.5] * (12 * width))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[I,R,12] features) => (float16[I,R,{width}] V) '
        "{y = MatMul(features, W) V = Cast<to=10>(y)}"
    )
    model.graph.initializer.append(weights)
    return with_graph(folder, "fp16/image.onnx", model)


def with_graph(folder: Path, file: str, model: Any) -> Path:
    """Put a file in place of an image graph: in the contract of float32, or as a float16 one beside it."""
    (folder / file).parent.mkdir(exist_ok=True)
    onnx.save(model, folder / file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = {"bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)}
    if file.startswith("fp16/"):
        manifest["precisions"] = {"float16": {"graphs": {"image": manifest["graphs"]["image"] | {"file": file}}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@rtx
def test_the_share_in_half_precision_is_read_from_the_network(bundle_copy: Path) -> None:
    assert build_engine(order_of(bundle_copy, precision="float16")).low_share == 1


@rtx
def test_a_half_engine_that_is_mostly_float32_is_refused(bundle_copy: Path) -> None:
    with pytest.raises(BackendError, match="float16 image graph is mostly float32: 0% of it is in half precision"):
        build_engine(order_of(with_half_that_is_none(bundle_copy), precision="float16"))
    assert not (bundle_copy / "engines").exists()


# Few bits


@rtx
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_first_passes_build(
    feature_bundle: Path, float8_bundle: Path, camp: Camp, tmp_path: Path, precision: str
) -> None:
    made = feature_bundle if precision == "int8" else float8_bundle
    folder = Path(shutil.copytree(made, tmp_path / "bundle"))
    options = ("--backend", "tensorrt-rtx", "--precision", precision)
    (engine,) = json.loads(camp("build", folder, *options, "--json").out)["engines"]
    own = "int8" if precision == "int8" else "float8"
    assert (engine["graph"], engine["precision"]) == ("scorer", own)  # encoders are those of the retriever's precision
    assert 0.3 < engine["low_share"] < 1  # both maps, not the final MLP
    ada = replace(here(), compute_capability="8.9")
    assert find_plan(Bundle(folder), "scorer", own, ada)[1].key == Path(engine["folder"]).name
    with pytest.raises(BackendError, match="no tensorrt-rtx engine of the float32 scorer graph"):
        find_plan(Bundle(folder), "scorer", "float32", ada)
    if own == "float8":
        with pytest.raises(BackendError, match=r"float8 needs a GPU of compute capability 8.9 or later.* has 8.6"):
            find_plan(Bundle(folder), "scorer", own, replace(here(), compute_capability="8.6"))
    again = camp("build", folder, *options).out
    assert re.search(rf"scorer: {own}, \d\d% of its products in it, .* MB, already built", again)
    assert f"{own} engines need that precision in use: camp rank ... --precision {own}" in again


@rtx
def test_an_engine_without_products_of_bytes_is_refused(bundle_copy: Path) -> None:
    shutil.copyfile(bundle_copy / "scorer.onnx", bundle_copy / "int8/scorer.onnx")
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"]["int8/scorer.onnx"] = manifest["files"]["scorer.onnx"]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BackendError, match="int8 scorer graph is mostly float32: 0% of it is in int8"):
        build_engine(order_of(bundle_copy, "scorer", "int8"))


# What cannot be built


def image_graph(body: str) -> Any:
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[I,R,12] features) => (float[I,R,12] V) {{{body}}}'
    return onnx.parser.parse_model(text)


@rtx
def test_what_the_parser_refuses_is_told(bundle_copy: Path) -> None:
    folder = with_graph(bundle_copy, "image.onnx", image_graph("V = Bernoulli(features)"))
    with pytest.raises(BackendError, match="the float32 image graph cannot be parsed: Bernoulli node") as caught:
        build_engine(order_of(folder))
    assert "\n" not in str(caught.value)
    assert not (bundle_copy / "engines").exists()


@rtx
def test_what_the_builder_refuses_is_told_with_its_reason(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "c = Constant<value = float[5,1,1] {1,2,3,4,5}>() V = Add(features, c)"  # five images and no other number
    folder = with_graph(bundle_copy, "image.onnx", image_graph(body))
    with pytest.raises(BackendError, match=r"the float32 image graph cannot be built: .*[Ee]rror") as caught:
        build_engine(order_of(folder))
    assert "\n" not in str(caught.value)
    assert "it gives no reason" not in str(caught.value)
    assert not (bundle_copy / "engines").exists()


@rtx
def test_weights_in_other_files_are_not_read(bundle_copy: Path) -> None:
    weights = onnx.helper.make_tensor("W", 1, (12, 12), b"\0" * 576, raw=True)
    model = image_graph("V = MatMul(features, W)")
    model.graph.initializer.append(weights)
    (bundle_copy / "secret.bin").write_bytes(b"\0" * 576)
    folder = with_graph(bundle_copy, "image.onnx", model)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = 1
    model.graph.initializer[0].external_data.add(key="location", value="secret.bin")
    (folder / "image.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    size, digest = (folder / "image.onnx").stat().st_size, sha256_of(folder / "image.onnx")
    manifest["files"]["image.onnx"] = {"bytes": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="it holds a tensor whose data lie outside of the file"):
        build_engine(order_of(folder))


@rtx
def test_a_graph_with_other_inputs_than_the_manifest_is_refused(bundle_copy: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[I,R,12] x) => (float[I,R,12] V) {V = Relu(x)}'
    folder = with_graph(bundle_copy, "image.onnx", onnx.parser.parse_model(text))
    with pytest.raises(BundleError, match=r"has the inputs \['x'\], manifest.json says \['features'\]"):
        build_engine(order_of(folder))


@rtx
def test_engines_that_lead_out_of_the_bundle_are_not_written(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle_copy / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        build_engine(order_of(bundle_copy))
    assert list((tmp_path / "elsewhere").iterdir()) == []


# Interrupted


@rtx
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_progress_raises_stops_the_build_and_leaves_nothing(bundle_copy: Path, error: type[BaseException]) -> None:
    heard: list[float] = []

    def stop(share: float) -> None:
        heard.append(share)
        raise error

    with pytest.raises(error):
        build_engine(order_of(bundle_copy, "scorer"), stop)
    assert heard[0] < 1
    assert not (bundle_copy / "engines").exists()


@rtx
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Windows are others")
def test_ctrl_c_stops_the_build_and_leaves_nothing(bundle_copy: Path) -> None:
    heard: list[float] = []

    def press(share: float) -> None:
        heard.append(share)
        if len(heard) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        build_engine(order_of(bundle_copy, "text"), press)
    assert not (bundle_copy / "engines").exists()


@rtx
def test_an_interrupted_write_leaves_the_older_engine(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of(bundle_copy)
    record = build_engine(order)

    def interrupted(self: Path, text: str, encoding: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(order)
    assert built_engine(order) == record
    assert [path.name for path in (bundle_copy / "engines").iterdir()] == [record.key]


# The share that is done


def test_phases_come_from_several_threads() -> None:
    switching = sys.getswitchinterval()
    shares: list[float] = []
    progress = BuildProgress(shares.append)

    def build(thread: int) -> bool:
        going_on = True
        for turn in range(300):
            name = f"{thread}.{turn}"
            progress.phase_start(name, None, 2)
            progress.phase_start(f"{name}.inner", name, 2)
            going_on &= progress.step_complete(f"{name}.inner", 0)
            progress.phase_finish(f"{name}.inner")
            progress.phase_finish(name)
        return going_on

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(build, range(4))) == [True] * 4
    finally:
        sys.setswitchinterval(switching)
    assert shares == sorted(shares)
    assert len(shares) == 4 * 300


def test_nested_phases_are_one_share() -> None:
    heard: list[float] = []
    progress = BuildProgress(heard.append)
    progress.phase_start("build", None, 4)
    assert progress.step_complete("build", 0)
    progress.phase_start("tactics", "build", 2)
    progress.step_complete("tactics", 0)
    progress.step_complete("tactics", 1)
    progress.phase_finish("tactics")
    progress.step_complete("build", 1)
    progress.step_complete("unknown", 9)
    progress.step_complete("build", 3)
    progress.phase_finish("build")
    progress.phase_start("again", None, 10)
    progress.step_complete("again", 0)
    assert heard == [0.25, 0.375, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_a_cancelled_build_goes_no_step_further() -> None:
    progress = BuildProgress(lambda share: None)
    progress.phase_start("build", None, 4)
    progress.cancelled = True
    assert not progress.step_complete("build", 0)


# TensorRT itself, which needs a GPU


class FakeConfig:
    """A builder's configuration as far as the timing cache goes; refuses content of another device."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"broken" else SimpleNamespace(content=content, serialize=lambda: b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content == b"other device":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


@pytest.mark.parametrize("kept", [b"broken", b"other device", None])
def test_timings_that_do_not_serve_are_not_used(tmp_path: Path, kept: bytes | None) -> None:
    config, path = FakeConfig(), tmp_path / "caches/t.timing"
    if kept is not None:
        path.parent.mkdir()
        path.write_bytes(kept)
    build_module._load_timing_cache(config, path)
    assert config.cache.content == b""
    build_module._keep_timing_cache(config, path)
    build_module._load_timing_cache(config, path)
    assert config.cache.content == b"timings"


def test_timings_are_kept_by_version_and_gpu_and_only_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    orin = Here("tensorrt", "10.3.0", "8.7")
    assert build_module._timing_cache(orin) == Path("/caches/camp-sdk/tensorrt-10.3.0-8.7.timing")
    assert build_module._timing_cache(Here("tensorrt_rtx", "1.7", "8.9")) is None


def test_timings_that_cannot_be_kept_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("a file")
    config = FakeConfig()
    config.cache = config.create_timing_cache(b"")
    build_module._keep_timing_cache(config, tmp_path / "caches/t.timing")


def stand_in(trt: Any) -> Callable[[str], tensorrt_library.Library]:
    return lambda backend: tensorrt_library.Library(trt, None, ["CUDA driver version is insufficient"])


def test_tensorrt_without_a_gpu_is_told(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "open_library", stand_in(SimpleNamespace()))
    order = replace(order_of(bundle_copy), here=Here("tensorrt", "11.4.0", None))
    with pytest.raises(BackendError, match="TensorRT builds engines on the GPU they are for, and no GPU"):
        build_engine(order)


def test_a_builder_that_cannot_be_made_is_told(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library = stand_in(SimpleNamespace(Builder=refuse))("tensorrt")

    def builder(logger: Any) -> None:
        library.errors.append("CUDA driver version is insufficient")
        refuse(logger)

    library.trt.Builder = builder
    monkeypatch.setattr(build_module, "open_library", lambda backend: library)
    order = replace(order_of(bundle_copy), here=Here("tensorrt", "11.4.0", "8.9"))
    with pytest.raises(BackendError, match="tensorrt cannot make a builder: CUDA driver version is insufficient"):
        build_engine(order)


def test_a_tensorrt_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1.post1"))
    with pytest.raises(BackendError, match=r"TensorRT 8.6.1.post1 is installed, expected 10.3 or later"):
        open_library("tensorrt")


def test_a_library_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", fail)
    with pytest.raises(BackendError, match=r"is installed, but cannot be loaded: libnvinfer.so.10"):
        open_library("tensorrt")


def test_the_errors_of_a_library_are_one_line_and_told_once() -> None:
    library = tensorrt_library.Library(None, None, ["one", "two", "one"])
    assert library.reason() == "one; two"
    assert library.reason() == "it gives no reason"


# The command


@rtx
def test_camp_build_writes_engines_and_skips_them_the_second_time(camp: Camp, bundle_copy: Path) -> None:
    first = camp("build", bundle_copy, "--backend", "tensorrt-rtx")
    assert first.code == 0
    records, broken = read_records(bundle_copy)
    assert ({record.graph for _, record in records}, broken) == ({"image", "text", "scorer", "explainer"}, [])
    before = {path: path.stat().st_mtime_ns for path in (bundle_copy / "engines").rglob("*.plan")}
    second = camp("build", bundle_copy, "--backend", "tensorrt-rtx")
    assert second.out.count("already built (--force builds it again)") == 4
    assert {path: path.stat().st_mtime_ns for path in (bundle_copy / "engines").rglob("*.plan")} == before
    third = camp("build", bundle_copy, "--backend", "tensorrt-rtx", "--graph", "image", "--force")
    assert "image: float16, " in third.out
    assert "built in" in third.out
    assert "building image" in third.err


@rtx
def test_the_engine_asked_for_last_is_the_one_that_is_opened(camp: Camp, bundle_copy: Path) -> None:
    for words in (20, 10, 20):  # the third is there already
        camp("build", bundle_copy, "--backend", "tensorrt-rtx", "--graph", "text", "--max-words", words)
        gpu = replace(here(), compute_capability="8.9")
        _, record = find_plan(Bundle(bundle_copy), "text", "float16", gpu)
        assert record.profile["tokens"][2] == (64, words)
        assert was_built_here(record)
    (cache_folder() / "plans" / record.plan_sha256).unlink()
    assert not was_built_here(record)


@rtx
def test_camp_build_json(camp: Camp, bundle_copy: Path) -> None:
    options = ["--graph", "image", "--max-images", 8, "--max-regions", 7, "--json"]
    (engine,) = json.loads(camp("build", bundle_copy, "--backend", "tensorrt-rtx", *options).out)["engines"]
    assert engine["profile"] == {"features": {"min": [1, 1, 12], "opt": [8, 7, 12], "max": [8, 7, 12]}}
    assert (engine["graph"], engine["precision"], engine["built"]) == ("image", "float16", True)
    plan = Path(engine["folder"]) / "engine.plan"
    assert hashlib.sha256(plan.read_bytes()).hexdigest() == engine["plan_sha256"]


@rtx
def test_camp_build_takes_float32_where_it_is_told_to(camp: Camp, bundle_copy: Path) -> None:
    out = camp("build", bundle_copy, "--backend", "tensorrt-rtx", "--graph", "image", "--precision", "float32").out
    assert "image: float32, " in out


@rtx
def test_an_altered_engine_is_built_again(camp: Camp, bundle_copy: Path) -> None:
    command = ["build", bundle_copy, "--backend", "tensorrt-rtx", "--graph", "image"]
    camp(*command)
    (plan,) = bundle_copy.glob("engines/*/engine.plan")
    plan.write_bytes(b"altered")
    assert "built in" in camp(*command).out
    assert plan.stat().st_size > 1000


@rtx
def test_an_interrupted_camp_build_leaves_nothing(
    camp: Camp, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: BuildProgress, name: str, step: int) -> bool:
        progress.failure = KeyboardInterrupt()
        return False

    monkeypatch.setattr(BuildProgress, "step_complete", stop)
    assert camp("build", bundle_copy, "--backend", "tensorrt-rtx").code == 130
    assert not (bundle_copy / "engines").exists()


@rtx
def test_a_new_export_replaces_the_engines_of_the_old(bundle_copy: Path) -> None:
    build_engine(order_of(bundle_copy))
    check_output(bundle_copy)
    (bundle_copy / "engines" / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match="or holds other files too"):
        check_output(bundle_copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "abacus"], "backend 'abacus': expected one of tensorrt, tensorrt-rtx"),
        (["--backend", "tensorrt"], "tensorrt is not installed; install it with: pip install '.[tensorrt]'"),
        (["--backend", "tensorrt-rtx", "--graph", "vision"], "has no vision graph; it has"),
        (["--backend", "tensorrt-rtx", "--precision", "bfloat16"], "engines are built in float16 or float32"),
    ],
)
def test_what_cannot_be_ordered_is_one_line(
    camp: Camp, feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = camp("build", feature_bundle, *options)
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_command_of_the_librarys_own_tool(feature_bundle: Path) -> None:
    limits = Limits(max_images=8, max_regions=7, workspace_bytes=1 << 20)
    order = EngineOrder(Bundle(feature_bundle), "image", "float32", Here("tensorrt", "11.4.0", "8.9"), limits)
    assert trtexec_command(order).split()[1:] == [
        f"--onnx={feature_bundle}/image.onnx",
        "--noTF32",
        "--stronglyTyped",
        "--minShapes=features:1x1x12",
        "--optShapes=features:8x7x12",
        "--maxShapes=features:8x7x12",
        "--memPoolSize=workspace:1048576B",
        "--saveEngine=image.plan",
        "--skipInference",
    ]
    assert trtexec_command(order).split()[0] == "trtexec"
    assert trtexec_command(replace(order, here=Here("tensorrt_rtx", "1.7", None))).startswith("tensorrt_rtx --onnx=")


@rtx
def test_building_needs_no_torch(bundle_copy: Path) -> None:
    code = """
from camp_sdk.commands.app import main
sys.argv = ["camp", "build", sys.argv[1], "--backend", "tensorrt-rtx", "--graph", "text"]
main()
"""
    done = run_blocked(code, bundle_copy)
    assert (done.returncode, done.stdout.split()[0]) == (0, "text:")
