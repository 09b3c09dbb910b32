"""A shard: some parts of an index, in one process, and what it does of a search of all parts.

A shortlist is that of all parts together: each shard finds the nearest of its items, and scores those of them that are
among the nearest of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import silent
from camp_sdk.first_pass import Ranked
from camp_sdk.index.items import IndexItem
from camp_sdk.index.snapshot import Snapshot
from camp_sdk.index.where import Condition, compile_where
from camp_sdk.ranking import Ranker, most_similar, near_items
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.scoring import best, pair_logits

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
Where = Mapping[str, Any] | None


class Near(NamedTuple):
    """The nearest items of one part, for each of Q queries.

    Args:
        numbers: The numbers of the items [Q, count].
        products: Their dot products with the query [Q, count].
    """

    numbers: Numbers
    products: NDArray[np.float64]


class Found(NamedTuple):
    """An item of a ranking.

    Args:
        logit: Its logit; by global vectors, the dot product.
        item: The item.
    """

    logit: float
    item: IndexItem


class Scored(NamedTuple):
    """What a shard scored.

    Args:
        rankings: Its best items for each text.
        pairs: The number of pairs that were scored.
    """

    rankings: list[list[Found]]
    pairs: int


class Shard:
    """Some parts of an index.

    Args:
        retriever: The retriever that reads them.
        paths: The index of each part; one that is not there is empty.
    """

    def __init__(self, retriever: Retriever, paths: Sequence[Path]) -> None:
        self._model, self._open = retriever.model, ExitStack()
        try:
            there = [path for path in paths if path.exists()]
            self._indexes = [self._open.enter_context(retriever.open_index(path)) for path in there]
        except BaseException:
            self._open.close()
            raise

    def __len__(self) -> int:
        return sum(map(len, self._indexes))

    def close(self) -> None:
        """Close the parts."""
        self._open.close()

    def nearest(self, vectors: Vectors, count: int, where: Where) -> list[Near]:
        """The nearest items of each part.

        Args:
            vectors: Global vectors [Q, d] of the queries.
            count: The most items of a part.
            where: Conditions on metadata.

        Returns:
            For each part.
        """
        return [self._near(snapshot, vectors, count, condition) for snapshot, condition in self._snapshots(where)]

    def score(self, texts: EncodedTexts, chosen: Sequence[Sequence[Numbers]], top_k: int) -> Scored:
        """Score chosen items.

        Args:
            texts: Q texts.
            chosen: The numbers of the items, for each part and each text.
            top_k: The most items of a part for each text.

        Returns:
            The best items for each text; those removed meanwhile are missing.
        """
        found: list[list[Found]] = [[] for _ in range(len(texts))]
        for (snapshot, _), numbers in zip(self._snapshots(None), chosen, strict=True):
            for text, items in self._scored(snapshot, texts, numbers, top_k):
                found[text] += items
        return Scored(found, sum(len(row) for numbers in chosen for row in numbers))

    def rank(self, texts: EncodedTexts, top_k: int, where: Where) -> Scored:
        """Score all items.

        Args:
            texts: Q texts.
            top_k: The most items of a part for each text.
            where: Conditions on metadata.

        Returns:
            The best items for each text.
        """
        found: list[list[Found]] = [[] for _ in range(len(texts))]
        pairs = 0
        ranker = Ranker(self._model.scorer(), top_k, None, silent)
        for snapshot, condition in self._snapshots(where):
            places = snapshot.chosen(condition)
            pairs += len(texts) * len(places)
            if len(places):
                for text, ranked in enumerate(ranker.images(texts, self._images(snapshot, places))):
                    found[text] += _found(snapshot, places, ranked)
        return Scored(found, pairs)

    def similar(self, vector: Vectors, top_k: int, where: Where) -> list[Found]:
        """The items most similar to a picture by global vectors.

        Args:
            vector: The global vector of the picture [1, d].
            top_k: The most items of a part.
            where: Conditions on metadata.
        """
        found: list[Found] = []
        for snapshot, condition in self._snapshots(where):
            places = snapshot.chosen(condition)
            if len(places):
                found += _found(snapshot, places, most_similar(vector, self._images(snapshot, places), top_k))
        return found

    def size(self) -> int:
        """The number of items."""
        return len(self)

    def item(self, key: str) -> IndexItem | None:
        """The item with a key; None if there is none.

        Args:
            key: The key.
        """
        return next((item for index in self._indexes if (item := index.get(key)) is not None), None)

    def tensors(self, keys: Sequence[str]) -> dict[str, Arrays]:
        """The tensors of items, each [1, ...], by key; those that are not here are left out.

        Args:
            keys: The keys.
        """
        found: dict[str, Arrays] = {}
        for index in self._indexes:
            own = [key for key in keys if key in index]
            if own:
                tensors = index.gallery(own).encoded.tensors
                found |= {key: {name: array[[k]] for name, array in tensors.items()} for k, key in enumerate(own)}
        return found

    def precision(self) -> str | None:
        """How tensors are stored; None without parts."""
        return self._indexes[0].precision if self._indexes else None

    def _snapshots(self, where: Where) -> Iterator[tuple[Snapshot, Condition | None]]:
        condition = None if where is None else compile_where(where)
        for index in self._indexes:
            with index.snapshot(self._model) as snapshot:
                yield snapshot, condition

    def _near(self, snapshot: Snapshot, vectors: Vectors, count: int, condition: Condition | None) -> Near:
        places = snapshot.chosen(condition)
        if not len(places):
            return Near(np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0)))
        chosen, products = near_items(vectors, self._images(snapshot, places), min(count, len(places)))
        return Near(snapshot.store.columns.numbers[places[chosen]], products)

    def _scored(
        self, snapshot: Snapshot, texts: EncodedTexts, numbers: Sequence[Numbers], top_k: int
    ) -> Iterator[tuple[int, list[Found]]]:
        places = np.flatnonzero(snapshot.store.columns.mask(np.concatenate(numbers)))
        if not len(places):
            return
        held = snapshot.store.columns.numbers[places]
        chosen = [np.flatnonzero(np.isin(held, own)) for own in numbers]  # of each text, among the places
        pairs = np.concatenate([np.stack([own, np.full(len(own), text)], axis=1) for text, own in enumerate(chosen)])
        logits = pair_logits(self._model.scorer(), self._images(snapshot, places), texts, pairs)
        ends = np.cumsum([len(own) for own in chosen])
        for text, (own, row) in enumerate(zip(chosen, np.split(logits, ends[:-1]), strict=True)):
            yield text, _found(snapshot, places, best(own, row, min(top_k, len(own))))

    def _images(self, snapshot: Snapshot, places: NDArray[np.intp]) -> EncodedImages:
        found = snapshot.encoded(self._model, places)
        assert isinstance(found, EncodedImages)  # parts hold pictures
        return found


def _found(snapshot: Snapshot, places: NDArray[np.intp], ranked: Ranked) -> list[Found]:
    numbers, logits = ranked
    return [Found(*one) for one in zip(logits.tolist(), snapshot.items(places[numbers]), strict=True)]
