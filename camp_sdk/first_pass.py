"""Rank in two passes: score every item in few bits, and those that may be among the best again in full precision.

The results are the scores of the second pass. The first pass decides only which items get one: those whose coarse logit
is not below the last of the best by more than the error that coarse logits have. The manifest records that error for
the network, as the export measured it. If the second pass finds a larger one, that one counts from then on, so that a
query unlike the examples of the export is scored again more widely rather than wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.backends import TOO_COARSE
from camp_sdk.runtime.scoring import Logits, PairScorer, best, check_finite

Ranked = tuple[NDArray[np.intp], Logits]  # indices and logits of one query's best items, best first
AUTO = "auto"
FULL = "float32"


@dataclass(frozen=True)
class Passes:
    """In what a ranking scores.

    Args:
        precision: The precision of the retriever.
        first: The precision of a first pass, if there is one.
        rescore: What the second pass scores, as `Retriever.rank` takes it.
    """

    precision: str
    first: str | None = None
    rescore: int | str | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The arguments of `Retriever.rank`."""
        return {"precision": self.first, "rescore": self.rescore}


def passes_of(precision: str, rescore: str | None = None) -> Passes:
    """The passes that options ask for.

    Args:
        precision: The precision of the ranking: int8, and any other one with ``rescore``, is that of a first pass.
        rescore: What the second pass scores: a number, or "auto".
    """
    if precision != TOO_COARSE and rescore is None:
        return Passes(precision)
    return Passes(FULL, precision, int(rescore) if rescore and rescore.isdecimal() else rescore)


@dataclass(frozen=True)
class FirstPass:
    """How the first pass scores, and what it leaves to the second.

    Args:
        scorer: Scores pairs in few bits.
        error: The error of its logits that is hardly ever exceeded.
        count: The number of items that each query scores again, those with the best coarse logits; None for as many as
            the error demands.
    """

    scorer: PairScorer
    error: float
    count: int | None = None


def best_in_two_passes(
    coarse: Logits,
    top_k: int,
    exact: Callable[[NDArray[np.intp]], Logits],
    error: float,
    count: int | None = None,
) -> list[Ranked]:
    """Find the best items of some queries.

    Args:
        coarse: Logits of the first pass [Q, M].
        top_k: The most items to find for each query.
        exact: Scores pairs (query, item) [P, 2] in full precision: logits [P].
        error: As `FirstPass` has it.
        count: As `FirstPass` has it.

    Returns:
        For each query, its best items and their logits in full precision; equal logits are in the items' order.

    Raises:
        InputError: A logit is NaN or infinite.
    """
    check_finite(coarse)
    wanted = min(top_k, coarse.shape[1])
    found = np.full(coarse.shape, -np.inf, np.float32)  # logits of the second pass
    # Where no logit is off by more than the error, no item below this one can be among the best.
    again = coarse >= _last_of(coarse, count or wanted) - (0 if count else 2 * error)
    while len(pairs := np.argwhere(again & np.isneginf(found))):
        logits = exact(pairs)
        check_finite(logits)
        found[pairs[:, 0], pairs[:, 1]] = logits
        if count is None:
            again |= coarse >= _last_of(found, wanted) - np.maximum(_largest_error(coarse, found), np.float32(error))
    return [_ranked(row, wanted) for row in found]


def _last_of(logits: Logits, count: int) -> Logits:
    """The smallest of the largest logits of each row, [Q, 1]."""
    count = min(count, logits.shape[1])
    return -np.partition(-logits, count - 1, axis=1)[:, count - 1 : count]


def _largest_error(coarse: Logits, found: Logits) -> Logits:
    """The largest difference between both passes in each query, [Q, 1]."""
    off: Logits = np.abs(np.where(np.isneginf(found), coarse, found) - coarse).max(axis=1, keepdims=True)
    return off


def _ranked(row: Logits, top_k: int) -> Ranked:
    numbers = np.flatnonzero(~np.isneginf(row))
    return best(numbers, row[numbers], top_k)
