"""Which engine runs a graph: the backends by name, the one that is best here, and opening a graph on it."""

from __future__ import annotations

import importlib.util
import platform
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle, GraphSpec
from camp_sdk.runtime.engine import Arrays, Engine, Interface, check_contract
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError
from camp_sdk.runtime.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime, tensorrt_options
from camp_sdk.runtime.plans import Limits, profile_of
from camp_sdk.runtime.splitting import SplittingEngine
from camp_sdk.runtime.tensorrt_engine import TensorRtEngine, import_tensorrt, plan_here


class OpenVinoEngine(Engine):
    """OpenVINO on one graph file, on the CPU; ``threads`` None takes every core.

    precision: "float32", or "bfloat16" where the processor computes in it (arrays stay float32). Threads share the compiled
    graph, each run has a request of its own. Raises BackendError if the precision asked for is not the one really in use,
    or a run fails.
    """

    def __init__(self, path: Path, threads: int | None = None, precision: str = "float32") -> None:
        openvino = import_openvino()
        hint = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[precision]
        # One stream: a single call takes all threads, which is what scoring block after block wants.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this processor does not compute in bfloat16: use precision float32")
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BundleError(f"OpenVINO cannot open {path}: {error}") from None
        self._path = path
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            outputs = request.infer(dict(feeds), share_inputs=True)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BackendError(f"OpenVINO cannot run {self._path}: {error}") from None
        finally:
            self._idle.put(request)
        return {name: outputs[index] for index, name in enumerate(self._outputs)}

    def close(self) -> None:
        self._compiled, self._idle = None, queue.SimpleQueue()

    def interface(self) -> tuple[Interface, Interface]:
        def described(ports: Sequence[Any]) -> Interface:
            return {
                port.get_any_name(): (
                    port.get_element_type().to_dtype().name,
                    tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape()),
                )
                for port in ports
            }

        return described(self._compiled.inputs), described(self._compiled.outputs)


def import_openvino() -> Any:
    """The library. Raises MissingExtraError if it is not installed."""
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("openvino", "openvino") from None
    return openvino


BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt-rtx")
DEVICES = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PRECISIONS = ("float32", "float16", "bfloat16")
OPENVINO_BFLOAT16 = ("openvino", "bfloat16")  # made of the float32 graph


def choose_backend(bundle: Bundle, backend: str = "auto", precision: str = "float32") -> str:
    """The backend ``"auto"`` stands for on this machine: TensorRT (or TensorRT-RTX) where an engine of the scorer was built
    that fits, then ONNX Runtime's CUDA where it really opens a graph, otherwise OpenVINO where it is installed and the
    processor an x86, for which it was measured to be the faster one, otherwise ONNX Runtime on the CPU.

    Any other known name is returned as it is. Raises BackendError for an unknown one, one that is not installed, or a
    precision it does not have.
    """
    if backend == "auto":
        _check_precision(precision)
        backend = _best_backend(bundle, precision)
    _check_backend(backend, precision)
    if backend in LIBRARIES:
        plan_here(bundle, "scorer", precision, LIBRARIES[backend])
    return backend


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")


def _check_backend(backend: str, precision: str) -> None:
    _check_precision(precision)
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    if precision != "float32" and backend in ("onnxruntime", "openvino") and (backend, precision) != OPENVINO_BFLOAT16:
        raise BackendError(f"{backend} scores in float32 only: for {precision} use backend openvino")
    if backend == "openvino":
        import_openvino()
    elif backend in LIBRARIES:
        import_tensorrt(LIBRARIES[backend])
    else:
        import_onnxruntime(DEVICES[backend])


def _best_backend(bundle: Bundle, precision: str) -> str:
    for backend, library in LIBRARIES.items():
        try:
            plan_here(bundle, "scorer", precision, library)
        except BackendError:
            continue
        return backend
    if precision == "bfloat16":
        return "openvino"
    if _cuda_works(bundle):
        return "onnxruntime-cuda"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "openvino" if x86 and importlib.util.find_spec("openvino") else "onnxruntime"


def _cuda_works(bundle: Bundle) -> bool:
    # ONNX Runtime lists the provider wherever its GPU build is installed, and falls back in silence without a GPU.
    try:
        import_onnxruntime("cuda")
        open_engine(bundle, "image", "onnxruntime-cuda").close()
    except (BackendError, BundleError):
        return False
    return True


def open_engine(
    bundle: Bundle, graph: str, backend: str = "auto", threads: int | None = None, precision: str = "float32"
) -> Engine:
    """Open one graph of a bundle ("image", "text", "scorer", "explainer" or "vision") on a backend.

    Raises BundleError if the bundle has no such graph, or one that is not what the manifest says, BackendError if the
    backend is not there.
    """
    if graph not in bundle.manifest.graphs:
        raise BundleError(f"{bundle.folder} has no {graph} graph; it has {', '.join(bundle.manifest.graphs)}")
    if backend == "auto":
        backend = choose_backend(bundle, backend, precision)
    _check_backend(backend, precision)
    written = "float32" if (backend, precision) == OPENVINO_BFLOAT16 else precision
    spec = bundle.manifest.graphs_in(written)[graph]
    engine: Engine
    if backend in LIBRARIES:
        engine = _open_plan(bundle, graph, precision, LIBRARIES[backend])
    elif backend == "openvino":
        engine = OpenVinoEngine(bundle.path(spec.file), threads, precision)
    else:
        engine = _open_graph(bundle, spec, DEVICES[backend], threads, spin=graph == "scorer")
    check_contract(engine, spec)
    return engine


def _open_plan(bundle: Bundle, graph: str, precision: str, library: str) -> Engine:
    plan, record = plan_here(bundle, graph, precision, library)
    return SplittingEngine(TensorRtEngine(plan, library), bundle.manifest.graphs_in(precision)[graph], record.profile)


def _open_graph(bundle: Bundle, spec: GraphSpec, device: str, threads: int | None, spin: bool) -> Engine:
    path = bundle.path(spec.file)
    if device != "tensorrt":
        return OnnxRuntimeEngine(path, device, threads, spin)
    profile = profile_of(spec, bundle.manifest, Limits())
    options = tensorrt_options(bundle.manifest.files[spec.file].sha256, profile)
    return SplittingEngine(OnnxRuntimeEngine(path, device, threads, spin, options), spec, profile)
