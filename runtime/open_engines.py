"""The engines of one bundle: each graph is opened when it is first needed, and anew in a process that was forked."""

from __future__ import annotations

import threading

from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.forks import watch_forks


class OpenEngines:
    """Opens the graphs of a bundle on one backend; threads may share it.

    The attribute ``backend`` is the name of the backend.

    Args:
        bundle: the bundle that holds the graphs.
        backend: the name of a backend.
        precision: "float32", "float16" or "bfloat16".
        threads: the number of threads that compute on the CPU; None uses every core.
        cuda_graphs: as `open_engine` takes it.
    """

    def __init__(self, bundle: Bundle, backend: str, precision: str, threads: int | None, cuda_graphs: bool) -> None:
        self._bundle, self.backend, self._precision = bundle, backend, precision
        self._threads, self._cuda_graphs = threads, cuda_graphs
        self._engines: dict[tuple[str, str], Engine] = {}
        self._opening = threading.Lock()  # a graph is opened once, even if several threads need it at the same time
        watch_forks(self)

    def __getitem__(self, graph: str) -> Engine:
        """The engine of a graph, opened at the first use.

        Args:
            graph: "image", "text", "scorer", "explainer" or "vision".

        Raises:
            BackendError: the backend cannot open the graph.
            BundleError: the bundle has no such graph, or the graph does not match the manifest.
        """
        return self.opened(graph, self._precision)

    def opened(self, graph: str, precision: str) -> Engine:
        """The engine of a graph in any precision, opened at the first use.

        Args:
            graph: "image", "text", "scorer", "explainer" or "vision".
            precision: "float32", "float16", "bfloat16", "int8" or "float8".

        Raises:
            BackendError: the backend cannot open the graph, or does not compute in this precision.
            BundleError: the bundle has no such graph or precision, or the graph does not match the manifest.
        """
        with self._opening:
            if (graph, precision) not in self._engines:
                self._engines[graph, precision] = open_engine(
                    self._bundle, graph, self.backend, self._threads, precision, self._cuda_graphs
                )
            return self._engines[graph, precision]

    def close(self) -> None:
        """Free all engines; those that are needed later are opened again."""
        with self._opening:
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()

    def forked(self) -> None:
        """Begin without engines: those of the other process cannot run here."""
        self._engines, self._opening = {}, threading.Lock()
