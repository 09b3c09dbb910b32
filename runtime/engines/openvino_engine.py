"""OpenVINO, the faster engine on x86 processors."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import queue
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.engines.base import Arrays, Engine, Interface, closed_how
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.forks import abandon, watch_forks
from camp_sdk.runtime.graph_file import read_graph

# The number of shapes for which OpenVINO keeps prepared primitives. With its default, a process that gets queries of
# all lengths grows by gigabytes in a day; with none, each query of a new length takes about a fifth longer.
CACHED_SHAPES = 64
# Seconds between two calls of the allocator to return what it keeps of freed buffers, which takes about 10 ms. In 2,000
# rankings of all shapes, it kept 30 to 80 MB.
TRIM_INTERVAL_S = 3.0


class OpenVinoEngine(Engine):
    """OpenVINO on one graph file, on the CPU.

    It computes in the precision of the graph, float32 unless the graph contains other types. Threads share the compiled
    graph; each concurrent run has its own inference request.

    Args:
        graph: the graph's file.
        threads: the number of threads that compute; None uses every core.
        streams: the number of runs computed in parallel, each on its own part of the threads: more pairs per second,
            but each single run takes longer.
        bfloat16: compute what is float32 in the graph in bfloat16, which processors without it do in float32.

    Raises:
        BackendError: a run fails, or is started in a process that inherited the engine by a fork.
        BundleError: the file is not a whole ONNX model, or OpenVINO cannot open it.
        MissingExtraError: OpenVINO is not installed.
    """

    block_bytes = 16 << 20  # twice the default: OpenVINO reads and writes intermediates less often than ONNX Runtime

    def __init__(self, graph: HeldFile, threads: int | None = None, streams: int = 1, bfloat16: bool = False) -> None:
        openvino = import_openvino()
        # By default, OpenVINO computes float32 graphs in bfloat16 where that is faster.
        kind = openvino.Type.bf16 if bfloat16 else openvino.Type.f32
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": kind, "NUM_STREAMS": streams}
        settings["CPU_RUNTIME_CACHE_CAPACITY"] = CACHED_SHAPES
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core, content = openvino.Core(), read_graph(graph)
        try:
            with own_signal_stack():
                self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BundleError(f"OpenVINO cannot open {graph.path}: {' '.join(str(error).split())[:600]}") from None
        self._path, self.streams, self._forked = graph.path, streams, False
        # OpenVINO computes in its own threads. One extra caller keeps a run ready for the next free stream.
        self.callers = 1 if streams == 1 else streams + 1
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._trimmed_at = time.monotonic()
        watch_forks(self)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never opened
            self.close()

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        compiled, idle = self._compiled, self._idle
        if compiled is None:
            raise BackendError(f"OpenVINO cannot run {self._path}: it was {closed_how(self._forked)}")
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            with own_signal_stack():
                outputs = request.infer(dict(feeds), share_inputs=True)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BackendError(f"OpenVINO cannot run {self._path}: {' '.join(str(error).split())[:600]}") from None
        finally:
            if idle.qsize() < self.callers:  # each keeps buffers of its own: do not keep one for every thread there was
                idle.put(request)
        if time.monotonic() > self._trimmed_at + TRIM_INTERVAL_S:
            self._trimmed_at = time.monotonic()
            return_freed_memory()
        return {name: outputs[index] for index, name in enumerate(self._outputs)}

    def close(self) -> None:
        with own_signal_stack():
            self._compiled, self._idle = None, queue.SimpleQueue()

    def forked(self) -> None:
        abandon([self._compiled, self._idle])
        self._compiled, self._idle, self._forked = None, queue.SimpleQueue(), True

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


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextlib.contextmanager
def own_signal_stack() -> Iterator[None]:
    """Give the thread back the stack on which it handles signals.

    OpenVINO sets another one when it opens a graph. After several graphs have been closed in any order, the thread may
    be left with a stack that was freed, and the next signal, such as Ctrl-C, would end the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = _libc(), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def return_freed_memory() -> None:
    """Have the C library return freed memory to the system, where it can (glibc)."""
    trim = getattr(_libc(), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def import_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("openvino", "openvino") from None
    return openvino


def require_bfloat16() -> None:
    """Check that OpenVINO multiplies matrices in bfloat16 on this processor.

    Raises:
        BackendError: it does not.
        MissingExtraError: OpenVINO is not installed.
    """
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this processor does not compute in bfloat16: use precision float32")
