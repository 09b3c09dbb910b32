"""Engines: one face for every inference library, ``run(feeds) -> outputs``, ``close()``, and a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError

Arrays = dict[str, NDArray[Any]]


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

    Sessions are thread-safe. Raises BackendError if the provider asked for is not the one really in use.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        ort, provider = _import_onnxruntime(device)
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
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))

    def close(self) -> None:
        self._session = None


def _import_onnxruntime(device: str) -> tuple[Any, str]:
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
    _import_onnxruntime(BACKENDS[backend])
    return backend


def _cuda_works(bundle: Bundle) -> bool:
    # ONNX Runtime lists the provider wherever its GPU build is installed, and falls back in silence without a GPU.
    try:
        _import_onnxruntime("cuda")
        open_engine(bundle, "image", "onnxruntime-cuda").close()
    except (BackendError, BundleError):
        return False
    return True


def open_engine(bundle: Bundle, graph: str, backend: str = "auto", threads: int | None = None) -> Engine:
    """Open one graph of a bundle ("image", "text", "scorer", "explainer" or "vision") on a backend.

    Raises BundleError if the bundle has no such graph, BackendError if the backend is not there.
    """
    if graph not in bundle.manifest.graphs:
        raise BundleError(f"{bundle.folder} has no {graph} graph; it has {', '.join(bundle.manifest.graphs)}")
    device = BACKENDS[choose_backend(bundle, backend)]
    return OnnxRuntimeEngine(bundle.path(bundle.manifest.graphs[graph].file), device, threads)
