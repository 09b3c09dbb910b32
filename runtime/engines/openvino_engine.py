"""OpenVINO, the faster engine on x86 processors."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camp_sdk.runtime.engines.base import Arrays, Engine, Interface
from camp_sdk.runtime.errors import BackendError, BundleError, MissingExtraError


class OpenVinoEngine(Engine):
    """OpenVINO on one graph file, on the CPU.

    It computes in the precision of the graph, float32 unless the graph contains other types. Threads share the compiled
    graph; each concurrent run has its own inference request.

    Args:
        path: the graph's file.
        threads: the number of threads that compute; None uses every core.
        streams: the number of runs computed in parallel, each on its own part of the threads: more pairs per second,
            but each single run takes longer.

    Raises:
        BackendError: a run fails, or is started in a forked process, where it would wait for threads that do not exist.
        BundleError: OpenVINO cannot open the file.
        MissingExtraError: OpenVINO is not installed.
    """

    block_bytes = 16 << 20  # twice the default: OpenVINO reads and writes intermediates less often than ONNX Runtime

    def __init__(self, path: Path, threads: int | None = None, streams: int = 1) -> None:
        openvino = import_openvino()
        # By default, OpenVINO computes float32 graphs in bfloat16 where that is faster.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "NUM_STREAMS": streams}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BundleError(f"OpenVINO cannot open {path}: {error}") from None
        self._path, self.streams, self._process = path, streams, os.getpid()
        # OpenVINO computes in its own threads. One extra caller keeps a run ready for the next free stream.
        self.callers = 1 if streams == 1 else streams + 1
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        compiled, idle = self._compiled, self._idle
        if compiled is None:
            raise BackendError(f"OpenVINO cannot run {self._path}: it was closed")
        if os.getpid() != self._process:  # a fork does not copy OpenVINO's threads: a run would wait for them forever
            raise BackendError(
                f"OpenVINO cannot run {self._path}: it was opened in another process, before a fork; create a "
                "Retriever in each process, or use backend onnxruntime"
            )
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            outputs = request.infer(dict(feeds), share_inputs=True)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BackendError(f"OpenVINO cannot run {self._path}: {error}") from None
        finally:
            idle.put(request)
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
