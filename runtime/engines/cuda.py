"""The little of CUDA that the engines need: what device there is, its memory, staging on the host, streams, and what
is recorded from them.

Everything goes through cuda-bindings, whose functions return (error, values...). Device 0 is the one used.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import BackendError, MissingExtraError

ALIGNMENT_BYTES = 256  # of an address that a tensor is set to: IExecutionContext::setTensorAddress demands it
STAGING_BYTES = 16 << 20  # an upload passes through so much page-locked memory at a time
HELD_PERCENT = 60
MEMORY_FILE = Path("/proc/meminfo")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """The device in use. Versions of CUDA are "13.0": the newest the driver serves, and that of the runtime library."""

    name: str
    compute_capability: str
    driver_version: str
    runtime_version: str
    total_bytes: int


def import_cuda() -> Any:
    """The module `cuda.bindings.runtime`. Raises MissingExtraError if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingExtraError("cuda-bindings", "tensorrt") from None
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime: its value, or a tuple of its values.

    Raises BackendError that names the function and says what CUDA says of the error.
    """
    runtime = import_cuda()
    try:
        error, *values = getattr(runtime, name)(*arguments)
    except RuntimeError as failure:  # some releases raise where no driver library is found
        raise BackendError(f"{name} failed: {failure}") from None
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        raise BackendError(f"{name} failed: {text.decode() if isinstance(text, bytes) else text}")
    return values[0] if len(values) == 1 else tuple(values)


def gpu() -> Gpu:
    """The device in use. Raises BackendError, one line, where there is no driver or no device."""
    try:
        count = call("cudaGetDeviceCount")
        if count == 0:
            raise BackendError("the driver lists none")
        properties = call("cudaGetDeviceProperties", 0)
        driver, library = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
    except MissingExtraError:
        raise
    except BackendError as error:
        raise BackendError(f"no NVIDIA GPU can be used here ({error}): check that nvidia-smi lists one") from None
    return Gpu(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver_version=_version(driver),
        runtime_version=_version(library),
        total_bytes=int(properties.totalGlobalMem),
    )


def driver_release() -> str | None:
    """The release of NVIDIA's driver, as in "580.65.06", if Linux tells it; it needs neither CUDA nor a GPU that works."""
    try:
        with DRIVER_FILE.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read(1000))
    except OSError:
        return None
    return found[1] if found else None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def room_bytes(reserved: int = 0) -> int:
    """Bytes of device memory that may be held: a part of what is free beside ``reserved``, for engines need some to work in.

    Where the GPU shares the host's memory (Jetson), what the system keeps of files there is free, too.
    """
    free, _ = call("cudaMemGetInfo")
    if call("cudaDeviceGetAttribute", import_cuda().cudaDeviceAttr.cudaDevAttrIntegrated, 0):
        free = max(free, _available_bytes())
    return max(0, int(free) - reserved) * HELD_PERCENT // 100


def _available_bytes() -> int:
    """What Linux could give a process without swapping, 0 if it does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


class Memory:
    """Some bytes of device memory, or of page-locked memory of the host; freed by `close`, or when it is collected.

    Raises BackendError, saying how many bytes were asked for, if there are not as many.
    """

    def __init__(self, nbytes: int, on_host: bool = False) -> None:
        allocate, free = ("cudaMallocHost", "cudaFreeHost") if on_host else ("cudaMalloc", "cudaFree")
        try:
            self._address = int(call(allocate, max(1, nbytes)))
        except BackendError as error:
            raise BackendError(
                f"{error} ({nbytes} bytes were asked for): set memory_budget_bytes, or a smaller one"
            ) from None
        self.nbytes = nbytes
        self._free = weakref.finalize(self, _free_silently, free, self._address)
        self._free.atexit = False  # a process that ends gives everything back, and CUDA may be gone by then

    @property
    def address(self) -> int:
        """Where it begins. Raises BackendError once it is freed."""
        if not self._free.alive:
            raise BackendError("this device memory was freed: its engine was closed")
        return self._address

    def close(self) -> None:
        """Free it; whatever is a view of it can no longer be used."""
        self._free()


def _free_silently(name: str, address: Any) -> None:
    # A collector has nobody to tell, and after an error of the device every later call returns it.
    getattr(import_cuda(), name)(address)


class DeviceArray:
    """An array in device memory; ``array[start:stop]`` is a view of a part along axis 0, without a copy.

    The memory is freed when `close` is called on any of its views, or when the last view is collected.
    """

    def __init__(self, memory: Memory, shape: Shape, dtype: np.dtype[Any], offset: int = 0) -> None:
        self._memory, self._offset = memory, offset
        self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> DeviceArray:
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(f"a device array takes a slice without a step along axis 0, got {part!r}")
        start, stop, _ = part.indices(len(self))
        offset = self._offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self._memory, (max(0, stop - start), *self.shape[1:]), self.dtype, offset)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Download it: what `np.asarray` calls."""
        out = np.empty(self.shape, self.dtype)
        with Stream() as stream:
            stream.copy(out.ctypes.data, self.address, self.nbytes, "cudaMemcpyDeviceToHost")
            stream.synchronize()
        return out if dtype is None else out.astype(dtype)

    @property
    def address(self) -> int:
        """Where its first element is. Raises BackendError once the memory is freed."""
        return self._memory.address + self._offset

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def close(self) -> None:
        """Free the memory, for every view of it."""
        self._memory.close()


class Buffer:
    """Memory that grows on demand and is used again and again: on the device, or page-locked on the host."""

    def __init__(self, on_host: bool = False) -> None:
        self._on_host = on_host
        self._memory: Memory | None = None

    def grown_to(self, nbytes: int) -> int:
        """The address of at least so many bytes; growing loses what was in it."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self.close()
            self._memory = Memory(nbytes, self._on_host)
        return self._memory.address

    def viewed(self, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A numpy array over the first bytes of a buffer of the host; grows it first."""
        nbytes = math.prod(shape) * dtype.itemsize
        raw = (ctypes.c_uint8 * nbytes).from_address(self.grown_to(nbytes))
        return np.frombuffer(memoryview(raw), dtype, count=math.prod(shape)).reshape(shape)

    def close(self) -> None:
        """Free it; the next `grown_to` allocates again."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class Stream:
    """A stream: copies and kernels put into it run in order. Not to be shared by threads."""

    def __init__(self) -> None:
        # Without this flag it would wait for whatever the process puts into the default stream.
        stream = call("cudaStreamCreateWithFlags", import_cuda().cudaStreamNonBlocking)
        self.handle = int(stream)
        self._destroy = weakref.finalize(self, _free_silently, "cudaStreamDestroy", stream)
        self._destroy.atexit = False

    def copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        """Copy bytes between addresses, when its turn comes; ``kind`` is a name of cudaMemcpyKind."""
        if nbytes:
            call("cudaMemcpyAsync", target, source, nbytes, getattr(import_cuda().cudaMemcpyKind, kind), self.handle)

    def synchronize(self) -> None:
        """Wait until everything in it is done. Raises BackendError if something in it failed."""
        call("cudaStreamSynchronize", self.handle)

    def record(self, work: Callable[[], None]) -> Recording:
        """What ``work`` puts into this stream, recorded as a CUDA graph instead of being done.

        Raises BackendError if it does what cannot be recorded, and whatever ``work`` raises; the stream is then as before.
        """
        # Of other threads nothing is asked: they may allocate meanwhile.
        call(
            "cudaStreamBeginCapture", self.handle, import_cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # a capture that failed has no graph
                call("cudaGraphDestroy", call("cudaStreamEndCapture", self.handle))
            raise
        graph = call("cudaStreamEndCapture", self.handle)
        try:
            return Recording(call("cudaGraphInstantiate", graph, 0), self)
        finally:
            call("cudaGraphDestroy", graph)

    def close(self) -> None:
        """Give it back."""
        self._destroy()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Recording:
    """Work that was recorded from a stream; each `replay` puts all of it into that stream by one launch."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable, self._stream = executable, stream
        self._destroy = weakref.finalize(self, _free_silently, "cudaGraphExecDestroy", executable)
        self._destroy.atexit = False

    def replay(self) -> None:
        """Do it again, when its turn comes, with the shapes and addresses it was recorded with."""
        call("cudaGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        """Give it back."""
        self._destroy()


class Uploader:
    """Puts arrays into device memory, through page-locked memory that it keeps: to make that takes longer than a few texts
    take to upload. Threads take turns."""

    def __init__(self) -> None:
        self._staging = Buffer(on_host=True)
        self._stream: Stream | None = None
        self._turn = threading.Lock()

    def upload(
        self, tensors: Mapping[str, NDArray[Any]], dtypes: Mapping[str, np.dtype[Any]]
    ) -> dict[str, DeviceArray]:
        """Those arrays that have a dtype given, in device memory and in that dtype. Memory-mapped ones are read part by part.

        They share one allocation: closing one frees them all.
        """
        chosen = {name: (tensors[name], dtype) for name, dtype in dtypes.items() if name in tensors}
        offsets = _offsets([array.size * dtype.itemsize for array, dtype in chosen.values()])
        memory = Memory(offsets.pop())
        uploaded = {
            name: DeviceArray(memory, array.shape, dtype, offset)
            for (name, (array, dtype)), offset in zip(chosen.items(), offsets, strict=True)
        }
        with self._turn:
            self._stream = self._stream or Stream()
            for name, (array, _) in chosen.items():
                _copy(array, uploaded[name], self._stream, self._staging)
        return uploaded

    def close(self) -> None:
        """Free what it keeps; it can go on all the same."""
        with self._turn:
            self._staging.close()
            if self._stream is not None:
                self._stream.close()
                self._stream = None


def _offsets(sizes: Iterable[int]) -> list[int]:
    """Where arrays of so many bytes begin in one allocation, and its size."""
    return list(itertools.accumulate((-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in sizes), initial=0))


def _copy(array: NDArray[Any], target: DeviceArray, stream: Stream, staging: Buffer) -> None:
    row_bytes = max(1, math.prod(target.shape[1:]) * target.dtype.itemsize)
    rows = max(1, STAGING_BYTES // row_bytes)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        staged = staging.viewed(part.shape, target.dtype)
        np.copyto(staged, part, casting="same_kind")
        stream.copy(target.address + start * row_bytes, staged.ctypes.data, staged.nbytes, "cudaMemcpyHostToDevice")
        stream.synchronize()  # the next part is written where this one is read
