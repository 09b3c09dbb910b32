"""Two lanes of work over one processor: requests of few pairs are scored together, those of many give way to them.

Nothing lingers: when the processor is free, what waits is taken at once, and what comes meanwhile makes the next batch.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from camp_sdk.arguments import Advance
from camp_sdk.server.turns import Turns

# Does what several jobs ask for, and returns the result of each, or the error that it raises. It calls the function
# that it is given with the number of pairs in each block that was scored.
Run = Callable[[Sequence[Any], Advance], Sequence[Any]]
SLICES = 8  # of a batch: a large job gives way whenever it has scored so much


class Stopped(Exception):
    """Raised in a job that nobody waits for any more."""


def _nothing(items: Sequence[Any], advance: Advance) -> Sequence[Any]:
    return items


@dataclass(eq=False)
class Job:
    """One request's work.

    Args:
        run: Does it.
        pairs: The number of pairs that it scores at most.
        item: What it asks ``run`` for.
        group: Jobs of the same group may be done in one call of ``run``; None for none.
    """

    run: Run
    pairs: int
    item: Any = None
    group: Hashable = None
    future: Future[Any] = field(default_factory=Future)
    stopped: bool = False
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # of the request, for logs

    def stop(self) -> None:
        """Drop the job if it waits, and stop it if it is a large one that runs."""
        self.stopped = True
        if self.future.cancel():  # it stays in line until the next batch, without what it holds, such as pictures
            self.run, self.item = _nothing, None


@dataclass(frozen=True)
class Done:
    """A batch that was done.

    Args:
        jobs: The number of jobs in it.
        pairs: The number of pairs that were scored.
        seconds: How long that took, without waiting.
    """

    jobs: int
    pairs: int
    seconds: float


class Lanes:
    """Does jobs in two threads that take turns.

    Args:
        batch_pairs: The most pairs of a batch. Jobs with more are done one at a time, in the second lane.
        report: Receives what was done, in the thread that did it.
    """

    def __init__(self, batch_pairs: int, report: Callable[[Done], None]) -> None:
        self.turns = Turns()
        self._batch_pairs = batch_pairs
        self._few = _Lane("few pairs", batch_pairs, self.turns, report)
        self._many = _Lane("many pairs", batch_pairs, self.turns, report)

    def submit(self, job: Job) -> None:
        """Have a job done; its future receives the result."""
        (self._many if job.pairs > self._batch_pairs else self._few).put(job)

    def close(self) -> None:
        """Wait for the jobs that were submitted, and end the threads."""
        for lane in (self._few, self._many):
            lane.close()


class _Lane:
    def __init__(self, name: str, batch_pairs: int, turns: Turns, report: Callable[[Done], None]) -> None:
        self._turns, self._report, self._batch_pairs = turns, report, batch_pairs
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError("the lane is closed")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait():
            with self._turns:  # the batch is chosen now, of all that came while others had their turn
                batch = self._batch()
                if batch:
                    self._do(batch)

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return bool(self._waiting)

    def _batch(self) -> list[Job]:
        """The job that has waited longest, and others of its group up to the limit of pairs."""
        with self._changed:
            batch: list[Job] = []
            left: deque[Job] = deque()
            room = self._batch_pairs
            for job in self._waiting:
                fits = not batch or (job.group is not None and job.group == batch[0].group and job.pairs <= room)
                if not fits:
                    left.append(job)
                elif job.future.set_running_or_notify_cancel():
                    batch.append(job)
                    room -= job.pairs
            self._waiting = left
            return batch

    def _do(self, batch: list[Job]) -> None:
        progress = _Progress(batch, self._turns, max(1, self._batch_pairs // SLICES))
        run, items = batch[0].run, [job.item for job in batch]
        results: Sequence[Any]
        try:
            # The context of a request's task names the request in logs; a batch of several has none.
            results = run(items, progress) if len(batch) > 1 else batch[0].context.run(run, items, progress)
        except Exception as error:
            results = [error] * len(batch)
        self._report(Done(len(batch), progress.pairs, progress.seconds()))
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)


class _Progress:
    """Counts pairs; gives way and stops where that is possible."""

    def __init__(self, batch: list[Job], turns: Turns, slice_pairs: int) -> None:
        self._alone = batch[0] if len(batch) == 1 else None
        self._turns, self._slice = turns, slice_pairs
        self._since, self._waited, self._in_turn = time.monotonic(), 0.0, 0
        self.pairs = 0

    def __call__(self, pairs: int) -> None:
        self.pairs += pairs
        if self._alone is None:
            return
        if self._alone.stopped:
            raise Stopped
        self._in_turn += pairs
        if self._in_turn >= self._slice:
            self._in_turn = 0
            self._waited += self._turns.give_way()

    def seconds(self) -> float:
        return time.monotonic() - self._since - self._waited
