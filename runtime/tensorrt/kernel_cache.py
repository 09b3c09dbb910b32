"""What only TensorRT-RTX has: kernels are compiled on the GPU they run on, at the first run of every process that does not
keep them, and CUDA graphs are the library's own."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any

from camp_sdk.runtime.files import cache_folder, write_aside

KERNELS_BYTES_LIMIT = 1 << 30


class RtxConfig:
    """How the execution contexts of one engine are made; the kernels compiled for it are kept in the user's cache folder.

    Not in the bundle: kernels are programs, and a bundle may come from anywhere. A plan has a file of its own. What does not
    fit this GPU, driver or version the library itself refuses, and compiles anew. plan: the content of the plan.
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
        """A new execution context of the engine (None if there can be none), and what must live as long as it does."""
        config = engine.create_runtime_config()
        config.set_runtime_cache(self._kernels)
        if self._cuda_graphs:
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config), (config, self._kernels)

    def save(self) -> None:
        """Keep what was compiled since; where it cannot be kept, the next process compiles it again, and that is all."""
        with self._saving, contextlib.suppress(OSError):
            found = self._kernels.serialize()
            content = b"" if found is None else bytes(found)
            if content not in (b"", self._kept):
                path = cache_folder() / "kernels" / self._name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with write_aside(path) as aside:
                    aside.write_bytes(content)
                self._kept = content
