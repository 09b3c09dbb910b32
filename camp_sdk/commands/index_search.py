"""The command `camp index search`, of an index or of a folder of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.cluster.merging import Search
from camp_sdk.cluster.parts import is_parts
from camp_sdk.cluster.searching import OpenParts
from camp_sdk.commands.options import (
    BackendOption,
    BundleOption,
    IndexArgument,
    JsonOption,
    MemoryOption,
    RescoreOption,
    ShortlistOption,
    ThreadsOption,
    TwoPassOption,
    WhereOption,
    conditions_of,
)
from camp_sdk.commands.rank import report_shortlist
from camp_sdk.first_pass import Passes, passes_of
from camp_sdk.progress import progress_bar
from camp_sdk.results import Match, Ranking
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import visible
from camp_sdk.search import shortlist_of
from camp_sdk.terminal import stderr


def search_command(
    index: IndexArgument,
    bundle: BundleOption,
    query: Annotated[str | None, typer.Option(help="Text to search for.")] = None,
    like: Annotated[Path | None, typer.Option(help="Picture to find similar ones of, by global vectors.")] = None,
    top_k: Annotated[int, typer.Option(help="Number of results.", min=1)] = 5,
    offset: Annotated[int, typer.Option(help="Results to leave out, for the next page.", min=0)] = 0,
    shortlist: ShortlistOption = None,
    where: WhereOption = None,
    ann: Annotated[bool, typer.Option("--ann", help="Choose the shortlist as `camp index ann` allows.")] = False,
    backend: BackendOption = "auto",
    precision: TwoPassOption = "float32",
    rescore: RescoreOption = None,
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the pictures of an index, or of a folder of parts, by a text, or by their likeness to a picture."""
    if (query is None) == (like is None):
        raise InputError("give either `query` or `like`")
    search = Search(top_k, shortlist, conditions_of(where))
    passes = passes_of(precision, rescore)
    with Retriever(bundle, backend, passes.precision, threads, memory_budget) as retriever:
        if is_parts(index):
            if passes.first:
                raise InputError("`precision`: parts are searched in one pass")
            found, items = _found_in_parts(retriever, index, query or like, search, offset, ann)
        else:
            found, items = _found(retriever, index, query or like, (search, passes), offset, ann)
    if as_json:
        matches = [dict(match) for match in found]
        about = {"query": query or str(like), "unknown_words": found.unknown_words, "shortlist": found.shortlist}
        typer.echo(json.dumps(about | {"matches": matches}))
        return
    Console().print(_matches_table(visible(query or str(like)), found))
    if found.unknown_words:
        words = ", ".join(map(visible, found.unknown_words))
        stderr.print(f"not in the model's vocabulary: {words}", markup=False, highlight=False, soft_wrap=True)
    report_shortlist(shortlist, found, items)


def _found(
    retriever: Retriever, path: Path, query: str | Path | None, wanted: tuple[Search, Passes], offset: int, ann: bool
) -> tuple[Ranking, int]:
    """A ranking of an index, and the number of its items."""
    search, passes = wanted
    with retriever.open_index(path, ann=ann) as opened:
        items = len(opened)
        if isinstance(query, Path):
            like = retriever.rank(
                query, opened, search.top_k, offset=offset, where=search.where, by="image", **passes.named
            )
            return like, items
        pairs = min(items, shortlist_of(retriever.model, offset + search.top_k, search.shortlist) or items)
        with progress_bar("scoring pairs", pairs) as scored:
            found = retriever.rank(
                query,
                opened,
                search.top_k,
                search.shortlist,
                scored,
                offset=offset,
                where=search.where,
                **passes.named,
            )
        return found, items


def _found_in_parts(
    retriever: Retriever, folder: Path, query: str | Path | None, search: Search, offset: int, ann: bool
) -> tuple[Ranking, int]:
    """A ranking of a folder of parts, and the number of their items."""
    if ann:
        raise InputError("`ann` is for an index: parts are searched exactly")
    with OpenParts(retriever, folder) as opened:
        if isinstance(query, Path):
            return opened.similar(query, search, offset), len(opened)
        return opened.rank(query or "", search, offset), len(opened)


def _matches_table(title: str, matches: list[Match]) -> Table:
    table = Table(
        "rank", "score", Column("key", overflow="fold"), Column("metadata", overflow="fold"), title=Text(title)
    )
    for match in matches:
        metadata = json.dumps(match.metadata, ensure_ascii=False) if match.metadata else ""
        table.add_row(str(match.rank), f"{match.score:.4f}", Text(visible(match.key or "")), Text(visible(metadata)))
    return table
