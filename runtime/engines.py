"""Engines: one face for every inference library, ``run(feeds) -> outputs``, ``close()``, and a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.bundle import EXPORT_AGAIN, Bundle, GraphSpec
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError

Arrays = dict[str, NDArray[Any]]

# ONNX Runtime's names of the types a contract may hold.
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
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

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on one graph file. ``device`` is "cpu" or "cuda"; ``threads`` None takes every core.

    Sessions are thread-safe. Raises BackendError if the provider asked for is not the one really in use, or a run fails.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        ort, provider = import_onnxruntime(device)
        options = ort.SessionOptions()
        options.log_severity_level = 3
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

    def check_contract(self, graph: GraphSpec) -> None:
        """Raise BundleError unless the file's inputs and outputs are those the manifest lists: names, dtypes, fixed sizes."""
        for kind, specs, values in (
            ("input", graph.inputs, self._session.get_inputs()),
            ("output", graph.outputs, self._session.get_outputs()),
        ):
            found = {value.name: (ONNX_TYPES.get(value.type, value.type), value.shape) for value in values}
            expected = {spec.name: (spec.dtype, spec.shape) for spec in specs}
            if found.keys() != expected.keys() or not all(_fits(expected[name], found[name]) for name in expected):
                raise BundleError(
                    f"{self._path} has the {kind}s {found}, manifest.json says {expected}; {EXPORT_AGAIN}"
                )


def _fits(expected: tuple[str, Sequence[int | str]], found: tuple[str, Sequence[Any]]) -> bool:
    """Whether dtype, number of axes and fixed sizes are the same; an axis of any size bears a letter on either side."""
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


BACKENDS = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda"}


def choose_backend(bundle: Bundle, backend: str = "auto") -> str:
    """The backend ``"auto"`` stands for on this machine: CUDA where it really opens a graph, otherwise the CPU.

    Any other known name is returned as it is. Raises BackendError for an unknown one, or one that is not installed.
    """
    if backend == "auto":
        backend = "onnxruntime-cuda" if _cuda_works(bundle) else "onnxruntime"
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    import_onnxruntime(BACKENDS[backend])
    return backend


def _cuda_works(bundle: Bundle) -> bool:
    # ONNX Runtime lists the provider wherever its GPU build is installed, and falls back in silence without a GPU.
    try:
        import_onnxruntime("cuda")
        open_engine(bundle, "image", "onnxruntime-cuda").close()
    except (BackendError, BundleError):
        return False
    return True


def open_engine(bundle: Bundle, graph: str, backend: str = "auto", threads: int | None = None) -> Engine:
    """Open one graph of a bundle ("image", "text", "scorer", "explainer" or "vision") on a backend.

    Raises BundleError if the bundle has no such graph, or one that is not what the manifest says, BackendError if the
    backend is not there.
    """
    if graph not in bundle.manifest.graphs:
        raise BundleError(f"{bundle.folder} has no {graph} graph; it has {', '.join(bundle.manifest.graphs)}")
    device, spec = BACKENDS[choose_backend(bundle, backend)], bundle.manifest.graphs[graph]
    engine = OnnxRuntimeEngine(bundle.path(spec.file), device, threads)
    engine.check_contract(spec)
    return engine
