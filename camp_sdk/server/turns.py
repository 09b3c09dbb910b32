"""Turns at the processor: threads that compute take them one after another, in the order in which they asked."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType


class Turns:
    """A lock that threads receive in the order in which they asked for it; a context manager."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False

    def __enter__(self) -> None:
        self._take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    @property
    def waiting(self) -> int:
        """The number of threads that wait for a turn."""
        return len(self._waiting)

    def give_way(self) -> float:
        """End this thread's turn if others wait, and wait for another one.

        Returns:
            How long it waited, in seconds.
        """
        if not self._waiting:
            return 0.0
        since = time.monotonic()
        self._end()
        self._take()
        return time.monotonic() - since

    def _take(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def _end(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()  # the turn stays taken: it is that thread's now
            else:
                self._taken = False
