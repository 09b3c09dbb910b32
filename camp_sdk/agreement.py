"""How rankings in two passes agree with those in one pass, as `camp eval --precision int8` measures it."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camp_sdk.first_pass import FirstPass, best_in_two_passes
from camp_sdk.metrics import MAX_RECALL_K
from camp_sdk.runtime.scoring import best

Matrix = NDArray[np.float32]
QUERIES_AT_ONCE = 64


class TwoPasses(NamedTuple):
    """The arguments of `Retriever.rank` for a ranking in two passes.

    Args:
        precision: The precision of the first pass.
        rescore: The items that the second pass scores: a number, or "auto".
    """

    precision: str
    rescore: int | str | None = None


@dataclass(frozen=True)
class Agreement:
    """Two passes against one, in one direction. Shares are of the queries, in 0..1.

    Args:
        same_best: With the same best item.
        same_ten: With the same ten best items.
        same_order: With the same ten best items in the same order.
        coarse_ten: With the same ten best items after the first pass alone.
        rescored: The mean number of items of a query that the second pass scored.
    """

    same_best: float
    same_ten: float
    same_order: float
    coarse_ten: float
    rescored: float


@dataclass(frozen=True)
class Agreements:
    """Two passes against one.

    Args:
        precision: The precision of the first pass.
        text_to_image: Images ranked by texts.
        image_to_text: Texts ranked by images.
    """

    precision: str
    text_to_image: Agreement
    image_to_text: Agreement

    def as_dict(self) -> dict[str, Any]:
        """The agreements as plain values."""
        return asdict(self)


def agreement(coarse: Matrix, logits: Matrix, first: FirstPass) -> Agreement:
    """Rank the ten best items of some queries in two passes and in one.

    Args:
        coarse: Logits of the first pass [Q, M].
        logits: Logits of the second pass [Q, M].
        first: The first pass.
    """
    rows = []
    for start in range(0, len(logits), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        rows += _compared(coarse[part], logits[part], first)
    return Agreement(*np.mean(rows, axis=0).tolist())


def _compared(coarse: Matrix, logits: Matrix, first: FirstPass) -> list[tuple[float, ...]]:
    again = np.zeros(len(logits))

    def exact(pairs: NDArray[np.intp]) -> Matrix:
        np.add.at(again, pairs[:, 0], 1)
        return logits[pairs[:, 0], pairs[:, 1]]

    top = min(MAX_RECALL_K, logits.shape[1])
    every = np.arange(logits.shape[1])
    rows: list[tuple[float, ...]] = []
    ranked = best_in_two_passes(coarse, top, exact, first.error, first.count)
    for query, (numbers, _) in enumerate(ranked):
        expected, _ = best(every, logits[query], top)
        alone, _ = best(every, coarse[query], top)
        found, wanted = numbers.tolist(), expected.tolist()
        ten, of_coarse = set(found) == set(wanted), set(alone.tolist()) == set(wanted)
        rows.append((found[0] == wanted[0], ten, found == wanted, of_coarse, again[query]))
    return rows


def mean_agreements(found: list[Agreements]) -> Agreements:
    """The means over several folds."""

    def mean(side: str) -> Agreement:
        return Agreement(*np.mean([astuple(getattr(one, side)) for one in found], axis=0).tolist())

    return Agreements(found[0].precision, mean("text_to_image"), mean("image_to_text"))
