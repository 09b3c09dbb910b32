"""How the GPU benchmark measures: ways to score in turns, block after block, each held against float64. Needs no GPU.

A block is (texts, images): how many of each meet in one measurement.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pairs import MULTIPLY_ADDS, REGIONS, WIDTH, differences

from camp_sdk import BackendError
from camp_sdk.export.bundling.precision_gate import MAX_SCORE_ERROR
from camp_sdk.terminal import progress, stderr

T = TypeVar("T")
Block = tuple[int, int]
Timer = Callable[[Callable[[], object]], float]

WARM_UPS = 3
FEWEST_ROUNDS = 3
BLOCK_LIMIT_S = 8.0  # after so long the rounds of a block end early: slow devices finish, too
HALF_BYTES = 2


@dataclass(frozen=True)
class Way:
    """One way to score: the logits of the first texts against the first images, wherever it leaves them.

    fetch: brings them to the host, [images, texts]. timer: seconds of a call.
    """

    score: Callable[[Block], Any]
    timer: Timer
    fetch: Callable[[Any], NDArray[Any]] = np.asarray


def wall_s(call: Callable[[], object]) -> float:
    """Seconds of a call by the clock: for calls that return when everything is done."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def attempt(
    calls: Mapping[str, Callable[[], T]], on_start: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, T], dict[str, str]]:
    """What each call returns; and, of those that failed, why, in one line. on_start hears which is next."""
    done, failed = {}, {}
    for name, call in calls.items():
        on_start(name)
        try:
            done[name] = call()
        except Exception as error:  # whatever a library raises: the others are measured all the same
            failed[name] = reason_of(error)
    return done, failed


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def measure_case(
    makers: Mapping[str, Callable[[], Way]], exact: NDArray[Any], blocks: Sequence[Block], rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Errors of every way against float64's logits ``exact`` [i, t], and its figures at every block; why others failed."""
    ways, absent = attempt(makers)
    checks = {name: partial(errors_of, way, exact) for name, way in ways.items()}
    rows, wrong = attempt(checks, lambda name: stderr.print(f"  checking {name}"))
    able = {name: ways[name] for name in rows}
    for block in progress(blocks, "texts x images"):
        times, failed = time_block(able, block, rounds)
        for name, row in rows.items():
            figures = {"failed": failed[name]} if name in failed else figures_of(times[name], block)
            row.setdefault("blocks", {})[title_of(block)] = figures
    return rows, absent | wrong


def errors_of(way: Way, exact: NDArray[Any]) -> dict[str, Any]:
    """How far a way's scores are from float64. Raises BackendError if that is further than any precision may be."""
    images, texts = exact.shape
    found = differences(way.fetch(way.score((texts, images))), exact)
    if not found["max_score_error"] <= MAX_SCORE_ERROR:
        raise BackendError(
            f"its scores are off by {found['max_score_error']:.1e}, at most {MAX_SCORE_ERROR:g} is allowed"
        )
    return dict(found)


def time_block(ways: Mapping[str, Way], block: Block, rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every way at a block, in turns, after some that warm it up; and why others failed."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    started = 0.0
    for turn in range(WARM_UPS + rounds):
        if turn == WARM_UPS:
            started = time.monotonic()  # what is compiled in the warm-up takes nothing from the rounds
        working = {n: partial(way.timer, partial(way.score, block)) for n, way in ways.items() if n not in failed}
        seconds, reasons = attempt(working)
        failed |= reasons
        if turn >= WARM_UPS:
            for name, value in seconds.items():
                times[name].append(value)
        if turn + 1 >= WARM_UPS + FEWEST_ROUNDS and time.monotonic() - started > BLOCK_LIMIT_S:
            break
    return times, failed


def figures_of(seconds: Sequence[float], block: Block) -> dict[str, Any]:
    """The figures of a way at a block."""
    median_s = statistics.median(seconds)
    pairs = block[0] * block[1]
    spread = {"min_s": min(seconds), "max_s": max(seconds)}
    return {"pairs_per_s": pairs / median_s, "median_s": median_s, **spread, "repeats": len(seconds)}


def title_of(block: Block) -> str:
    """A block as tables and results name it: texts x images."""
    return " x ".join(map(str, block))


def floors_of(variant: str, words: int, flops: float | None, copied_bytes: float | None) -> dict[str, float | None]:
    """Pairs a second of a device that did nothing but a part of the work, at its own rates (a second); None if not known.

    products: the multiply-adds of `MULTIPLY_ADDS`. copies: the vectors of a pair's regions and words, in half precision,
    once to memory and once back, which only an engine that fuses message, gate and map can go without.
    """
    moved = 2 * HALF_BYTES * (REGIONS + words) * WIDTH
    return {
        "products": None if flops is None else flops / (2 * MULTIPLY_ADDS[variant](words)),
        "copies": None if copied_bytes is None else copied_bytes / moved,
    }
