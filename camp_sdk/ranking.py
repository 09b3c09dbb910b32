"""Rank encoded images by text and encoded texts by image, with or without a shortlist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.first_pass import FirstPass, Ranked, best_in_two_passes
from camp_sdk.results import Match
from camp_sdk.runtime.blocks import batches
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, global_vectors
from camp_sdk.runtime.nearest import nearest, products
from camp_sdk.runtime.scoring import Logits, PairScorer, best, best_images, logit_matrix, pair_logits

Encoded = EncodedImages | EncodedTexts
QUERIES_AT_ONCE = 64  # of which all coarse logits are in memory
COARSE_BYTES = 64  # of a query and an item: logits of both passes, and what is computed from them
TWO_PASSES_BYTES = 256 << 20  # for these, without a memory budget


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
        on_progress: Receives the number of pairs in each block that was scored; 0 for one of a second pass.
        first_pass: Scores all items first, and decides which ones the scorer scores; None if it scores all.
    """

    scorer: PairScorer
    top_k: int
    shortlist: int | None
    on_progress: Advance
    first_pass: FirstPass | None = None

    def images(self, queries: EncodedTexts, images: EncodedImages) -> Iterator[Ranked]:
        """The best images of each text; equal logits keep the gallery's order."""
        candidates = self._candidates(queries, images)  # [T, shortlist]
        if self.first_pass is not None:
            yield from self._images_in_two_passes(self.first_pass, queries, images, candidates)
            return
        if candidates is None:
            yield from zip(*best_images(self.scorer, images, queries, self.top_k, self.on_progress), strict=True)
            return
        for numbers, row in zip(candidates, self._scored(self.scorer, queries, images, candidates), strict=True):
            yield best(numbers, row, self.top_k)

    def _scored(
        self, scorer: PairScorer, texts: EncodedTexts, images: EncodedImages, chosen: NDArray[np.intp]
    ) -> Logits:
        """Logits of the images chosen for each text, [T, M]."""
        pairs = np.stack([chosen.ravel(), np.arange(len(texts)).repeat(chosen.shape[1])], axis=1)  # [T * M, 2]
        return pair_logits(scorer, images, texts, pairs, self.on_progress).reshape(chosen.shape)

    def _images_in_two_passes(
        self, first: FirstPass, queries: EncodedTexts, images: EncodedImages, candidates: NDArray[np.intp] | None
    ) -> Iterator[Ranked]:
        items = len(images) if candidates is None else candidates.shape[1]
        budget = self.scorer.memory_budget_bytes
        room = TWO_PASSES_BYTES if budget is None else min(budget // 2, TWO_PASSES_BYTES)
        at_once = max(1, min(QUERIES_AT_ONCE, room // (COARSE_BYTES * items)))
        found: dict[int, Ranked] = {}
        for group in batches(np.argsort(queries.lengths, kind="stable"), at_once):
            texts, chosen = queries.select(group), None if candidates is None else candidates[group]
            if chosen is None:
                coarse = logit_matrix(first.scorer, images, texts, self.on_progress).T
            else:
                coarse = self._scored(first.scorer, texts, images, chosen)
            exact = partial(self._exact, texts, images, chosen)
            ranked = best_in_two_passes(coarse, self.top_k, exact, first.error, first.count)
            for row, (text, (places, logits)) in enumerate(zip(group.tolist(), ranked, strict=True)):
                found[text] = places if chosen is None else chosen[row, places], logits
        yield from (found[text] for text in range(len(queries)))

    def _exact(
        self, texts: EncodedTexts, images: EncodedImages, chosen: NDArray[np.intp] | None, pairs: NDArray[np.intp]
    ) -> Logits:
        """Logits [P] of pairs (text, place among its chosen images) [P, 2]; None for all images."""
        numbers = pairs[:, 1] if chosen is None else chosen[pairs[:, 0], pairs[:, 1]]
        return pair_logits(self.scorer, images, texts, np.stack([numbers, pairs[:, 0]], axis=1), self._on_rescored)

    def _on_rescored(self, pairs: int) -> None:
        self.on_progress(0)  # whoever counts may stop it

    def texts(self, query: EncodedImages, texts: EncodedTexts) -> Ranked:
        """The best texts of one image; equal logits keep the gallery's order."""
        candidates = self._candidates(query, texts)  # [1, shortlist]
        numbers = np.arange(len(texts)) if candidates is None else candidates[0]
        chosen = texts if candidates is None else texts.select(numbers)
        first = self.first_pass
        if first is None:
            return best(numbers, logit_matrix(self.scorer, query, chosen, self.on_progress)[0], self.top_k)

        def exact(pairs: NDArray[np.intp]) -> Logits:
            found: Logits = logit_matrix(self.scorer, query, chosen.select(pairs[:, 1]), self._on_rescored)[0]
            return found

        coarse = logit_matrix(first.scorer, query, chosen, self.on_progress)  # [1, M]
        ((places, logits),) = best_in_two_passes(coarse, self.top_k, exact, first.error, first.count)
        return numbers[places], logits

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
