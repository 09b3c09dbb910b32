"""From a request to its answer: admitted, done in a lane or a thread, and stopped when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from camp_sdk.arguments import Advance
from camp_sdk.server.admission import Admission
from camp_sdk.server.batching import Done, Job, Lanes, Run
from camp_sdk.server.metrics import Metrics
from camp_sdk.server.problems import CLIENT_GONE, Problem
from camp_sdk.server.service import Service, Services
from camp_sdk.server.settings import Settings

T = TypeVar("T")
MAX_WRITES = 64  # that wait for the one before them
MAX_READS = 512  # that wait, such as thumbnails of several pages
GOES_ON = "is not waited for: a change that has begun is made all the same"
READERS = 4  # threads that read files and the index


@dataclass(frozen=True)
class Work:
    """What a request asks for.

    Args:
        run: Does it, as in `Job`.
        pairs: The most pairs that it scores.
        item: What it asks ``run`` for.
        group: As in `Job`.
    """

    run: Run
    pairs: int = 1
    item: Any = None
    group: Hashable = None


class Dispatcher:
    """Does the work of requests.

    Args:
        settings: The settings.
        metrics: Counts what is done.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._time_limit, self._metrics = settings.time_limit, metrics
        self.admission = Admission(settings.max_waiting_pairs, metrics.refused)
        self.lanes = Lanes(settings.batch_pairs, self._done)
        self.services = Services(settings, self.lanes.turns, metrics.changed)
        self._writer = ThreadPoolExecutor(1, "writer")
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._reads = self._writes = 0
        metrics.watch(self.admission, self.services)

    async def score(self, request: Request, service: Service, work: Work) -> Any:
        """Have work done that computes.

        Args:
            request: The request.
            service: What it uses, which stays open until the work has ended.
            work: The work.

        Raises:
            Problem: Too much is waiting (429), it took too long (504), or the client is gone.
        """
        self.admission.enter(work.pairs)
        job = Job(work.run, work.pairs, work.item, work.group)
        service.retain()
        job.future.add_done_callback(lambda _: self._left(service, work.pairs))
        self.lanes.submit(job)
        try:
            return await self._result(request, job.future)
        finally:
            job.stop()

    async def compute(self, request: Request, service: Service, run: Callable[[Advance], T], pairs: int = 1) -> T:
        """Have a function called that computes and is not batched; it calls what it is given, as in `Job`."""
        found: T = await self.score(request, service, Work(lambda items, advance: [run(advance)], pairs))
        return found

    async def write(self, request: Request, service: Service, run: Callable[[], T]) -> T:
        """Have a function called that changes the index: one after another.

        Raises:
            Problem: As `score` raises it.
        """
        if self._writes >= MAX_WRITES:
            self._metrics.refused("writes")
            raise Problem(429, "too many changes are waiting: try again later", {"Retry-After": "1"})
        self._writes += 1
        service.retain()
        try:
            future = self._writer.submit(run)
            future.add_done_callback(lambda _: service.release())
            return await self._result(request, future)
        finally:
            self._writes -= 1

    async def read(self, request: Request, run: Callable[[], T]) -> T:
        """Have a function called that reads files or the index, in a thread.

        Raises:
            Problem: As `score` raises it.
        """
        if self._reads >= MAX_READS:
            self._metrics.refused("reads")
            raise Problem(429, "too much is waiting to be read: try again later", {"Retry-After": "1"})
        self._reads += 1
        try:
            return await self._result(request, self._readers.submit(run))
        finally:
            self._reads -= 1

    def close(self) -> None:
        """Wait for what was begun, and close everything."""
        self._writer.shutdown()
        self._readers.shutdown()
        self.lanes.close()
        self.services.close()

    async def _result(self, request: Request, future: Future[T]) -> T:
        waited = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_gone(request))
        both: set[asyncio.Future[Any]] = {waited, gone}
        try:
            done, _ = await asyncio.wait(both, timeout=self._time_limit, return_when=asyncio.FIRST_COMPLETED)
            if waited in done:
                return waited.result()
            if gone in done:
                gone.result()  # raises what is wrong with the body, if that is why it ended
                raise Problem(CLIENT_GONE, "the client closed the connection")
            self._metrics.refused("time")
            ending = "was dropped" if future.cancel() else GOES_ON
            raise Problem(504, f"this took longer than {self._time_limit:g} s and {ending}")
        finally:
            gone.cancel()
            waited.cancel()

    def _left(self, service: Service, pairs: int) -> None:
        self.admission.leave(pairs)
        service.release()

    def _done(self, done: Done) -> None:
        self.admission.measured(done.pairs, done.seconds)
        self._metrics.done(done)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
