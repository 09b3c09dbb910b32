"""Search a folder of parts in this process, as one index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.cluster.merging import Merged, Search, rank_similar, rank_texts
from camp_sdk.cluster.parts import read_parts
from camp_sdk.cluster.shard import Found, Shard
from camp_sdk.results import Match, Ranking
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encode import encode_texts
from camp_sdk.runtime.encoded import global_vectors
from camp_sdk.runtime.errors import BundleError
from camp_sdk.search import shortlist_of


class LocalShards:
    """Shards of this process.

    Args:
        shards: The shards.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    @property
    def numbers(self) -> range:
        """The numbers of all shards."""
        return range(len(self._shards))

    def call(self, method: str, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        """Call a method of several shards; see `Shards.call`."""
        return {number: getattr(self._shards[number], method)(*given) for number, given in arguments.items()}


class OpenParts:
    """A folder of parts, open for searches; a context manager.

    Args:
        retriever: A retriever of the bundle that encoded them.
        folder: The folder.

    Raises:
        BundleError: Another bundle encoded the parts, or they are damaged.
    """

    def __init__(self, retriever: Retriever, folder: Path) -> None:
        parts = read_parts(folder)
        if parts.bundle != retriever.bundle.fingerprint:
            raise BundleError(f"{folder} was made by another bundle ({parts.bundle[:12]}): give that bundle")
        self._retriever, self._shard = retriever, Shard(retriever, parts.paths)
        self._shards = LocalShards([self._shard])

    def __enter__(self) -> OpenParts:
        return self

    def __exit__(self, *exc: object) -> None:
        self._shard.close()

    def __len__(self) -> int:
        return len(self._shard)

    def rank(self, text: str, search: Search, offset: int = 0) -> Ranking:
        """Rank all items by a text, as `Retriever.rank` ranks those of an index; equal logits are ordered by key.

        Args:
            text: The text.
            search: The search; a shortlist of 0 scores all items, and None takes the bundle's default.
            offset: How many of the best items to leave out.

        Returns:
            The ranking. ``corpus_id`` is -1: the items of parts have no order in common.

        Raises:
            InputError: An argument cannot be used.
        """
        model = self._retriever.model
        self._retriever.check_counts(search.top_k, search.shortlist)
        self._retriever.check_queries([text])
        depth = offset + search.top_k
        shortlist = shortlist_of(model, depth, search.shortlist)
        tokens = model.tokenizer.encode([text])
        texts = encode_texts(model.engines["text"], model.bundle, tokens)
        merged = rank_texts(self._shards, texts, replace(search, top_k=depth, shortlist=shortlist))
        logits = np.array([one.logit for one in merged.rankings[0]], np.float32)
        scores = model.activate(logits).tolist()
        unknown = tokens.unknown_words(0)
        scored = None if merged.all_scored else shortlist
        return Ranking(_matches(merged.rankings[0], scores, offset), unknown, scored)

    def similar(self, picture: Path, search: Search, offset: int = 0) -> Ranking:
        """Rank all items by their likeness to a picture, as `Retriever.rank` does with ``by="image"``.

        Args:
            picture: The picture.
            search: The search.
            offset: How many of the best items to leave out.
        """
        vector = global_vectors(self._retriever.encode_images([picture]).encoded.tensors)
        merged: Merged = rank_similar(self._shards, vector, replace(search, top_k=offset + search.top_k))
        found = merged.rankings[0]
        return Ranking(_matches(found, [one.logit for one in found], offset))


def _matches(found: Sequence[Found], scores: Sequence[float], offset: int) -> list[Match]:
    return [
        Match(-1, score, one.logit, rank, one.item.document, one.item.key, one.item.metadata)
        for rank, (one, score) in enumerate(zip(found, scores, strict=True), start=1)
        if rank > offset
    ]
