"""A corpus in parts: searched by shards, of this process or of a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.arguments import Advance
from camp_sdk.cluster.merging import Search, Shards
from camp_sdk.cluster.parts import Parts
from camp_sdk.cluster.searching import PartsSearch
from camp_sdk.gallery import Gallery
from camp_sdk.results import Match, Ranking
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.server.corpus import Corpus, Item, Wanted, no_item
from camp_sdk.server.problems import RETRY_S, Problem

REFRESH_S = 10.0  # that the number of items may be old


class PartsCorpus(Corpus):
    """A folder of parts.

    Args:
        retriever: Encodes queries.
        parts: The parts.
        shards: The shards that search them.
        divided: The numbers of the parts of each shard.
        roots: The folders below which pictures are read, besides that of the parts.
    """

    store = "parts"

    def __init__(
        self,
        retriever: Retriever,
        parts: Parts,
        shards: Shards,
        divided: Sequence[Sequence[int]],
        roots: Sequence[Path],
    ) -> None:
        super().__init__("image", [parts.folder, *roots])
        self._retriever, self._parts, self._shards = retriever, parts, shards
        self._search = PartsSearch(retriever, shards, [[parts.names[part] for part in own] for own in divided])
        self._shard_of = {part: shard for shard, own in enumerate(divided) for part in own}
        self._sizes: dict[int, int] = {}
        self._counted = -REFRESH_S

    def __len__(self) -> int:
        if time.monotonic() - self._counted > REFRESH_S:
            self._sizes |= self._shards.call("size", dict.fromkeys(self._shards.numbers, ()))
            self._counted = time.monotonic()
        return sum(self._sizes.values())

    def rank(self, retriever: Retriever, query: Any, wanted: Wanted, advance: Advance) -> Any:
        search = Search(wanted.top_k, wanted.shortlist, wanted.where)
        if wanted.by is not None:
            return self._search.similar(query, search, wanted.offset)
        rankings: list[Ranking] = self._search.rank(query, search, wanted.offset, advance)
        return rankings

    def item(self, key: str) -> Item:
        shard = self._shard(key)
        found = self._shards.call("item", {shard: (key,)})
        if shard not in found:
            raise _no_answer()
        if found[shard] is None:
            raise no_item(key)
        return self._described(found[shard].key, found[shard].document, found[shard].metadata)

    def select(self, keys: Sequence[str]) -> Gallery:
        asked: dict[int, list[str]] = {}
        for key in keys:
            asked.setdefault(self._shard(key), []).append(key)
        found = self._shards.call("tensors", {shard: (own,) for shard, own in asked.items()})
        if found.keys() != asked.keys():
            raise _no_answer()
        held = {key: tensors for shard in found.values() for key, tensors in shard.items()}
        missing = [key for key in keys if key not in held]
        if missing:
            raise no_item(missing[0])
        joined = {name: np.concatenate([held[key][name] for key in keys]) for name in held[keys[0]]}
        return Gallery(EncodedImages(joined), list(keys), self._retriever.bundle, self._precision())

    def item_of(self, match: Match) -> Item:
        return self._described(match.key or "", match.document, match.metadata)

    def close(self) -> None:
        self._shards.close()

    def _described(self, key: str, document: str | None, metadata: Any) -> Item:
        return Item(key, None, metadata, None if document is None else Path(document))

    def _shard(self, key: str) -> int:
        return self._shard_of[self._parts.part_of(key)]

    def _precision(self) -> str:
        found = self._shards.call("precision", dict.fromkeys(self._shards.numbers, ()))
        return next(str(precision) for precision in found.values() if precision is not None)


def _no_answer() -> Problem:
    return Problem(503, "the part of the index with this item does not answer", {"Retry-After": str(RETRY_S)})
