"""OpenVINO: the faster engine on x86 processors."""

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
    """OpenVINO on one graph file, on the CPU; ``threads`` None takes every core. ``streams`` runs share these cores, each
    with a part of its own: more pairs a second, and a longer wait for a single run.

    It computes in the precision the graph says: in float32 where that says no other. Threads share the compiled graph, each
    run has a request of its own. Raises BackendError if a run fails, or would wait for threads that a fork did not copy.
    """

    block_bytes = 16 << 20  # it passes over intermediates less often than ONNX Runtime

    def __init__(self, path: Path, threads: int | None = None, streams: int = 1) -> None:
        openvino = import_openvino()
        # Left alone, OpenVINO computes float32 graphs in bfloat16 where it is faster.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "NUM_STREAMS": streams}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own types
            raise BundleError(f"OpenVINO cannot open {path}: {error}") from None
        self._path, self.streams, self._process = path, streams, os.getpid()
        # Its own threads compute: with a caller more, one that is done finds the next.
        self.callers = 1 if streams == 1 else streams + 1
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        compiled, idle = self._compiled, self._idle
        if compiled is None:
            raise BackendError(f"OpenVINO cannot run {self._path}: it was closed meanwhile")
        if os.getpid() != self._process:  # its threads are not here, and it would wait for them without an end
            raise BackendError(
                f"OpenVINO cannot run {self._path}: it was opened in another process, before a fork; make the Retriever anew "
                "in each process, or take backend onnxruntime"
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
