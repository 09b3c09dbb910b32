"""Features that only TensorRT-RTX has: a cache of compiled kernels, and CUDA graphs that the library records itself.

TensorRT-RTX compiles kernels on the GPU they run on, at the first run of every process that does not load them from a
cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any

from camp_sdk.runtime.files import cache_folder, write_aside

KERNELS_BYTES_LIMIT = 1 << 30


class RtxConfig:
    """Creates the execution contexts of one engine, and keeps its compiled kernels in the user's cache folder.

    Kernels are not kept in the bundle, because they are programs and a bundle may come from anywhere. Each plan has
    its own file of kernels. The library itself rejects kernels of another GPU, driver or version, and compiles new
    ones.

    Args:
        trt: the TensorRT-RTX module.
        engine: the deserialised engine.
        plan: the content of the plan's file.
        cuda_graphs: whether the library records runs as CUDA graphs and replays them.
    """

    def __init__(self, trt: Any, engine: Any, plan: bytes, cuda_graphs: bool) -> None:
        self._trt, self._cuda_graphs = trt, cuda_graphs
        self._name = f"{hashlib.sha256(plan).hexdigest()}.kernels"
        self._saving = threading.Lock()
        self._kernels = engine.create_runtime_config().create_runtime_cache()
        self._kept = self._read()
        if self._kept and not self._kernels.deserialize(self._kept):
            self._kept = b""

    def _read(self) -> bytes:
        try:
            with (cache_folder() / "kernels" / self._name).open("rb") as file:
                return file.read(KERNELS_BYTES_LIMIT)
        except OSError:
            return b""

    def new_context(self, engine: Any) -> tuple[Any, object]:
        """Create an execution context of the engine.

        Returns:
            The context, None if the library cannot create one; and an object that must live as long as the context.
        """
        config = engine.create_runtime_config()
        config.set_runtime_cache(self._kernels)
        if self._cuda_graphs:
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config), (config, self._kernels)

    def save(self) -> None:
        """Save newly compiled kernels. A failure to write is ignored: the next process compiles the kernels again."""
        with self._saving, contextlib.suppress(OSError):
            found = self._kernels.serialize()
            content = b"" if found is None else bytes(found)
            if content not in (b"", self._kept):
                path = cache_folder() / "kernels" / self._name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with write_aside(path) as aside:
                    aside.write_bytes(content)
                self._kept = content
