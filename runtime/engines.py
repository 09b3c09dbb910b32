"""Engines: one face for every inference library, ``run(feeds) -> outputs``, ``close()``, and a context manager."""

from __future__ import annotations

import importlib.util
import platform
import queue
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.bundle import EXPORT_AGAIN, Bundle, GraphSpec
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError

Arrays = dict[str, NDArray[Any]]
Interface = dict[str, tuple[str, tuple[Any, ...]]]  # dtype and shape by name; an axis of any size is no number

# ONNX Runtime's names of the types a contract may hold.
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


class Engine(ABC):
    """What every backend offers: named numpy arrays in, named numpy arrays out; a context manager that closes it."""

    @abstractmethod
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph once: every input by name, every output by name."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; it cannot run again."""

    @abstractmethod
    def interface(self) -> tuple[Interface, Interface]:
        """Inputs and outputs as the graph's file declares them."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on one graph file. ``device`` is "cpu" or "cuda"; ``threads`` None takes every core.

    spin: whether its idle threads wait for the next run by spinning, which is for a graph that runs again at once: elsewhere
    they take the cores from the other graphs. Sessions are thread-safe. Raises BackendError if the provider asked for is not
    the one really in use, or a run fails.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None, spin: bool = True) -> None:
        ort, provider = import_onnxruntime(device)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # onnxruntime raises its own types, all derived from Exception
            raise BundleError(f"ONNX Runtime cannot open {path}: {error}") from None
        if self._session.get_providers()[0] != provider:
            raise BackendError(f"{provider} was asked for, but ONNX Runtime uses {self._session.get_providers()[0]}")
        self._path = path
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            outputs = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # onnxruntime raises its own types, all derived from Exception
            raise BackendError(f"ONNX Runtime cannot run {self._path}: {error}") from None
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        self._session = None

    def interface(self) -> tuple[Interface, Interface]:
        def described(values: Sequence[Any]) -> Interface:
            return {value.name: (ONNX_TYPES.get(value.type, value.type), tuple(value.shape)) for value in values}

        return described(self._session.get_inputs()), described(self._session.get_outputs())


class OpenVinoEngine(Engine):
    """OpenVINO on one graph file, on the CPU; ``threads`` None takes every core.

    It computes in the precision the graph says: in float32 where that says no other. Threads share the compiled graph, each
    run has a request of its own. Raises BackendError if a run fails.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = import_openvino()
        # Left alone, OpenVINO computes float32 graphs in bfloat16 where it is faster. One stream: a single call takes all
        # threads, which is what scoring block after block wants.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "NUM_STREAMS": 1}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
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


def check_contract(engine: Engine, graph: GraphSpec) -> None:
    """Raise BundleError unless a file's inputs and outputs are those the manifest lists: names, dtypes, fixed sizes."""
    for kind, specs, found in zip(("input", "output"), (graph.inputs, graph.outputs), engine.interface(), strict=True):
        expected: Interface = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        if found.keys() != expected.keys() or not all(_fits(expected[name], found[name]) for name in expected):
            raise BundleError(f"{graph.file} has the {kind}s {found}, manifest.json says {expected}; {EXPORT_AGAIN}")


def _fits(expected: tuple[str, tuple[Any, ...]], found: tuple[str, tuple[Any, ...]]) -> bool:
    """Whether dtype, number of axes and fixed sizes are the same; an axis of any size has no number on either side."""
    (dtype, shape), (found_dtype, found_shape) = expected, found
    if dtype != found_dtype or len(shape) != len(found_shape):
        return False
    return all(size == other for size, other in zip(shape, found_shape, strict=True) if isinstance(size, int))


def import_onnxruntime(device: str) -> tuple[Any, str]:
    """The library and the name of a device's provider. Raises BackendError if either is not installed."""
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "gpu" if device == "cuda" else "cpu") from None
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(f"ONNX Runtime here has no {provider}; install it with: pip install 'camp-sdk[gpu]'")
    return onnxruntime, provider


def import_openvino() -> Any:
    """The library. Raises MissingExtraError if it is not installed."""
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("openvino", "openvino") from None
    return openvino


def require_bfloat16() -> None:
    """Raise BackendError where OpenVINO or the processor does not multiply matrices in bfloat16."""
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this processor does not compute in bfloat16: use precision float32")


BACKENDS = ("onnxruntime", "onnxruntime-cuda", "openvino")
PRECISIONS = ("float32", "float16", "bfloat16")


def choose_backend(bundle: Bundle, backend: str = "auto", precision: str = "float32") -> str:
    """The backend ``"auto"`` stands for on this machine: CUDA where it really opens a graph, otherwise OpenVINO where it is
    installed and the processor an x86, for which it was measured to be the faster one, otherwise ONNX Runtime on the CPU.

    Any other known name is returned as it is. Raises BackendError for an unknown one, one that is not installed, or a
    precision it does not have.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if backend == "auto":
        backend = _best_backend(bundle, precision)
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    bundle.manifest.graphs_in(precision)  # a bundle that has none is an error of its own
    if precision != "float32" and (backend == "openvino") != (precision == "bfloat16"):
        other = "openvino" if precision == "bfloat16" else "onnxruntime"
        raise BackendError(f"{backend} does not score in {precision}: use backend {other}")
    if backend == "openvino":
        import_openvino()
        if precision == "bfloat16":
            require_bfloat16()
    else:
        import_onnxruntime(_device(backend))
    return backend


def _device(backend: str) -> str:
    return "cuda" if backend == "onnxruntime-cuda" else "cpu"


def _best_backend(bundle: Bundle, precision: str) -> str:
    if precision == "bfloat16":
        return "openvino"
    if _cuda_works(bundle):
        return "onnxruntime-cuda"
    x86 = platform.machine().lower() in ("x86_64", "amd64") and precision == "float32"
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
    backend, spec = choose_backend(bundle, backend, precision), bundle.manifest.graphs_in(precision)[graph]
    path = bundle.path(spec.file)
    engine: Engine
    if backend == "openvino":
        engine = OpenVinoEngine(path, threads)
    else:
        engine = OnnxRuntimeEngine(path, _device(backend), threads, spin=graph == "scorer")
    check_contract(engine, spec)
    return engine
