"""Stand-ins for cuda-bindings and TensorRT without a GPU: "device" memory is the host's, and plans are ONNX graphs.

They enforce the rules that code can break. Work in a stream is done only when somebody waits for the stream. Addresses
are checked: alignment, kind of memory, size, freed or not. A context serves one run at a time. A recording replays its
work with the shapes and addresses of its time. Every allocation is counted.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from camp_sdk.runtime.engines.onnxruntime_engine import ONNX_TYPES
from camp_sdk.runtime.engines.profiles import Profile
from camp_sdk.runtime.files import HeldFile

TRT_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}
SHIFTED = 256


class Error(enum.Enum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Attribute(enum.Enum):
    cudaDevAttrIntegrated = 18


class CaptureMode(enum.Enum):
    cudaStreamCaptureModeThreadLocal = 1


TEXTS = {
    Error.cudaErrorInvalidValue: b"invalid argument",
    Error.cudaErrorMemoryAllocation: b"out of memory",
    Error.cudaErrorInsufficientDriver: b"CUDA driver version is insufficient for CUDA runtime version",
    Error.cudaErrorStreamCaptureUnsupported: b"operation not permitted when stream is capturing",
    Error.cudaErrorStreamCaptureInvalidated: b"operation failed due to a previous error during capture",
}


class Handle:
    """What a stream is: not a number, but with one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime`. room: bytes of device memory; driver: whether there is one."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr = Error, Kind, CaptureMode, Attribute
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.room, self.driver, self.devices, self.integrated = 1 << 30, True, 1, False
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.captures: dict[int, list[Callable[[], None]]] = {}  # of the streams that are being recorded
        self.spoiled: set[int] = set()  # those of them that did what cannot be recorded
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.allocations = self.launches = 0
        self.copied: dict[str, int] = {kind.name: 0 for kind in Kind}
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes of device memory in use."""
        return sum(len(memory) - SHIFTED for memory in list(self.device.values()))

    @property
    def held(self) -> int:
        """Allocations and streams that nobody gave back."""
        return len(self.device) + len(self.host) + len(self.streams) + len(self.graphs)

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Put work into a stream, or into what is recorded of it."""
        (self.captures if stream in self.captures else self.streams)[stream].append(work)

    def _allocate(self, into: dict[int, Any], nbytes: int) -> tuple[Error, int | None]:
        with self._lock:
            if not self.driver:
                return Error.cudaErrorInsufficientDriver, None
            if into is self.device and self.used + nbytes > self.room:
                return Error.cudaErrorMemoryAllocation, None
            memory = np.full(nbytes + SHIFTED, 0xAB, np.uint8)  # garbage, as real memory has it
            address = -(-memory.ctypes.data // SHIFTED) * SHIFTED
            into[address] = memory
            self.allocations += 1
            return Error.cudaSuccess, address

    def cudaMalloc(self, nbytes: int) -> tuple[Error, int | None]:
        return self._allocate(self.device, nbytes)

    def cudaMallocHost(self, nbytes: int) -> tuple[Error, int | None]:
        return self._allocate(self.host, nbytes)

    def cudaFree(self, address: int) -> tuple[Error]:
        with self._lock:
            return (Error.cudaSuccess if self.device.pop(address, None) is not None else Error.cudaErrorInvalidValue,)

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        with self._lock:
            return (Error.cudaSuccess if self.host.pop(address, None) is not None else Error.cudaErrorInvalidValue,)

    def on_device(self, address: int, nbytes: int) -> bool:
        """Whether a number of bytes from an address lies in one live allocation of the device."""
        with self._lock:
            return any(
                start <= address and address + nbytes <= start + len(m) - SHIFTED for start, m in self.device.items()
            )

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Kind, stream: int) -> tuple[Error]:
        to_device, from_device = kind is not Kind.cudaMemcpyDeviceToHost, kind is not Kind.cudaMemcpyHostToDevice
        if self.on_device(target, nbytes) != to_device or self.on_device(source, nbytes) != from_device:
            return (Error.cudaErrorInvalidValue,)
        self.copied[kind.name] += nbytes
        self.put(int(stream), lambda: ctypes.memmove(target, source, nbytes) and None)
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Handle | None]:
        if not self.driver:
            return Error.cudaErrorInsufficientDriver, None
        with self._lock:
            handle = Handle(max(self.streams, default=0) + 1)
            self.streams[handle.number] = []
        return Error.cudaSuccess, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        if int(stream) in self.captures:
            self.spoiled.add(int(stream))
            return (Error.cudaErrorStreamCaptureUnsupported,)
        work = self.streams[int(stream)]
        while work:
            work.pop(0)()
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Error]:
        assert mode is CaptureMode.cudaStreamCaptureModeThreadLocal
        self.captures[int(stream)] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, Handle | None]:
        recorded = self.captures.pop(int(stream))
        if int(stream) in self.spoiled:
            self.spoiled.remove(int(stream))
            return Error.cudaErrorStreamCaptureInvalidated, None
        return Error.cudaSuccess, self._graph(recorded)

    def _graph(self, recorded: list[Callable[[], None]]) -> Handle:
        with self._lock:
            handle = Handle(max(self.graphs, default=0) + 1)
            self.graphs[handle.number] = recorded
        return handle

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Error, Handle]:
        assert flags == 0
        return Error.cudaSuccess, self._graph(self.graphs[graph.number])

    def cudaGraphLaunch(self, graph: Handle, stream: int) -> tuple[Error]:
        self.launches += 1
        self.streams[int(stream)] += self.graphs[graph.number]
        return (Error.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Error]:
        del self.graphs[graph.number]
        return (Error.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Error]:
        del self.streams[int(stream)]
        return (Error.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attribute: Attribute, device: int) -> tuple[Error, int]:
        assert attribute is Attribute.cudaDevAttrIntegrated
        return Error.cudaSuccess, int(self.integrated)

    def cudaMemGetInfo(self) -> tuple[Error, int | None, int | None]:
        return Error.cudaSuccess, self.room - self.used, self.room

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, TEXTS[error]

    def cudaGetDeviceCount(self) -> tuple[Error, int | None]:
        return (Error.cudaSuccess, self.devices) if self.driver else (Error.cudaErrorInsufficientDriver, None)

    def cudaDriverGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 13000 if self.driver else 0

    def cudaRuntimeGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 12060

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        properties = SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=7, totalGlobalMem=self.room)
        return Error.cudaSuccess, properties


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    ERROR = Severity.ERROR

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(enum.Enum):
    INVALID = 0
    VALID = 1


class EngineInvalidityDiagnostics(enum.Enum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2

    def __int__(self) -> int:  # as the library's own, which are no Python enums
        return int(self.value)


class FakeTensorRt(ModuleType):
    """`tensorrt`, whose plans are what `write_plan` writes.

    can_record: whether its engines can be recorded. context_bytes: what a context takes. faults: what TensorRT-RTX has
    against every plan, flags. compiled: what TensorRT-RTX compiled of its kernels, run by run.
    """

    ILogger, TensorIOMode, __version__ = ILogger, TensorIOMode, "10.3.0"
    CudaGraphStrategy, EngineValidity = CudaGraphStrategy, EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def __init__(self, cuda: FakeCuda, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.cuda, self.contexts, self.can_record = cuda, 0, True
        self.context_bytes, self.faults = 0, 0
        self.compiled: list[bytes] = []
        self.strategies: list[CudaGraphStrategy] = []

    def Runtime(self, logger: ILogger) -> Any:
        assert self.cuda.driver, "TensorRT ends the process here"
        validity = EngineValidity.INVALID if self.faults else EngineValidity.VALID
        rtx = {"get_engine_validity": lambda plan: (validity, self.faults)} if self.__name__ == "tensorrt_rtx" else {}
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._deserialized(plan, logger), **rtx)

    def _deserialized(self, plan: bytes, logger: ILogger) -> FakeEngine | None:
        try:
            return FakeEngine(self, logger, json.loads(plan))
        except ValueError:
            logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
            return None


class FakeEngine:
    def __init__(self, trt: FakeTensorRt, logger: ILogger, plan: dict[str, Any]) -> None:
        self.trt, self.logger, self.profile = trt, logger, plan["profile"]
        self.session = onnxruntime.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.tensors = self.inputs | {value.name: value for value in self.session.get_outputs()}
        self.num_io_tensors, self.device_memory_size_v2 = len(self.tensors), trt.context_bytes

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TRT_NAMES[ONNX_TYPES[self.tensors[name].type]])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.tensors[name].shape]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        assert self.trt.__name__ == "tensorrt_rtx"
        return FakeRuntimeConfig()

    def create_execution_context(self, config: FakeRuntimeConfig | None = None) -> FakeContext:
        self.trt.contexts += 1
        if config is not None:
            self.trt.strategies.append(config.cuda_graph_strategy)
        return FakeContext(self, config)


class FakeRuntimeCache:
    """Kernels of TensorRT-RTX: here, the names of the outputs they compute. Those of another GPU are refused."""

    def __init__(self) -> None:
        self.kernels: set[bytes] = set()

    def serialize(self) -> bytes:
        return b"this GPU:" + b",".join(sorted(self.kernels))

    def deserialize(self, blob: bytes) -> bool:
        fits = blob.startswith(b"this GPU:")
        if fits:
            self.kernels = set(blob.removeprefix(b"this GPU:").split(b","))
        return fits


class FakeRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: FakeRuntimeCache | None = None

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.busy = False
        self.has_run = False  # with these shapes

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.profile[name]
        fits = len(shape) == len(largest) and all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        )
        if fits:
            self.shapes[name] = shape
            self.has_run = False
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        sizes = {
            letter: size
            for tensor, shape in self.shapes.items()
            for letter, size in zip(self.engine.tensors[tensor].shape, shape, strict=True)
        }
        return [axis if isinstance(axis, int) else sizes[axis] for axis in self.engine.tensors[name].shape]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def _array(self, name: str, shape: list[int], address: int) -> Any:
        dtype = np.dtype(ONNX_TYPES[self.engine.tensors[name].type])
        nbytes = math.prod(shape) * dtype.itemsize
        assert self.engine.trt.cuda.on_device(address, nbytes), f"{name} is not in device memory"
        raw = (ctypes.c_uint8 * nbytes).from_address(address)
        return np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self.engine.trt.cuda
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if stream_handle in cuda.captures:
            if not self.has_run or not self.engine.trt.can_record:
                cuda.spoiled.add(stream_handle)
                self.engine.logger.log(ILogger.Severity.ERROR, "not permitted when stream is capturing")
                return False
        else:
            assert not self.busy, "two runs in one context"
            self.busy = self.has_run = True
        cuda.put(stream_handle, lambda: self._execute(shapes, addresses))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {name: self._array(name, list(shapes[name]), addresses[name]) for name in self.engine.inputs}
        outputs = [name for name in self.engine.tensors if name not in self.engine.inputs]
        for name, array in zip(outputs, self.engine.session.run(outputs, feeds), strict=True):
            self._array(name, list(array.shape), addresses[name])[...] = array
            if self.config is not None and self.config.cache is not None:
                self._compile(name.encode(), self.config.cache)
        self.busy = False

    def _compile(self, kernel: bytes, cache: FakeRuntimeCache) -> None:
        if kernel not in cache.kernels:
            self.engine.trt.compiled.append(kernel)
            cache.kernels.add(kernel)


def write_plan(path: Path, graph: HeldFile, profile: Profile) -> HeldFile:
    """A plan of the fake TensorRT."""
    path.write_text(json.dumps({"graph": str(graph.path), "profile": profile}))
    return HeldFile(path)


def install(monkeypatch: pytest.MonkeyPatch, name: str = "tensorrt") -> tuple[FakeCuda, FakeTensorRt]:
    """Put CUDA and a library, tensorrt or tensorrt_rtx, in the place of the real ones."""
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda, name)
    bindings, package = ModuleType("cuda.bindings"), ModuleType("cuda")
    bindings.runtime, package.bindings = cuda, bindings  # type: ignore[attr-defined]  # a module made here
    modules = {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": cuda, name: trt}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cuda, trt
