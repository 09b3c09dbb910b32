"""The measuring loop of the GPU benchmark. It needs no GPU itself.

Scoring methods take turns, block after block, and each is checked against float64. A block is (texts, images): how many
texts are scored against how many images in one measurement.
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
from pairs import MULTIPLY_ADDS
from pairs_networks import REGIONS, WIDTH, differences

from camp_sdk import BackendError
from camp_sdk.export.bundling.precision_gate import MAX_SCORE_ERROR
from camp_sdk.terminal import progress, stderr

T = TypeVar("T")
Block = tuple[int, int]
Timer = Callable[[Callable[[], object]], float]

WARM_UPS = 3
MIN_ROUNDS = 3
BLOCK_LIMIT_S = 8.0  # the rounds of a block end early after this time, so that slow devices finish too
HALF_BYTES = 2


@dataclass(frozen=True)
class Method:
    """One way to score pairs.

    Args:
        score: computes the logits of a block, the first texts against the first images; may leave them on the device.
        timer: returns the seconds of a call.
        fetch: copies the result of ``score`` to the host, [images, texts].
    """

    score: Callable[[Block], Any]
    timer: Timer
    fetch: Callable[[Any], NDArray[Any]] = np.asarray


def wall_s(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, for calls that return only when all their work is done."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def attempt(
    calls: Mapping[str, Callable[[], T]], on_start: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, T], dict[str, str]]:
    """Make several calls, and continue when one fails.

    Args:
        calls: calls by their name.
        on_start: receives the name of each call before it starts.

    Returns:
        The results of the calls that succeeded; and, for each call that failed, the reason in one line.
    """
    done, failed = {}, {}
    for name, call in calls.items():
        on_start(name)
        try:
            done[name] = call()
        except Exception as error:  # libraries raise anything; the other calls are still made
            failed[name] = reason_of(error)
    return done, failed


def reason_of(error: Exception) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def measure_case(
    makers: Mapping[str, Callable[[], Method]], exact: NDArray[Any], blocks: Sequence[Block], rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check every method against float64, and time it at every block.

    Args:
        makers: open each method, by its name.
        exact: logits of the first images and texts in float64, [i, t].
        blocks: the blocks to time.
        rounds: timed calls per block.

    Returns:
        The errors and figures of each method; and the reason for each method that failed to open or scored wrongly.
    """
    methods, absent = attempt(makers)
    checks = {name: partial(errors_of, method, exact) for name, method in methods.items()}
    rows, wrong = attempt(checks, lambda name: stderr.print(f"  checking {name}"))
    accurate = {name: methods[name] for name in rows}
    for block in progress(blocks, "texts x images"):
        times, failed = time_block(accurate, block, rounds)
        for name, row in rows.items():
            figures = {"failed": failed[name]} if name in failed else figures_of(times[name], block)
            row.setdefault("blocks", {})[title_of(block)] = figures
    return rows, absent | wrong


def errors_of(method: Method, exact: NDArray[Any]) -> dict[str, Any]:
    """How far a method's scores are from float64.

    Raises:
        BackendError: the scores are further off than is allowed for any precision.
    """
    images, texts = exact.shape
    found = differences(method.fetch(method.score((texts, images))), exact)
    if not found["max_score_error"] <= MAX_SCORE_ERROR:
        raise BackendError(
            f"its scores are off by {found['max_score_error']:.1e}, at most {MAX_SCORE_ERROR:g} is allowed"
        )
    return dict(found)


def time_block(
    methods: Mapping[str, Method], block: Block, rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time every method at one block; the methods take turns, and warm-up calls come first.

    Returns:
        The seconds of each timed call, by method; and the reason for each method that failed.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    failed: dict[str, str] = {}
    started = 0.0
    for turn in range(WARM_UPS + rounds):
        if turn == WARM_UPS:
            started = time.monotonic()  # compilation during the warm-up does not count against BLOCK_LIMIT_S
        working = {
            name: partial(method.timer, partial(method.score, block))
            for name, method in methods.items()
            if name not in failed
        }
        seconds, reasons = attempt(working)
        failed |= reasons
        if turn >= WARM_UPS:
            for name, value in seconds.items():
                times[name].append(value)
        if turn + 1 >= WARM_UPS + MIN_ROUNDS and time.monotonic() - started > BLOCK_LIMIT_S:
            break
    return times, failed


def figures_of(seconds: Sequence[float], block: Block) -> dict[str, Any]:
    """Rate, median, spread and number of repeats of a method at a block."""
    median_s = statistics.median(seconds)
    pairs = block[0] * block[1]
    spread = {"min_s": min(seconds), "max_s": max(seconds)}
    return {"pairs_per_s": pairs / median_s, "median_s": median_s, **spread, "repeats": len(seconds)}


def title_of(block: Block) -> str:
    """A block's name in tables and results: texts x images."""
    return " x ".join(map(str, block))


def peaks_of(variant: str, words: int, flops: float | None, copied_bytes: float | None) -> dict[str, float | None]:
    """Peak pairs per second: the rate of a device that did one part of the work and nothing else.

    Args:
        variant: the network's variant.
        words: words per caption.
        flops: the device's own rate of half-precision products in FLOP/s, None if unknown.
        copied_bytes: the device's own rate of copies in bytes per second, None if unknown.

    Returns:
        Two peaks, None where the device's rate is unknown. "products" counts only the multiply-adds of `MULTIPLY_ADDS`.
        "copies" counts only the vectors of a pair's regions and words in half precision, written to memory once and
        read once; only an engine that fuses message, gate and map can avoid these copies.
    """
    moved = 2 * HALF_BYTES * (REGIONS + words) * WIDTH
    return {
        "products": None if flops is None else flops / (2 * MULTIPLY_ADDS[variant](words)),
        "copies": None if copied_bytes is None else copied_bytes / moved,
    }
