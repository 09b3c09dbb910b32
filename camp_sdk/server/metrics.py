"""What `/metrics` shows, in a registry of each app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from camp_sdk.server.batching import Done

if TYPE_CHECKING:
    from camp_sdk.server.admission import Admission
    from camp_sdk.server.service import Service, Services

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts requests and work."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, file descriptors, processor time
        path = ["method", "path"]
        self._requests = Counter("camp_requests", "Requests answered.", [*path, "status"], registry=registry)
        self._seconds = Histogram(
            "camp_request_seconds", "Time to answer a request.", path, buckets=SECONDS, registry=registry
        )
        self._pairs = Counter("camp_pairs", "Pairs scored, and 64 for each picture of a request.", registry=registry)
        self._busy = Counter("camp_scoring_seconds", "Time spent scoring.", registry=registry)
        self._batches = Histogram("camp_batch_requests", "Requests in a batch.", buckets=BATCHES, registry=registry)
        self._refusals = Counter("camp_refusals", "Requests refused.", ["reason"], registry=registry)
        self._waiting = Gauge("camp_waiting_pairs", "Pairs that wait or are scored.", registry=registry)
        self._limit = Gauge("camp_waiting_pairs_limit", "The most pairs that may wait.", registry=registry)
        self._ready = Gauge("camp_ready", "1 if the server is ready.", registry=registry)
        self._items = Gauge("camp_items", "Items that are searched.", registry=registry)
        self._loads = Counter("camp_loads", "How often the bundle and the corpus were opened.", registry=registry)
        self._bundle = Info("camp_bundle", "The bundle in use.", registry=registry)

    def watch(self, admission: Admission, services: Services) -> None:
        """Show the state of these whenever metrics are read."""
        self._waiting.set_function(lambda: admission.pairs)
        self._limit.set_function(lambda: admission.limit)
        self._ready.set_function(lambda: float(services.ready))
        self._items.set_function(lambda: services.items)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: Its method.
            path: The template of its path.
            status: The status of the answer.
            seconds: How long it took.
        """
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(method, path).observe(seconds)

    def done(self, done: Done) -> None:
        """Count a batch."""
        self._pairs.inc(done.pairs)
        self._busy.inc(done.seconds)
        self._batches.observe(done.jobs)

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""
        self._refusals.labels(reason).inc()

    def changed(self, service: Service) -> None:
        """Note another service."""
        self._loads.inc()
        manifest = service.retriever.bundle.manifest
        self._bundle.info({"fingerprint": service.retriever.bundle.fingerprint, "variant": manifest.variant})

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)
