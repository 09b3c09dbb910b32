"""Rankings over shards: what each of them finds becomes one ranking, as one process with all parts would have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from camp_sdk.cluster.shard import Found, Near, Numbers, Scored, Where
from camp_sdk.results import FloatArray
from camp_sdk.runtime.encoded import EncodedTexts, global_vectors


class Shards(Protocol):
    """Shards, wherever they are."""

    def call(self, method: str, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        """Call a method of several shards at the same time.

        Args:
            method: The name of a method of `Shard`.
            arguments: Its arguments for each shard, by the shard's number.

        Returns:
            The result of each shard; one that failed, or took too long, is missing.
        """

    @property
    def numbers(self) -> range:
        """The numbers of all shards."""

    def close(self) -> None:
        """Close what this process holds of them."""


@dataclass(frozen=True)
class Search:
    """A search of all parts.

    Args:
        top_k: The most items of a ranking.
        shortlist: The number of items to score for each text; None for all.
        where: Conditions on metadata.
    """

    top_k: int
    shortlist: int | None = None
    where: Where = None


@dataclass(frozen=True)
class Merged:
    """What shards found.

    Args:
        rankings: The best items of each text, best first; equal logits are in the order of the keys.
        missing: The numbers of shards without an answer, whose items are missing.
        all_scored: Whether every item was scored, as the shortlist was as long.
        pairs: The number of pairs that were scored.
    """

    rankings: list[list[Found]]
    missing: frozenset[int] = frozenset()
    all_scored: bool = True
    pairs: int = 0


def rank_texts(shards: Shards, texts: EncodedTexts, search: Search) -> Merged:
    """Rank all items by several texts.

    Args:
        shards: The shards.
        texts: Q texts.
        search: The search.
    """
    if search.shortlist is None:
        found = shards.call("rank", dict.fromkeys(shards.numbers, (texts, search.top_k, search.where)))
        best, pairs = _best_scored(found, len(texts), search.top_k)
        return Merged(best, frozenset(shards.numbers) - found.keys(), pairs=pairs)
    vectors = global_vectors(texts.tensors)
    near = shards.call("nearest", dict.fromkeys(shards.numbers, (vectors, search.shortlist, search.where)))
    chosen = nearest_of_all(near, len(texts), search.shortlist)
    # A shard with none of the nearest is not asked again.
    asked = {
        n: (texts, own, search.top_k) for n, own in chosen.items() if any(len(row) for part in own for row in part)
    }
    found = shards.call("score", asked)
    answered = near.keys() - (asked.keys() - found.keys())
    candidates = sum(one.numbers.shape[1] for parts in near.values() for one in parts)
    missing = frozenset(shards.numbers) - answered
    best, pairs = _best_scored(found, len(texts), search.top_k)
    return Merged(best, missing, candidates <= search.shortlist, pairs)


def rank_similar(shards: Shards, vector: FloatArray, search: Search) -> Merged:
    """Rank all items by their likeness to a picture.

    Args:
        shards: The shards.
        vector: The global vector of the picture [1, d].
        search: The search; its shortlist does not matter.
    """
    found = shards.call("similar", dict.fromkeys(shards.numbers, (vector, search.top_k, search.where)))
    listed = {number: [items] for number, items in found.items()}
    return Merged(_best(listed, 1, search.top_k), frozenset(shards.numbers) - found.keys())


def nearest_of_all(near: Mapping[int, Sequence[Near]], texts: int, count: int) -> dict[int, list[list[Numbers]]]:
    """The nearest items of all shards for each text.

    Args:
        near: The nearest items of each part of each shard.
        texts: The number of texts.
        count: The most items for each text.

    Returns:
        The numbers of the items, for each shard, part and text. Items with equal products are taken in the order of
        shards, parts and numbers.
    """
    parts = [(shard, part, one) for shard, found in sorted(near.items()) for part, one in enumerate(found)]
    chosen: dict[int, list[list[Numbers]]] = {shard: [[] for _ in found] for shard, found in near.items()}
    for text in range(texts):
        products = [one.products[text] for _, _, one in parts]
        sizes = np.cumsum([len(row) for row in products])[:-1]
        every = np.concatenate(products) if products else np.empty(0)
        kept = np.zeros(len(every), np.bool_)
        kept[np.argsort(-every, kind="stable")[:count]] = True
        for (shard, part, one), own in zip(parts, np.split(kept, sizes), strict=True):
            chosen[shard][part].append(one.numbers[text][own])
    return chosen


def _best_scored(found: Mapping[int, Scored], texts: int, top_k: int) -> tuple[list[list[Found]], int]:
    rankings = {number: scored.rankings for number, scored in found.items()}
    return _best(rankings, texts, top_k), sum(scored.pairs for scored in found.values())


def _best(found: Mapping[int, Sequence[Sequence[Found]]], texts: int, top_k: int) -> list[list[Found]]:
    merged = [[one for shard in found.values() for one in shard[text]] for text in range(texts)]
    return [sorted(items, key=lambda one: (-one.logit, one.item.key))[:top_k] for items in merged]
