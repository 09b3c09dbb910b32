"""The part of CUDA that the engines need: the device, its memory, staging memory on the host, streams and CUDA graphs.

All calls go through cuda-bindings, whose functions return (error, values...). Device 0 is always used.
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

ALIGNMENT_BYTES = 256  # IExecutionContext::setTensorAddress requires it of every address
STAGING_BYTES = 16 << 20  # uploads are copied in parts of this size through page-locked memory
HELD_PERCENT = 60
MEMORY_FILE = Path("/proc/meminfo")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """The device in use.

    Args:
        name: the product name.
        compute_capability: for example "8.7".
        driver_version: the newest CUDA version that the driver supports, for example "13.0".
        runtime_version: the version of the CUDA runtime library, for example "13.0".
        total_bytes: the size of the device's memory.
    """

    name: str
    compute_capability: str
    driver_version: str
    runtime_version: str
    total_bytes: int


def import_cuda() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingExtraError("cuda-bindings", "tensorrt") from None
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime.

    Args:
        name: the function's name.
        *arguments: its arguments.

    Returns:
        The function's value, or a tuple of its values.

    Raises:
        BackendError: the function failed; the message contains its name and CUDA's description of the error.
        MissingExtraError: cuda-bindings is not installed.
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
    """The device in use.

    Raises:
        BackendError: there is no driver or no device; the message is one line.
        MissingExtraError: cuda-bindings is not installed.
    """
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
    """The release of NVIDIA's driver, for example "580.65.06"; None where Linux does not report one.

    This needs neither CUDA nor a working GPU.
    """
    try:
        with DRIVER_FILE.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read(1000))
    except OSError:
        return None
    return found[1] if found else None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def room_bytes(reserved: int = 0) -> int:
    """Bytes of device memory that galleries may use: a part of the free memory, because engines need the rest.

    Where the GPU shares the host's memory (Jetson), the system's file cache counts as free.

    Args:
        reserved: bytes to subtract from the free memory first.
    """
    free, _ = call("cudaMemGetInfo")
    if call("cudaDeviceGetAttribute", import_cuda().cudaDeviceAttr.cudaDevAttrIntegrated, 0):
        free = max(free, _available_bytes())
    return max(0, int(free) - reserved) * HELD_PERCENT // 100


def _available_bytes() -> int:
    """The memory that Linux could give a process without swapping; 0 if it does not report it."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


class Memory:
    """A block of device memory, or of page-locked host memory; freed by `close`, or when it is garbage-collected.

    Args:
        nbytes: the size of the block.
        on_host: whether it is page-locked host memory.

    Raises:
        BackendError: there is not enough memory; the message contains the number of bytes asked for.
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
        self._free.atexit = False  # an ending process frees everything, and CUDA may be unloaded by then

    @property
    def address(self) -> int:
        """The address of the block.

        Raises:
            BackendError: the block was freed.
        """
        if not self._free.alive:
            raise BackendError("this device memory was freed: its engine was closed")
        return self._address

    def close(self) -> None:
        """Free the block; views of it can no longer be used."""
        self._free()


def _free_silently(name: str, address: Any) -> None:
    # The result is ignored: the garbage collector has no caller to raise to, and after a device error every call fails.
    getattr(import_cuda(), name)(address)


class DeviceArray:
    """An array in device memory; ``array[start:stop]`` is a view of a part along axis 0, without a copy.

    The memory is freed when `close` is called on any of its views, or when the last view is garbage-collected.

    Args:
        memory: the block that contains the array.
        shape: the array's shape.
        dtype: the type of its elements.
        offset: where the array begins in the block, in bytes.
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
        """Copy the array to the host. `np.asarray` calls this."""
        out = np.empty(self.shape, self.dtype)
        with Stream() as stream:
            stream.copy(out.ctypes.data, self.address, self.nbytes, "cudaMemcpyDeviceToHost")
            stream.synchronize()
        return out if dtype is None else out.astype(dtype)

    @property
    def address(self) -> int:
        """The address of the first element.

        Raises:
            BackendError: the memory was freed.
        """
        return self._memory.address + self._offset

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def close(self) -> None:
        """Free the memory of this array and of all other views of it."""
        self._memory.close()


class Buffer:
    """Reusable memory that grows on demand: on the device, or page-locked on the host."""

    def __init__(self, on_host: bool = False) -> None:
        self._on_host = on_host
        self._memory: Memory | None = None

    def grown_to(self, nbytes: int) -> int:
        """Return the address of at least ``nbytes`` bytes. Growing discards the content."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self.close()
            self._memory = Memory(nbytes, self._on_host)
        return self._memory.address

    def viewed(self, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A numpy array over the first bytes of a host buffer, which grows first if it is too small.

        Args:
            shape: the array's shape.
            dtype: the type of its elements.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        raw = (ctypes.c_uint8 * nbytes).from_address(self.grown_to(nbytes))
        return np.frombuffer(memoryview(raw), dtype, count=math.prod(shape)).reshape(shape)

    def close(self) -> None:
        """Free the memory; the next `grown_to` allocates again."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


class Stream:
    """A CUDA stream: copies and kernels that are enqueued in it run in order. Threads must not share one."""

    def __init__(self) -> None:
        # Without this flag, the stream would wait for all work that the process enqueues in the default stream.
        stream = call("cudaStreamCreateWithFlags", import_cuda().cudaStreamNonBlocking)
        self.handle = int(stream)
        self._destroy = weakref.finalize(self, _free_silently, "cudaStreamDestroy", stream)
        self._destroy.atexit = False

    def copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        """Enqueue a copy.

        Args:
            target: the address to copy to.
            source: the address to copy from.
            nbytes: how many bytes to copy.
            kind: a name in cudaMemcpyKind, for example "cudaMemcpyHostToDevice".
        """
        if nbytes:
            call("cudaMemcpyAsync", target, source, nbytes, getattr(import_cuda().cudaMemcpyKind, kind), self.handle)

    def synchronize(self) -> None:
        """Wait until all work in the stream is done.

        Raises:
            BackendError: some of the work failed.
        """
        call("cudaStreamSynchronize", self.handle)

    def record(self, work: Callable[[], None]) -> Recording:
        """Record what ``work`` enqueues in this stream as a CUDA graph, without executing it.

        After an error, the stream is in the same state as before. Exceptions that ``work`` raises are passed on.

        Args:
            work: enqueues copies and kernels in this stream.

        Raises:
            BackendError: ``work`` contains an operation that cannot be recorded.
        """
        # Thread-local mode restricts only this thread: others may allocate memory during the recording.
        call(
            "cudaStreamBeginCapture", self.handle, import_cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # a failed capture has no graph to destroy
                call("cudaGraphDestroy", call("cudaStreamEndCapture", self.handle))
            raise
        graph = call("cudaStreamEndCapture", self.handle)
        try:
            return Recording(call("cudaGraphInstantiate", graph, 0), self)
        finally:
            call("cudaGraphDestroy", graph)

    def close(self) -> None:
        """Destroy the stream."""
        self._destroy()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Recording:
    """Work recorded from a stream as a CUDA graph; each `replay` enqueues all of it in that stream with one launch."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable, self._stream = executable, stream
        self._destroy = weakref.finalize(self, _free_silently, "cudaGraphExecDestroy", executable)
        self._destroy.atexit = False

    def replay(self) -> None:
        """Enqueue the work again, with the shapes and addresses it was recorded with."""
        call("cudaGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        """Destroy the recording."""
        self._destroy()


class Uploader:
    """Copies arrays to device memory through page-locked memory; threads take turns.

    The page-locked memory is kept between uploads, because allocating it takes longer than uploading a few texts.
    """

    def __init__(self) -> None:
        self._staging = Buffer(on_host=True)
        self._stream: Stream | None = None
        self._turn = threading.Lock()

    def upload(
        self, tensors: Mapping[str, NDArray[Any]], dtypes: Mapping[str, np.dtype[Any]]
    ) -> dict[str, DeviceArray]:
        """Copy arrays to device memory; memory-mapped ones are read part by part.

        Args:
            tensors: arrays by name.
            dtypes: the dtype on the device, by name; only arrays with an entry are copied.

        Returns:
            The arrays in device memory by name. They share one allocation: closing one of them frees them all.

        Raises:
            BackendError: there is not enough memory.
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
        """Free the page-locked memory; the next `upload` allocates it again."""
        with self._turn:
            self._staging.close()
            if self._stream is not None:
                self._stream.close()
                self._stream = None


def _offsets(sizes: Iterable[int]) -> list[int]:
    """The offsets at which arrays of these sizes in bytes begin in one allocation; the last one is its total size."""
    return list(itertools.accumulate((-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in sizes), initial=0))


def _copy(array: NDArray[Any], target: DeviceArray, stream: Stream, staging: Buffer) -> None:
    row_bytes = max(1, math.prod(target.shape[1:]) * target.dtype.itemsize)
    rows = max(1, STAGING_BYTES // row_bytes)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        staged = staging.viewed(part.shape, target.dtype)
        np.copyto(staged, part, casting="same_kind")
        stream.copy(target.address + start * row_bytes, staged.ctypes.data, staged.nbytes, "cudaMemcpyHostToDevice")
        stream.synchronize()  # the next part overwrites the staging memory this copy reads
