"""Rank encoded images by text and encoded texts by image, with or without a shortlist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.results import Match
from camp_sdk.runtime.contract import GLOBAL_SUFFIX
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.scoring import Logits, PairScorer, best, best_images, logit_matrix, nearest, pair_logits

Ranked = tuple[NDArray[np.intp], Logits]  # indices and logits of one query's best items, best first


@dataclass(frozen=True)
class Ranker:
    """Ranks items by the logits of a scorer.

    Args:
        scorer: Scores pairs.
        top_k: The most items in a ranking.
        shortlist: The number of items scored for each query, the nearest by global vector; None scores all items.
        on_progress: Receives the number of pairs in each block that was scored.
    """

    scorer: PairScorer
    top_k: int
    shortlist: int | None
    on_progress: Advance

    def images(self, queries: EncodedTexts, images: EncodedImages) -> Iterator[Ranked]:
        """The best images of each text; equal logits keep the gallery's order."""
        candidates = self._candidates(queries, images)  # [T, shortlist]
        if candidates is None:
            yield from zip(*best_images(self.scorer, images, queries, self.top_k, self.on_progress), strict=True)
            return
        count = candidates.shape[1]
        pairs = np.stack([candidates.ravel(), np.arange(len(queries)).repeat(count)], axis=1)  # [T * shortlist, 2]
        logits = pair_logits(self.scorer, images, queries, pairs, self.on_progress).reshape(len(queries), count)
        for numbers, row in zip(candidates, logits, strict=True):
            yield best(numbers, row, self.top_k)

    def texts(self, query: EncodedImages, texts: EncodedTexts) -> Ranked:
        """The best texts of one image; equal logits keep the gallery's order."""
        candidates = self._candidates(query, texts)  # [1, shortlist]
        numbers = np.arange(len(texts)) if candidates is None else candidates[0]
        chosen = texts if candidates is None else texts.select(numbers)
        return best(numbers, logit_matrix(self.scorer, query, chosen, self.on_progress)[0], self.top_k)

    def _candidates(
        self, queries: EncodedImages | EncodedTexts, items: EncodedImages | EncodedTexts
    ) -> NDArray[np.intp] | None:
        """Indices [Q, shortlist] of the items to score for each query; None to score every item."""
        if self.shortlist is None or self.shortlist >= len(items):
            return None
        vectors = global_vectors(queries), global_vectors(items)
        return nearest(*vectors, self.shortlist, self.scorer.memory_budget_bytes)


def global_vectors(encoded: EncodedImages | EncodedTexts) -> Logits:
    """The global vectors [I, d] or [T, d] of encoded items; the caller has checked that there are some."""
    return next(array for name, array in encoded.tensors.items() if name.endswith(GLOBAL_SUFFIX))


def matches_of(ranked: Ranked, scores: Logits, documents: Sequence[str | None]) -> list[Match]:
    """Turn one ranking into matches.

    Args:
        ranked: Indices and logits of the items, best first.
        scores: Their scores, in the same order.
        documents: The name of each item of the gallery, in the gallery's order.
    """
    rows = zip(ranked[0].tolist(), scores.tolist(), ranked[1].tolist(), strict=True)
    return [
        Match(number, score, logit, rank, documents[number])
        for rank, (number, score, logit) in enumerate(rows, start=1)
    ]
