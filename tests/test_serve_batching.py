"""The lanes of `camp serve`: what waits is done together, much gives way to little, and nothing is done for nobody."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from camp_sdk.arguments import Advance
from camp_sdk.server.admission import Admission
from camp_sdk.server.batching import Done, Job, Lanes, Stopped
from camp_sdk.server.problems import Problem
from camp_sdk.server.turns import Turns

WAIT_S = 20  # for what must happen; it is never waited for in vain


class Recorder:
    """Work that records which items were done together."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def __call__(self, items: Sequence[Any], advance: Advance) -> list[Any]:
        self.batches.append(list(items))
        advance(len(items))
        return [ValueError(item) if item == "bad" else f"done {item}" for item in items]


@pytest.fixture
def done() -> list[Done]:
    return []


@pytest.fixture
def lanes(done: list[Done]) -> Iterator[Lanes]:
    made = Lanes(100, done.append)
    yield made
    made.close()


def submit(lanes: Lanes, *jobs: Job) -> list[Future[Any]]:
    """Submit jobs while somebody has the turn, so that all of them wait."""
    with lanes.turns:
        for job in jobs:
            lanes.submit(job)
    return [job.future for job in jobs]


def test_what_waits_is_done_together_by_group_up_to_the_limit(lanes: Lanes, done: list[Done]) -> None:
    run = Recorder()
    wanted = [("a", 40, 1), ("b", 40, 2), ("c", 40, 1), ("d", 40, 1), ("e", 1, None), ("f", 1, None), ("g", 20, 1)]
    found = submit(lanes, *(Job(run, pairs, name, group) for name, pairs, group in wanted))
    assert [one.result(WAIT_S) for one in found] == [f"done {name}" for name, *_ in wanted]
    assert run.batches == [["a", "c", "g"], ["b"], ["d"], ["e"], ["f"]]
    lanes.close()
    assert [(one.jobs, one.pairs) for one in done] == [(3, 3), (1, 1), (1, 1), (1, 1), (1, 1)]


def test_an_error_is_that_of_its_own_job(lanes: Lanes) -> None:
    run = Recorder()
    good, bad, other = submit(lanes, *(Job(run, 1, name, "group") for name in ("good", "bad", "other")))
    assert run.batches in ([], [["good", "bad", "other"]])
    assert (good.result(WAIT_S), other.result(WAIT_S)) == ("done good", "done other")
    with pytest.raises(ValueError, match="bad"):
        bad.result(WAIT_S)


def test_an_error_of_all_is_that_of_each(lanes: Lanes) -> None:
    def run(items: Sequence[Any], advance: Advance) -> list[Any]:
        raise ValueError("all")

    for one in submit(lanes, Job(run, 1, 1, "group"), Job(run, 1, 2, "group")):
        with pytest.raises(ValueError, match="all"):
            one.result(WAIT_S)
    assert submit(lanes, Job(Recorder(), 1, "next"))[0].result(WAIT_S) == "done next"


def test_a_job_that_nobody_waits_for_is_dropped(lanes: Lanes) -> None:
    run = Recorder()
    jobs = [Job(run, 1, name, "group") for name in "abc"]
    with lanes.turns:
        for job in jobs:
            lanes.submit(job)
        jobs[1].stop()
    assert [jobs[place].future.result(WAIT_S) for place in (0, 2)] == ["done a", "done c"]
    assert run.batches == [["a", "c"]]
    with pytest.raises(CancelledError):
        jobs[1].future.result(WAIT_S)


def test_a_job_that_is_dropped_holds_nothing(lanes: Lanes) -> None:
    item = Recorder()
    job, held = Job(item, 1, item), weakref.ref(item)
    with lanes.turns:
        lanes.submit(job)
        job.stop()
        del item
        assert held() is None


def until(happened: Callable[[], bool], most: int = 1_000_000) -> Iterator[int]:
    """Numbers, until something has happened; it fails if it does not."""
    for number in range(most):
        if happened():
            return
        yield number
    raise AssertionError("it never happened")


def test_a_large_job_gives_way_to_small_ones(lanes: Lanes) -> None:
    began, small = threading.Event(), Job(Recorder(), 1, "small")

    def run(items: Sequence[Any], advance: Advance) -> list[Any]:
        began.set()
        for _ in until(small.future.done):
            advance(50)  # gives way: the small job is done in the meantime, or this never ends
        return ["large"]

    large = Job(run, 1000)
    lanes.submit(large)
    assert began.wait(WAIT_S)
    lanes.submit(small)
    assert small.future.result(WAIT_S) == "done small"
    assert large.future.result(WAIT_S) == "large"


def test_a_large_job_that_runs_is_stopped(lanes: Lanes) -> None:
    began = threading.Event()

    def run(items: Sequence[Any], advance: Advance) -> list[Any]:
        began.set()
        for _ in until(lambda: False):
            advance(1)
        return []

    job = Job(run, 1000)
    lanes.submit(job)
    assert began.wait(WAIT_S)
    job.stop()
    with pytest.raises(Stopped):
        job.future.result(WAIT_S)
    assert submit(lanes, Job(Recorder(), 1000, "next"))[0].result(WAIT_S) == "done next"


def test_turns_are_taken_in_order() -> None:
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=[number]) for number in range(8)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            for _ in until(lambda number=number: turns.waiting > number):
                pass
    for thread in threads:
        thread.join(WAIT_S)
    assert order == list(range(8))
    assert turns.give_way() == 0


def test_pairs_are_admitted_up_to_the_limit() -> None:
    reasons: list[str] = []
    admission = Admission(100, reasons.append)
    admission.enter(1000)  # one that comes alone is taken, whatever its size
    with pytest.raises(Problem) as refused:
        admission.enter(1)
    assert (refused.value.status, refused.value.headers["Retry-After"], reasons) == (429, "1", ["pairs"])
    admission.measured(1000, 10.0)
    with pytest.raises(Problem) as refused:
        admission.enter(1)
    assert refused.value.headers["Retry-After"] == "10"
    admission.leave(1000)
    admission.enter(60)
    admission.enter(40)
    with pytest.raises(Problem):
        admission.enter(1)


def test_without_a_limit_a_second_of_work_or_eight_requests_may_wait() -> None:
    admission = Admission(None, lambda reason: None)
    assert admission.limit == 0
    admission.measured(5000, 1.0)
    assert admission.limit == 5000
    admission.measured(0, 9.0)  # nothing was scored
    admission.measured(1, 1.0)  # too few to say anything alone
    assert admission.limit == 5000
    for _ in range(8):
        admission.enter(9000)
    with pytest.raises(Problem):
        admission.enter(1)


def test_batches_of_few_pairs_are_measured_together() -> None:
    admission = Admission(None, lambda reason: None)
    for _ in range(8):
        assert admission.limit == 0
        admission.measured(8, 0.5)
    assert admission.limit == 16
