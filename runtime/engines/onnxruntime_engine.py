"""ONNX Runtime, on the CPU or with its CUDA or TensorRT provider."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface, closed_how
from camp_sdk.runtime.engines.profiles import Profile
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError, install_command
from camp_sdk.runtime.files import HeldFile, cache_folder
from camp_sdk.runtime.forks import abandon, watch_forks
from camp_sdk.runtime.graph_file import read_graph
from camp_sdk.runtime.threads import physical_cores

# ONNX Runtime's names of the dtypes that a bundle's contract allows.
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CUDA_OPTIONS: dict[str, Any] = {"use_tf32": 0}  # on by default; TF32 keeps only ten bits of a float32's fraction
# Images and texts in one call. Their pairs' intermediates take at most a few gigabytes at d = 1024 and R = 36.
GPU_BLOCKS = (64, 16)


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on one graph file. Threads may share an engine.

    Args:
        graph: the graph's file.
        device: "cpu", "cuda" or "tensorrt".
        threads: the number of threads that compute; None uses every core.
        spin: whether idle threads of the pool wait for the next run by spinning. This suits a graph that runs again at
            once; otherwise the spinning threads take cores from other graphs.
        options: options of the provider.
        streams: the number of runs that share the threads. Each run computes in its caller's thread and in the common
            pool: more pairs per second, but each single run takes longer.

    Raises:
        BackendError: ONNX Runtime does not use the requested provider (the message names the library that failed to
            load), or a run fails.
        BundleError: the file is not a whole ONNX model, or ONNX Runtime cannot open it.
    """

    def __init__(
        self,
        graph: HeldFile,
        device: str = "cpu",
        threads: int | None = None,
        spin: bool = True,
        options: Mapping[str, Any] | None = None,
        streams: int = 1,
    ) -> None:
        ort, provider = import_onnxruntime(device)
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        if streams > 1:
            threads = (threads or physical_cores()) - (streams - 1)  # ONNX Runtime's setting counts one caller
        if threads is not None:
            settings.intra_op_num_threads = threads
        providers = [(provider, CUDA_OPTIONS if device == "cuda" else dict(options or {}))]
        if device == "tensorrt":
            providers.append((PROVIDERS["cuda"], CUDA_OPTIONS))  # runs the operators that TensorRT does not support
        content = read_graph(graph)
        try:
            self._session: Any = ort.InferenceSession(content, settings, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises its own types, all derived from Exception
            if device != "cpu" and (reason := _load_error(ort, device)):
                raise BackendError(f"{provider} cannot be used: {reason}") from None
            raise BundleError(f"ONNX Runtime cannot open {graph.path}: {error}") from None
        if (used := self._session.get_providers()[0]) != provider:
            reason = _load_error(ort, device) or _device_error()
            raise BackendError(f"{provider} was asked for, but ONNX Runtime uses {used}: {reason}")
        self._session._model_bytes = None  # it would keep the file's content in memory as long as it lives
        self._path, self._device, self.streams = graph.path, device, streams
        self.callers = streams  # a further caller would compete with the others for their cores
        self._inputs = {v.name: np.dtype(ONNX_TYPES.get(v.type, "O")) for v in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.blocks = None if device == "cpu" else GPU_BLOCKS
        self.residents = WeakKeyDictionary()
        self._uploader = cuda.Uploader()
        self._forked = False
        watch_forks(self)

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        session = self._session
        if session is None:
            raise BackendError(f"ONNX Runtime cannot run {self._path}: it was {closed_how(self._forked)}")
        try:
            if any(isinstance(array, cuda.DeviceArray) for array in feeds.values()):
                outputs = self._run_bound(session, feeds)
            else:
                outputs = session.run(self._outputs, dict(feeds))
        except Exception as error:  # onnxruntime raises its own types, all derived from Exception
            raise BackendError(f"ONNX Runtime cannot run {self._path}: {error}") from None
        return dict(zip(self._outputs, outputs, strict=True))

    def _run_bound(self, session: Any, feeds: Mapping[str, Any]) -> Sequence[Any]:
        binding = session.io_binding()
        for name, array in feeds.items():
            if isinstance(array, cuda.DeviceArray):
                place = (*self._memory, array.dtype.type, list(array.shape), array.address)
                binding.bind_input(name, *place)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        outputs: Sequence[Any] = binding.copy_outputs_to_cpu()
        return outputs

    _memory = ("cuda", 0)  # ONNX Runtime's name and number of the device memory that `hold` uses

    def hold(self, tensors: Arrays) -> Mapping[str, Any]:
        return tensors if self.room_bytes() is None else tensors | self._uploader.upload(tensors, self._inputs)

    def room_bytes(self) -> int | None:
        if self._device == "cpu":
            return None
        try:
            return cuda.room_bytes()
        except MissingExtraError:  # without cuda-bindings, ONNX Runtime uploads the inputs of every run
            return None

    def close(self) -> None:
        self.residents.clear()
        self._session = None
        self._uploader.close()

    def forked(self) -> None:
        abandon([self._session, self._uploader, *self.residents.values()])
        self._session, self._uploader, self.residents = None, cuda.Uploader(), WeakKeyDictionary()
        self._forked = True

    def interface(self) -> tuple[Interface, Interface]:
        def described(values: Sequence[Any]) -> Interface:
            return {value.name: (ONNX_TYPES.get(value.type, value.type), tuple(value.shape)) for value in values}

        return described(self._session.get_inputs()), described(self._session.get_outputs())


def import_onnxruntime(device: str) -> tuple[Any, str]:
    """Import ONNX Runtime and find the provider of a device.

    Args:
        device: "cpu", "cuda" or "tensorrt".

    Returns:
        The module, and the provider's name.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BackendError: the installed ONNX Runtime does not include the provider.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "cpu" if device == "cpu" else "gpu") from None
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(
            f"ONNX Runtime here has no {provider}; replace this package with the one that has it: "
            f"pip uninstall onnxruntime, then {install_command('gpu')}"
        )
    if device != "cpu":
        _preload(onnxruntime)
    return onnxruntime, provider


@functools.cache
def _preload(ort: Any) -> None:
    if hasattr(ort, "preload_dlls"):  # from 1.21 on: finds the CUDA libraries that pip installed
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the libraries it does not find
            ort.preload_dlls()


def _load_error(ort: Any, device: str) -> str:
    """The system loader's error for a provider's library, which names the missing library; empty if it loads.

    ONNX Runtime itself reports the error only in its log on standard error.
    """
    pattern = "onnxruntime_providers_{}.dll" if sys.platform == "win32" else "libonnxruntime_providers_{}.so"
    folder = Path(ort.__file__).parent / "capi"
    try:
        # Loaded first and globally: the provider's library needs its symbols.
        ctypes.CDLL(str(folder / pattern.format("shared")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / pattern.format(device)))
    except OSError as error:
        return str(error)
    return ""


def check_provider(device: str) -> None:
    """Check that a device's provider can be used.

    Args:
        device: "cpu", "cuda" or "tensorrt".

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BackendError: the provider is not installed, its libraries do not load, or it needs a GPU and there is none.
    """
    ort, provider = import_onnxruntime(device)
    if device == "cpu":
        return
    if reason := _load_error(ort, device):
        raise BackendError(f"{provider} cannot be used: {reason}")
    with contextlib.suppress(MissingExtraError):  # the provider works without cuda-bindings; only this check needs them
        cuda.gpu()


def _device_error() -> str:
    try:
        return f"its libraries load, and {cuda.gpu().name} is there; ONNX Runtime's log on standard error says more"
    except BackendError as error:
        return str(error)


def tensorrt_options(graph_sha256: str, profile: Profile) -> dict[str, Any]:
    """Options of the TensorRT provider: the shapes to build for, and the folder that keeps built engines.

    Engines are kept in the user's cache folder, not in the bundle: ONNX Runtime deserialises any file with the right
    name there, and a bundle may come from anywhere. Each graph has its own folder, because that file name does not
    depend on the weights. The graph fixes the precision, so TensorRT's precision options are not set.

    Args:
        graph_sha256: SHA-256 of the graph's file, in hexadecimal.
        profile: the smallest, expected and largest shape of each input.
    """
    key = hashlib.sha256(json.dumps([graph_sha256, profile], sort_keys=True).encode()).hexdigest()[:16]
    cache = cache_folder() / "onnxruntime-tensorrt" / key
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    shapes = {
        which: ",".join(f"{name}:{'x'.join(map(str, sizes[place]))}" for name, sizes in profile.items())
        for place, which in enumerate(("min", "opt", "max"))
    }
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
        **{f"trt_profile_{which}_shapes": text for which, text in shapes.items()},
    }
