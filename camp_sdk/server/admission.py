"""Backpressure: how many pairs wait, how fast they are scored, and when another request may come."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from camp_sdk.server.problems import Problem

WAITING_S, LEAST_REQUESTS = 1.0, 8  # what may wait unless the settings say otherwise; the larger of the two
LEAST_SCORED = 64  # pairs that are worth measuring, of one batch or of several
REMEMBERED = 0.8  # of the rate so far, when another batch was measured
MAX_RETRY_S = 60
TOO_MANY_PAIRS = "too many pairs are waiting to be scored: try again later"


class Admission:
    """Counts the pairs that wait and run, and refuses more than a limit.

    Args:
        max_pairs: The limit; None for what takes about a second at the rate that was measured, and for at least eight
            requests, however slow they are.
        refused: Is called with the reason when a request is refused.
    """

    def __init__(self, max_pairs: int | None, refused: Callable[[str], None]) -> None:
        self._max_pairs, self._refused = max_pairs, refused
        self._lock = threading.Lock()
        self.pairs = self.requests = 0
        self.rate = 0.0
        self._pairs, self._seconds = 0, 0.0  # of batches that were too small to be measured alone

    @property
    def limit(self) -> int:
        """The most pairs that may wait and run."""
        return int(WAITING_S * self.rate) if self._max_pairs is None else self._max_pairs

    def enter(self, pairs: int) -> None:
        """Count the pairs of a request. One that comes alone is always taken, however many pairs it has.

        Raises:
            Problem: Too many are waiting: status 429.
        """
        with self._lock:
            few = self.requests < (LEAST_REQUESTS if self._max_pairs is None else 1)
            if few or self.pairs + pairs <= self.limit:
                self.pairs += pairs
                self.requests += 1
                return
            wait = self.pairs / self.rate if self.rate else 1.0
        self._refused("pairs")
        raise Problem(429, TOO_MANY_PAIRS, {"Retry-After": str(min(MAX_RETRY_S, max(1, math.ceil(wait))))})

    def leave(self, pairs: int) -> None:
        """Count the pairs of a request no more."""
        with self._lock:
            self.pairs -= pairs
            self.requests -= 1

    def measured(self, pairs: int, seconds: float) -> None:
        """Note how long pairs took."""
        if not pairs:
            return
        with self._lock:
            self._pairs, self._seconds = self._pairs + pairs, self._seconds + seconds
            if self._pairs >= LEAST_SCORED and self._seconds > 0:
                fresh = self._pairs / self._seconds
                self.rate = _mixed(self.rate, fresh) if self.rate else fresh
                self._pairs, self._seconds = 0, 0.0


def _mixed(old: float, new: float) -> float:
    return REMEMBERED * old + (1 - REMEMBERED) * new
