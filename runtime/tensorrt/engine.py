"""Run a built engine ("plan") on the GPU, from several threads at once: one code path for TensorRT and TensorRT-RTX."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface, closed_how
from camp_sdk.runtime.errors import BackendError
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.forks import abandon, watch_forks
from camp_sdk.runtime.tensorrt.kernel_cache import RtxConfig
from camp_sdk.runtime.tensorrt.library import here_of, open_library
from camp_sdk.runtime.tensorrt.plans import PlanRecord, find_plan

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "BOOL": "bool"}
UNSUPPORTED = "UNSUPPORTED_CC"  # TensorRT-RTX's name for a GPU that it does not support
MAX_IDLE = 4  # execution contexts kept between runs, however many threads have run at once
Shape = tuple[int, ...]


def plan_here(bundle: Bundle, graph: str, precision: str, backend: str) -> tuple[HeldFile, PlanRecord]:
    """Find the plan of a graph that fits this machine.

    Args:
        bundle: the bundle that holds the engines.
        graph: the graph's name.
        precision: "float32", "float16" or "bfloat16".
        backend: "tensorrt" or "tensorrt-rtx".

    Returns:
        The plan, whose size and SHA-256 have been checked, and its record.

    Raises:
        BackendError: there is no GPU, the library cannot be used, or no plan fits; the message is one line with the
            reason.
        BundleError: the bundle has no such graph or precision.
    """
    open_library(backend)
    cuda.gpu()
    return find_plan(bundle, graph, precision, here_of(backend))


class TensorRtEngine(Engine):
    """A plan on the GPU. Threads share it; each concurrent run has its own execution context, stream and buffers.

    Inputs that `hold` put into device memory are read in place; outputs are copied to the host. Shapes must be within
    the plan's profile.

    Args:
        plan: a file that `plan_here` returned; a plan from elsewhere can crash the process.
        backend: "tensorrt" or "tensorrt-rtx".
        cuda_graphs: record runs of the same shapes as a CUDA graph and replay it, which avoids launching the kernels
            one by one. With TensorRT, inputs that `hold` put into device memory are then copied once more on the
            device.

    Raises:
        BackendError: there is no GPU, the plan cannot be loaded, memory runs out, or a run fails.
    """

    callers = 2  # while one waits for the GPU, the other prepares the next run

    def __init__(self, plan: HeldFile, backend: str, cuda_graphs: bool = False) -> None:
        cuda.gpu()  # raises without a driver; TensorRT would end the process instead of raising an error
        self._plan, self._library = plan.path, open_library(backend)
        trt = self._library.trt
        self._runtime = trt.Runtime(self._library.logger)
        content = plan.read()
        faults = _faults(trt, self._runtime, content)
        self._engine: Any = None if faults else self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            reason = f"{faults}: {self._library.reason()}" if faults else self._library.reason()
            advice = "rebuild it with camp build --force"
            if UNSUPPORTED in faults:
                capability = cuda.gpu().compute_capability
                advice = f"TensorRT-RTX does not run on compute capability {capability}: use another backend"
            raise BackendError(f"{backend} cannot load {plan.path}: {reason}; {advice}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self._inputs = {name: self._dtype(name) for name in names if name in inputs}
        self._outputs = {name: self._dtype(name) for name in names if name not in inputs}
        self._config = RtxConfig(trt, self._engine, content, cuda_graphs) if backend == "tensorrt-rtx" else None
        self._records = cuda_graphs and self._config is None
        self._contexts = 0  # how many have been created
        self._idle: list[_Context] = []  # the longest idle comes first
        self._idle_lock = threading.Lock()
        self._uploader = cuda.Uploader()
        self._forked = False
        watch_forks(self)

    def _dtype(self, name: str) -> np.dtype[Any]:
        found = self._engine.get_tensor_dtype(name).name
        if found not in DTYPES:
            raise BackendError(f"{self._plan}: {name} is of type {found}, expected one of {', '.join(DTYPES)}")
        return np.dtype(DTYPES[found])

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        engine, config = self._engine, self._config
        if engine is None:
            raise BackendError(f"TensorRT cannot run {self._plan}: it was {closed_how(self._forked)}")
        context: _Context | None = None
        try:
            context = self._idle_context(feeds) or self._new_context(engine, config)
            outputs = context.run(feeds, self._inputs, self._outputs)
            if config is not None and context.runs == 1:
                config.save()
        except BaseException as error:
            if context is not None:
                context.close()  # after an error or Ctrl-C, the state of its buffers is unknown
            if isinstance(error, (BackendError, RuntimeError)):  # TensorRT raises RuntimeError
                raise BackendError(f"TensorRT cannot run {self._plan}: {error} ({self._library.reason()})") from None
            raise
        self._give_back(context)
        if self._engine is None:  # another thread closed it during the run
            self._close_idle()
        return outputs

    def _idle_context(self, feeds: Mapping[str, Any] | None = None) -> _Context | None:
        """Take an idle context, None if there is none.

        A context whose last run had the shapes of ``feeds`` is preferred: its shapes are already set, and it may have a
        recording for them. Otherwise the longest idle one is taken.
        """
        with self._idle_lock:
            settled = (k for k, context in enumerate(self._idle) if feeds is not None and context.has_shapes_of(feeds))
            return self._idle.pop(next(settled, 0)) if self._idle else None

    def _give_back(self, context: _Context) -> None:
        """Keep a context for the next run, or close it: each holds memory for the largest inputs."""
        with self._idle_lock:
            kept = len(self._idle) < MAX_IDLE
            if kept:
                self._idle.append(context)
        if not kept:
            context.close()

    def _new_context(self, engine: Any, config: RtxConfig | None) -> _Context:
        context, needed = (engine.create_execution_context(), None) if config is None else config.new_context(engine)
        if context is None:
            raise BackendError("no execution context can be created")
        self._contexts += 1
        return _Context(context, needed, self._records, self._library.errors.clear)

    def hold(self, tensors: Arrays) -> Mapping[str, Any]:
        return tensors | self._uploader.upload(tensors, self._inputs)

    def room_bytes(self) -> int | None:
        """Leaves memory for contexts not yet created: a gallery that took it would make every later run fail."""
        return cuda.room_bytes(max(0, self.callers - self._contexts) * int(self._engine.device_memory_size_v2))

    def close(self) -> None:
        if self._config is not None:
            self._config.save()
        # Set before the idle contexts are closed: a run that ends from now on closes its own context.
        self._engine = self._runtime = self._config = None
        self._close_idle()
        self._uploader.close()

    def forked(self) -> None:
        abandon([self._engine, self._runtime, self._config, *self._idle, self._uploader])
        self._engine = self._runtime = self._config = None
        self._idle, self._idle_lock, self._uploader = [], threading.Lock(), cuda.Uploader()
        self._forked = True

    def _close_idle(self) -> None:
        while (context := self._idle_context()) is not None:
            context.close()

    def interface(self) -> tuple[Interface, Interface]:
        def described(dtypes: Mapping[str, np.dtype[Any]]) -> Interface:
            shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in dtypes}
            return {
                name: (dtypes[name].name, tuple(None if size < 0 else size for size in shape))
                for name, shape in shapes.items()
            }

        return described(self._inputs), described(self._outputs)


def _faults(trt: Any, runtime: Any, plan: bytes) -> str:
    """The reasons why TensorRT-RTX would refuse a plan, by the library's own names; empty if there are none.

    Checked before the plan is opened, because a portable plan does not necessarily support every GPU. TensorRT has no
    such check, so for it the result is always empty.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, found = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return ""
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name for name, flag in flags if int(found) & int(flag)) or "it is invalid here"


class _Context:
    """One execution context with its stream and buffers, for one thread at a time.

    Shapes and addresses are set only when they change, and buffers grow on demand.

    Args:
        context: the library's execution context.
        needed: an object that must live as long as the context.
        records: whether runs are recorded and replayed.
        forget_errors: clears the errors that the library has logged.
    """

    def __init__(self, context: Any, needed: object, records: bool, forget_errors: Callable[[], None]) -> None:
        self._context, self._needed, self._records = context, needed, records
        self._forget_errors = forget_errors
        self._stream = cuda.Stream()
        self._device: dict[str, cuda.Buffer] = {}
        self._host: dict[str, cuda.Buffer] = {}
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._recording: cuda.Recording | None = None
        self._is_settled = False  # the last run had these shapes
        self.runs = 0

    def run(self, feeds: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Arrays:
        changed = [self._set_input(name, feeds[name], dtype) for name, dtype in inputs.items()]
        if any(changed) and (unknown := self._context.infer_shapes()):
            raise BackendError(f"the shapes of {', '.join(unknown)} are not known")
        shapes = {name: self._shape_of(name) for name in outputs} if any(changed) else {}
        self._shapes.update(shapes)
        for name, dtype in outputs.items():
            nbytes = math.prod(self._shapes[name]) * dtype.itemsize
            self._set_address(name, self._buffer(self._device, name).grown_to(nbytes))
        self._execute()
        staged = {name: self._download(name, dtype) for name, dtype in outputs.items()}
        self._stream.synchronize()
        self.runs += 1
        return {name: array.copy() for name, array in staged.items()}

    def has_shapes_of(self, feeds: Mapping[str, Any]) -> bool:
        return all(self._shapes.get(name) == array.shape for name, array in feeds.items())

    def _execute(self) -> None:
        """Enqueue the run: the second run of the same shapes is recorded, and later ones replay the recording.

        TensorRT requires a plain run after shapes have changed. A recording is valid only for the shapes and addresses
        it was made with; the addresses are those of the context's own buffers, which grow only when shapes change.
        """
        if self._records and self._is_settled and self._recording is None:
            try:
                self._recording = self._stream.record(self._enqueue)
            except BackendError:  # some operations cannot be recorded, for example a loop
                self._records = False
                self._forget_errors()  # otherwise the next failure would report them as its reason
        if self._recording is not None:
            self._recording.replay()
        else:
            self._enqueue()
        self._is_settled = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError("the run was refused")

    def _forget_recording(self) -> None:
        self._is_settled = False
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def _set_input(self, name: str, array: Any, dtype: np.dtype[Any]) -> bool:
        """Place an input where the context reads it; returns whether its shape differs from the last run's."""
        if array.dtype != dtype:
            raise BackendError(f"{name} is {array.dtype}, expected {dtype}")
        held = isinstance(array, cuda.DeviceArray)
        if held and array.address % cuda.ALIGNMENT_BYTES == 0 and not self._records:
            self._set_address(name, array.address)
        else:
            self._set_address(name, self._copied(name, array, held))
        if self._shapes.get(name) == array.shape:
            return False
        self._forget_recording()
        if not self._context.set_input_shape(name, array.shape):
            raise BackendError(f"{name} has the shape {array.shape}, which the engine was not built for")
        self._shapes[name] = array.shape
        return True

    def _copied(self, name: str, array: Any, held: bool) -> int:
        """Copy an input into its buffer on the device; returns the buffer's address."""
        target = self._buffer(self._device, name).grown_to(array.nbytes)
        if held:
            self._stream.copy(target, array.address, array.nbytes, "cudaMemcpyDeviceToDevice")
            return target
        staged = self._buffer(self._host, name, on_host=True).viewed(array.shape, array.dtype)
        np.copyto(staged, array)
        self._stream.copy(target, staged.ctypes.data, staged.nbytes, "cudaMemcpyHostToDevice")
        return target

    def _download(self, name: str, dtype: np.dtype[Any]) -> Any:
        staged = self._buffer(self._host, name, on_host=True).viewed(self._shapes[name], dtype)
        self._stream.copy(staged.ctypes.data, self._addresses[name], staged.nbytes, "cudaMemcpyDeviceToHost")
        return staged

    def _shape_of(self, name: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise BackendError(f"{name} has the shape {shape}, which depends on values")
        return shape

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"the address of {name} is refused")
            self._addresses[name] = address

    @staticmethod
    def _buffer(buffers: dict[str, cuda.Buffer], name: str, on_host: bool = False) -> cuda.Buffer:
        return buffers.setdefault(name, cuda.Buffer(on_host))

    def close(self) -> None:
        with contextlib.suppress(BackendError):  # after a device error there is nothing left to wait for
            self._stream.synchronize()
        self._forget_recording()
        self._context = self._needed = None
        self._stream.close()
        for buffer in (*self._device.values(), *self._host.values()):
            buffer.close()
