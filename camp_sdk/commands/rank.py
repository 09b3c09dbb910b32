"""The command `camp rank`: ranks the pictures of a folder or a gallery by one or more texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.commands.encode import as_lists, encode_all
from camp_sdk.commands.options import (
    IMAGES_HELP,
    BackendOption,
    BundleArgument,
    JsonOption,
    MegapixelsOption,
    MemoryOption,
    RescoreOption,
    ShortlistOption,
    SkipBrokenOption,
    ThreadsOption,
    TwoPassOption,
)
from camp_sdk.first_pass import passes_of
from camp_sdk.picture_files import PassedOver
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.progress import progress_bar
from camp_sdk.results import Match, Ranking
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import visible
from camp_sdk.search import first_pass_of, shortlist_of
from camp_sdk.terminal import stderr


def rank_command(
    bundle: BundleArgument,
    query: Annotated[list[str], typer.Option(help="Text to search for; may be repeated.")],
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP)] = None,
    gallery: Annotated[Path | None, typer.Option(help="Gallery written by camp encode, instead of --images.")] = None,
    top_k: Annotated[int, typer.Option(help="Number of results per query.", min=1)] = 5,
    shortlist: ShortlistOption = None,
    skip_broken: SkipBrokenOption = False,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    backend: BackendOption = "auto",
    precision: TwoPassOption = "float32",
    rescore: RescoreOption = None,
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank pictures, or the rows of a file of features, by text."""
    if (images is None) == (gallery is None):
        raise InputError("give either --images or --gallery")
    passes = passes_of(precision, rescore)
    with Retriever(bundle, backend, passes.precision, threads, memory_budget) as retriever:
        retriever.check_queries(query)  # before encoding pictures, which may take minutes
        retriever.check_counts(top_k, shortlist)
        first_pass_of(retriever.model, passes.first, passes.rescore, top_k)
        passed_over: Sequence[PassedOver] = ()
        if gallery is not None:
            corpus = retriever.open_gallery(gallery)
        else:
            assert images is not None
            corpus, passed_over = encode_all(retriever, images, skip_broken, max_megapixels)
        pairs = len(query) * min(len(corpus), shortlist_of(retriever.model, top_k, shortlist) or len(corpus))
        with progress_bar("scoring pairs", pairs) as scored:
            rankings = retriever.rank(query, corpus, top_k, shortlist, scored, **passes.named)
    if as_json:
        found = [
            {
                "query": text,
                "unknown_words": matches.unknown_words,
                "shortlist": matches.shortlist,
                "matches": [_as_dict(match) for match in matches],
            }
            for text, matches in zip(query, rankings, strict=True)
        ]
        typer.echo(json.dumps({"rankings": found} | as_lists(corpus.skipped, passed_over), indent=2))
    else:
        for text, matches in zip(query, rankings, strict=True):
            Console().print(_ranking_table(text, matches))
            if matches.unknown_words:
                words = ", ".join(map(visible, matches.unknown_words))
                stderr.print(f"not in the model's vocabulary: {words}", markup=False, highlight=False, soft_wrap=True)
        report_shortlist(shortlist, rankings[0], len(corpus))


def report_shortlist(asked: int | None, ranking: Ranking, images: int) -> None:
    """Print how many images were scored, if the bundle decided it.

    Args:
        asked: The shortlist that was asked for.
        ranking: The ranking.
        images: The number of images.
    """
    if asked is None and ranking.shortlist:
        line = f"scored the {ranking.shortlist} of {images} images nearest by global vector"
        stderr.print(f"{line}, as this bundle does by default; --shortlist 0 scores all", soft_wrap=True)


def _as_dict(match: Match) -> dict[str, Any]:
    return {field: match[field] for field in ("rank", "document", "score", "logit", "corpus_id")}


def _ranking_table(query: str, matches: list[Match]) -> Table:
    # Text, not markup: a query or a file name may hold brackets.
    table = Table("rank", "score", Column("image", overflow="fold"), title=Text(visible(query)))
    for match in matches:
        table.add_row(str(match.rank), f"{match.score:.4f}", Text(visible(match.document or "")))
    return table
