"""Compute results in threads ahead of their use: decode pictures while the network runs, score pairs in parallel."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TypeVar

CPUS = Path("/sys/devices/system/cpu")
Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """The number of physical cores that this process may use, or `available_cores` if the system does not report it."""
    if not hasattr(os, "sched_getaffinity"):
        return available_cores()
    files = [CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in os.sched_getaffinity(0)]
    return len({file.read_text(encoding="ascii") if file.is_file() else str(file) for file in files})


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    alone: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result, None, None]:
    """Apply a function to items in threads, and yield the results in order.

    Items are read in the caller's thread. Close the generator if it may not be read to its end: calls that have not
    begun are then cancelled, and no thread is left running.

    Args:
        function: the function to apply.
        items: its arguments.
        threads: the number of threads.
        ahead: the most items that are computed ahead of the one whose result is yielded next.
        alone: whether an item must be finished before the next one is read.

    Yields:
        The result of each item.
    """
    from concurrent.futures import Future, ThreadPoolExecutor, wait

    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, "camp-sdk")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if alone(item):
                wait([pending[-1]])
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
