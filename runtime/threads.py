"""Work that runs ahead of who needs its results, in threads: pictures are decoded while the network runs, blocks of pairs
are scored side by side."""

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
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """`available_cores`, and what shares one core's arithmetic counted once where the system tells (Linux)."""
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
    """``function`` of every item, in order, computed in threads; at most ``ahead`` items beyond the one that is asked for.

    Items are taken in the caller's thread; one that is ``alone`` is finished before the next is taken. Close the generator
    if it may not be read to its end: what has not begun is then cancelled, and no thread is left.
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
