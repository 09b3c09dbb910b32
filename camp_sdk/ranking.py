"""Rank encoded images by text and encoded texts by image, with or without a shortlist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.results import Match
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, global_vectors
from camp_sdk.runtime.nearest import nearest, products
from camp_sdk.runtime.scoring import Logits, PairScorer, best, best_images, logit_matrix, pair_logits

Ranked = tuple[NDArray[np.intp], Logits]  # indices and logits of one query's best items, best first
Encoded = EncodedImages | EncodedTexts


class Described(NamedTuple):
    """What a match says of an item, besides its score; the fields are those of `Match`."""

    corpus_id: int
    document: str | None
    key: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Candidates:
    """The items that a query ranks.

    Args:
        encoded: The items.
        describe: What matches say of the items with these indices.
    """

    encoded: Encoded
    describe: Callable[[NDArray[np.intp]], list[Described]]


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

    def _candidates(self, queries: Encoded, items: Encoded) -> NDArray[np.intp] | None:
        """Indices [Q, shortlist] of the items to score for each query; None to score every item."""
        if self.shortlist is None or self.shortlist >= len(items):
            return None
        budget = self.scorer.memory_budget_bytes
        return nearest_items(global_vectors(queries.tensors), items, self.shortlist, budget)


def nearest_items(queries: Logits, items: Encoded, count: int, budget: int | None = None) -> NDArray[np.intp]:
    """The items nearest to each query by global vectors.

    Args:
        queries: Global vectors [Q, d].
        items: The items; at least ``count``.
        count: How many to find.
        budget: The most memory to use, as `nearest` takes it.

    Returns:
        Indices [Q, count], in the order of the items.
    """
    parts, among = items.global_parts()
    near = items.near(queries, count)
    found = nearest(queries, parts, count, budget, among if near is None else near)
    return found if among is None else np.searchsorted(among, found)


def near_items(
    queries: Logits, items: Encoded, count: int, budget: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The items nearest to each query, as `nearest_items` finds them, with their dot products.

    Args:
        queries: As `nearest_items` takes them.
        items: As `nearest_items` takes them.
        count: As `nearest_items` takes it.
        budget: As `nearest_items` takes it.

    Returns:
        Indices and products, each [Q, count], in the order of the items.
    """
    found = nearest_items(queries, items, count, budget)
    parts, among = items.global_parts()
    rows = found if among is None else among[found]
    return found, np.stack([products(query, parts, row) for query, row in zip(queries, rows, strict=True)])


def most_similar(query: Logits, items: Encoded, top_k: int) -> Ranked:
    """The items with the largest dot products of global vectors, best first; equal ones keep the items' order.

    Args:
        query: A global vector [1, d].
        items: The items, at least one.
        top_k: The most items to return.
    """
    numbers, found = (both[0] for both in near_items(query, items, min(top_k, len(items))))
    order = np.argsort(-found, kind="stable")
    return numbers[order], found[order].astype(np.float32)


def matches_of(ranked: Ranked, scores: Logits, described: list[Described], first_rank: int = 1) -> list[Match]:
    """Turn one ranking into matches.

    Args:
        ranked: Indices and logits of the items, best first.
        scores: Their scores, in the same order.
        described: What is said of them, in the same order.
        first_rank: The rank of the first.
    """
    rows = zip(scores.tolist(), ranked[1].tolist(), described, strict=True)
    return [
        Match(one.corpus_id, score, logit, rank, one.document, one.key, one.metadata)
        for rank, (score, logit, one) in enumerate(rows, start=first_rank)
    ]
