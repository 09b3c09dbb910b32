"""The work of searches: texts are ranked together where that changes none of their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from camp_sdk.arguments import Advance
from camp_sdk.results import Match, Ranking
from camp_sdk.runtime.errors import InputError
from camp_sdk.search import shortlist_of
from camp_sdk.server.corpus import Item, Wanted
from camp_sdk.server.dispatch import Work
from camp_sdk.server.explaining import check_explains, explanation
from camp_sdk.server.pictures import PICTURE_PAIRS, check_size
from camp_sdk.server.problems import Problem
from camp_sdk.server.service import Service

SAME_DEPTH = 64  # searches for fewer matches are done together; each match that is cut off was described for nothing
EXPLAINED = 5  # matches, of a search with explanations


@dataclass(frozen=True)
class Query:
    """A search by a text.

    Args:
        text: The text.
        top_k: The most matches.
        offset: The number of best matches to leave out.
        shortlist: The number of items to score; None for the bundle's default.
        where: Conditions on metadata.
        explain: Whether the first matches are explained.
    """

    text: str
    top_k: int
    offset: int = 0
    shortlist: int | None = None
    where: Mapping[str, Any] | None = None
    explain: bool = False

    @property
    def depth(self) -> int:
        """How many of the best items are found."""
        return self.top_k + self.offset


def text_search(service: Service, query: Query) -> Work:
    """The work of a search by a text.

    Args:
        service: The service.
        query: The search.

    Raises:
        InputError: The sizes do not fit together.
        Problem: The bundle does not explain.
    """
    if service.corpus.kind == "text":
        raise InputError("texts are searched by a picture: expected `picture`")
    if query.explain:
        check_explains(service)
    service.retriever.check_counts(query.top_k, query.shortlist)
    scored = shortlist_of(service.retriever.model, query.depth, query.shortlist)
    where = None if query.where is None else json.dumps(query.where, sort_keys=True)
    depth = SAME_DEPTH if query.depth <= SAME_DEPTH else query.depth
    # Texts that are scored with all items are padded to the longest of them. With a shortlist, each is scored alone.
    length = len(query.text.split()).bit_length() if scored is None else 0
    group = None if query.explain else (id(service), scored, where, depth, length)
    return Work(partial(_rank, service), service.pairs(query.depth, query.shortlist), query, group)


def _rank(service: Service, queries: Sequence[Query], advance: Advance) -> list[Any]:
    """The answers of searches of one group; an error in place of one whose text cannot be ranked."""
    service.items = len(service.corpus)
    answers: list[Any] = [_unfit(service, query) for query in queries]
    fit = [place for place, error in enumerate(answers) if error is None]
    if fit:
        rankings = _rankings(service, [queries[place] for place in fit], advance)
        for place, ranking in zip(fit, rankings, strict=True):
            query = queries[place]
            answers[place] = _answer(service, ranking, ranking[query.offset : query.depth])
            if query.explain:
                _explain(service, query.text, answers[place]["matches"])
    return answers


def _unfit(service: Service, query: Query) -> InputError | None:
    try:
        service.retriever.check_queries([query.text])
    except InputError as error:
        return error
    return None


def _rankings(service: Service, queries: Sequence[Query], advance: Advance) -> list[Ranking]:
    retriever, first = service.retriever, queries[0]
    depth = max(query.depth for query in queries)
    # As each of them alone would have it: the default grows with the depth, which is that of all here.
    scored = shortlist_of(retriever.model, first.depth, first.shortlist)
    texts = [query.text for query in queries]
    if scored is not None:
        depth = min(depth, scored)  # the pages of a shortlist hold no more
    wanted = Wanted(depth, scored or 0, first.where, precision=service.first_pass)
    found: list[Ranking] = service.corpus.rank(retriever, texts, wanted, advance)
    return found


def _answer(service: Service, ranking: Ranking, page: Sequence[Match]) -> dict[str, Any]:
    matches = [match_fields(service, match) for match in page]
    answer = {"matches": matches, "unknown_words": list(ranking.unknown_words), "shortlist": ranking.shortlist}
    return answer | {"partial": list(ranking.missing)}


def _explain(service: Service, text: str, matches: Sequence[dict[str, Any]]) -> None:
    """Add explanations to the first matches of an answer."""
    for fields in matches[:EXPLAINED]:
        item = service.corpus.item(fields["key"])
        gallery = service.corpus.select([item.key])
        fields["explanation"] = explanation(service, text, gallery, service.corpus.picture(item))


def picture_search(service: Service, picture: bytes, query: Query, max_megapixels: float) -> Work:
    """The work of a search by a picture.

    Args:
        service: The service.
        picture: The picture.
        query: The search, without a text.
        max_megapixels: Larger pictures are not decoded.
    """
    by = "image" if service.corpus.kind == "image" else None
    if by is None:
        service.retriever.check_counts(query.top_k, query.shortlist)
    elif not service.has_vectors:
        raise Problem(409, "this bundle has no global vectors, by which pictures are compared with pictures")
    elif query.shortlist is not None:
        raise InputError("`shortlist`: pictures are compared with pictures by global vectors alone: leave it out")

    def run(items: Sequence[Any], advance: Advance) -> list[Any]:
        service.items = len(service.corpus)
        check_size(picture, max_megapixels)
        precision = service.first_pass if by is None else None
        wanted = Wanted(query.top_k, query.shortlist, query.where, query.offset, by, precision)
        found = service.corpus.rank(service.retriever, picture, wanted, advance)
        return [_answer(service, found, found)]

    pairs = service.pairs(query.depth, query.shortlist) if by is None else 0
    return Work(run, pairs + PICTURE_PAIRS)


def match_fields(service: Service, match: Match) -> dict[str, Any]:
    """What an answer says of a match."""
    item = service.corpus.item_of(match)
    numbers = {"rank": match.rank, "score": match.score, "logit": match.logit, "corpus_id": match.corpus_id}
    return {**numbers, **item_fields(service, item)}


def item_fields(service: Service, item: Item) -> dict[str, Any]:
    """What an answer says of an item."""
    links: dict[str, str | None] = dict.fromkeys(("thumbnail", "picture"))
    if item.file is not None:
        links = {name: f"{service.root_path}/v1/items/{quote(item.key, safe='')}/{name}" for name in links}
    return {"key": item.key, "document": item.document, "metadata": item.metadata, **links}
