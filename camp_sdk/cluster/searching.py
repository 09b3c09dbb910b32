"""Search a folder of parts as one index, in this process or by shards elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.arguments import Advance, silent
from camp_sdk.cluster.merging import Merged, Search, Shards, rank_similar, rank_texts
from camp_sdk.cluster.parts import Parts, read_parts
from camp_sdk.cluster.shard import Found, Shard
from camp_sdk.model import Model
from camp_sdk.results import Match, Ranking
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encode import encode_texts
from camp_sdk.runtime.encoded import global_vectors
from camp_sdk.runtime.errors import BundleError, BusyError
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

    def close(self) -> None:
        """Close the shards."""
        for shard in self._shards:
            shard.close()


class PartsSearch:
    """Ranks the items of all shards.

    Args:
        retriever: Encodes queries.
        shards: The shards.
        parts: The names of the parts of each shard.
    """

    def __init__(self, retriever: Retriever, shards: Shards, parts: Sequence[Sequence[str]]) -> None:
        self._retriever, self._shards, self._parts = retriever, shards, parts

    @property
    def _model(self) -> Model:
        return self._retriever.model

    def rank(
        self, texts: Sequence[str], search: Search, offset: int = 0, on_progress: Advance = silent
    ) -> list[Ranking]:
        """Rank all items by texts, as `Retriever.rank` ranks those of an index; equal logits are ordered by key.

        Args:
            texts: The texts.
            search: The search; a shortlist of 0 scores all items, and None takes the bundle's default.
            offset: How many of the best items to leave out.
            on_progress: Receives the number of pairs that were scored.

        Returns:
            The ranking of each text. ``corpus_id`` is -1: the items of parts have no order in common.

        Raises:
            InputError: An argument cannot be used.
            BusyError: No shard answers.
        """
        model, depth = self._model, offset + search.top_k
        self._retriever.check_counts(search.top_k, search.shortlist)
        self._retriever.check_queries(texts)
        shortlist = shortlist_of(model, depth, search.shortlist)
        tokens = model.tokenizer.encode(texts)
        encoded = encode_texts(model.engines["text"], model.bundle, tokens)
        merged = rank_texts(self._shards, encoded, replace(search, top_k=depth, shortlist=shortlist))
        on_progress(merged.pairs)
        missing = self._missing(merged)
        rankings = []
        for number, found in enumerate(merged.rankings):
            scores = model.activate(np.array([one.logit for one in found], np.float32)).tolist()
            unknown = tokens.unknown_words(number)
            scored = None if merged.all_scored else shortlist
            rankings.append(Ranking(_matches(found, scores, offset), unknown, scored, missing))
        return rankings

    def similar(self, picture: Any, search: Search, offset: int = 0) -> Ranking:
        """Rank all items by their likeness to a picture, as `Retriever.rank` does with ``by="image"``.

        Args:
            picture: The picture.
            search: The search.
            offset: How many of the best items to leave out.

        Raises:
            InputError: The picture cannot be read.
            BusyError: No shard answers.
        """
        vector = global_vectors(self._retriever.encode_images([picture]).encoded.tensors)
        merged = rank_similar(self._shards, vector, replace(search, top_k=offset + search.top_k))
        found = merged.rankings[0]
        return Ranking(_matches(found, [one.logit for one in found], offset), missing=self._missing(merged))

    def _missing(self, merged: Merged) -> list[str]:
        if len(merged.missing) == len(self._shards.numbers):
            raise BusyError("no part of the index answers: try again later")
        return [name for number in sorted(merged.missing) for name in self._parts[number]]


class OpenParts:
    """A folder of parts, open for searches in this process; a context manager.

    Args:
        retriever: A retriever of the bundle that encoded them.
        folder: The folder.

    Raises:
        BundleError: Another bundle encoded the parts, or they are damaged.
    """

    def __init__(self, retriever: Retriever, folder: Path) -> None:
        parts = checked_parts(retriever, folder)
        self._shard = Shard(retriever, parts.paths)
        self._search = PartsSearch(retriever, LocalShards([self._shard]), [parts.names])

    def __enter__(self) -> OpenParts:
        return self

    def __exit__(self, *exc: object) -> None:
        self._shard.close()

    def __len__(self) -> int:
        return len(self._shard)

    def rank(self, text: str, search: Search, offset: int = 0) -> Ranking:
        """Rank all items by a text; see `PartsSearch.rank`."""
        return self._search.rank([text], search, offset)[0]

    def similar(self, picture: Any, search: Search, offset: int = 0) -> Ranking:
        """Rank all items by their likeness to a picture; see `PartsSearch.similar`."""
        return self._search.similar(picture, search, offset)


def checked_parts(retriever: Retriever, folder: Path) -> Parts:
    """A folder of parts that a bundle has encoded.

    Args:
        retriever: A retriever of the bundle.
        folder: The folder.

    Raises:
        BundleError: Another bundle encoded the parts, or their description is damaged.
    """
    parts = read_parts(folder)
    if parts.bundle != retriever.bundle.fingerprint:
        raise BundleError(f"{folder} was made by another bundle ({parts.bundle[:12]}): give that bundle")
    return parts


def _matches(found: Sequence[Found], scores: Sequence[float], offset: int) -> list[Match]:
    return [
        Match(-1, score, one.logit, rank, one.item.document, one.item.key, one.item.metadata)
        for rank, (one, score) in enumerate(zip(found, scores, strict=True), start=1)
        if rank > offset
    ]
