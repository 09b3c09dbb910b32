"""Compute results in threads ahead of their use: decode pictures while the network runs, score pairs in parallel."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

CPUS = Path("/sys/devices/system/cpu")
CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of logical cores that this process may use, within its container's quota of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, core_quota() or cores)


def physical_cores() -> int:
    """The number of physical cores that this process may use, or `available_cores` if the system does not report it."""
    if not hasattr(os, "sched_getaffinity"):
        return available_cores()
    files = [CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in os.sched_getaffinity(0)]
    cores = len({file.read_text(encoding="ascii") if file.is_file() else str(file) for file in files})
    return min(cores, core_quota() or cores)


def core_quota() -> int | None:
    """The whole cores that control groups (containers, systemd units) grant this process; None without a quota.

    More threads than that would be stopped for most of each scheduling period, in the middle of their work.
    """
    quotas = [quota for group in _control_groups() if (quota := _quota_of(group)) is not None]
    return max(1, math.floor(min(quotas))) if quotas else None


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control groups and of all groups around them; both versions of the interface."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                mount = CONTROL_GROUPS / controllers
                own = mount / path.strip("/")  # inside a container, this path may be the host's and not exist
                yield from (group for group in (own, *own.parents) if group.is_relative_to(mount))


def _quota_of(group: Path) -> float | None:
    """The cores that one control group grants, as processor time per time; None without a quota."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((group / name).read_text(encoding="ascii") for name in names).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
    return None


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
