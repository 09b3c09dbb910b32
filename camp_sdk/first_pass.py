"""Rank in two passes: score every item in few bits, then rescore in full precision those that may be among the best.

The results are the logits of the second pass. The first pass decides only which items get one: those whose coarse logit
is not below the last of the best by more than the error that coarse logits have. The manifest records that error for
the network, as the export measured it. If the second pass finds a larger one, the query allows for that one from then
on, so that a query unlike the examples of the export is rescored more widely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.lowered import COARSE
from camp_sdk.runtime.scoring import Logits, PairScorer, best, check_finite

Indices = NDArray[np.intp]
Ranked = tuple[Indices, Logits]  # indices and logits of one query's best items, best first
AUTO = "auto"
FULL = "float32"


@dataclass(frozen=True)
class Passes:
    """The precisions of a ranking's passes.

    Args:
        precision: The precision of the retriever, and of the last pass.
        first: The precision of a first pass; None for one pass.
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
        precision: The precision of the ranking. "int8", "float8" and "auto" are those of a first pass, and so is any
            other one with ``rescore``.
        rescore: What the second pass scores: a number, or "auto".
    """
    if precision not in (*COARSE, AUTO) and rescore is None:
        return Passes(precision)
    return Passes(FULL, precision, int(rescore) if rescore and rescore.isdecimal() else rescore)


@dataclass(frozen=True)
class FirstPass:
    """How the first pass scores, and what it leaves to the second.

    Args:
        precision: The precision that it scores in.
        scorer: Scores pairs in that precision.
        error: The error of its logits, which is hardly ever exceeded.
        count: The number of items that each query rescores, those with the best coarse logits; None for as many as the
            error demands.
    """

    precision: str
    scorer: PairScorer
    error: float
    count: int | None = None


def best_in_two_passes(
    coarse: Logits, top_k: int, exact: Callable[[Indices], Logits], error: float, count: int | None = None
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
    chosen = {query: _begin(row, wanted, error, count) for query, row in enumerate(coarse)}
    while chosen:
        pairs = np.concatenate([np.stack([np.full_like(items, query), items], 1) for query, items in chosen.items()])
        logits = exact(pairs)
        check_finite(logits)
        found[pairs[:, 0], pairs[:, 1]] = logits
        more = {} if count else {query: _more(coarse[query], found[query], wanted, error) for query in chosen}
        chosen = {query: items for query, items in more.items() if len(items)}
    return [_ranked(row, wanted) for row in found]


def _begin(coarse: Logits, wanted: int, error: float, count: int | None) -> Indices:
    """The items that one query rescores first."""
    if count:
        return np.sort(best(np.arange(len(coarse)), coarse, count)[0])
    # Where no logit is off by more than the error, no item below this one can be among the best.
    return np.flatnonzero(coarse >= _last_of(coarse, wanted) - 2 * error)


def _more(coarse: Logits, found: Logits, wanted: int, error: float) -> Indices:
    """The items that one query rescores after those that it has; none if no other one can be among the best."""
    scored = ~np.isneginf(found)
    error = max(error, float(np.abs(found[scored] - coarse[scored]).max()))
    items = np.flatnonzero(~scored & (coarse >= _last_of(found, wanted) - error))
    twice = 2 * int(scored.sum())
    if 0 < len(items) < twice // 2:  # as many again, so that a useless first pass takes few rounds
        items = np.flatnonzero(~scored & (coarse >= _last_of(coarse, min(twice, len(coarse)))))
    return items


def _last_of(logits: Logits, count: int) -> float:
    """The smallest of the largest logits."""
    return float(-np.partition(-logits, count - 1)[count - 1])


def _ranked(row: Logits, top_k: int) -> Ranked:
    numbers = np.flatnonzero(~np.isneginf(row))
    return best(numbers, row[numbers], top_k)
