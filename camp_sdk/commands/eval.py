"""The command `camp eval`: the recall of a bundle's network, or of several networks' mean scores, on a split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.agreement import Agreements, TwoPasses
from camp_sdk.commands.options import (
    BackendOption,
    JsonOption,
    MemoryOption,
    RescoreOption,
    ThreadsOption,
    TwoPassOption,
)
from camp_sdk.data import load_split
from camp_sdk.evaluation import Evaluation, evaluate, protocol_folds, work_of
from camp_sdk.first_pass import passes_of
from camp_sdk.metrics import Direction, Metrics
from camp_sdk.progress import progress_bars
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable, followed, write_aside
from camp_sdk.runtime.messages import visible

SHORTLISTS = (10, 20, 50, 100, 200, 500, 1000)


def eval_command(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundle folder written by camp export. Of several, the mean of their scores is measured.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")],
    split: Annotated[str, typer.Option(help="Split to measure: train, dev or test.")] = "test",
    protocol: Annotated[
        str | None, typer.Option(help="flickr30k, coco-5k or coco-1k: sets the folds and checks the data.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Average over this many equal parts of the images.", min=1)] = None,
    shortlist: Annotated[
        int,
        typer.Option(help="Also measure shortlists of 10 to this many candidates; not with several bundles.", min=0),
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    backend: BackendOption = "auto",
    precision: TwoPassOption = "float32",
    rescore: RescoreOption = None,
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure recall on a split, in both directions."""
    loaded = load_split(data, split)
    if protocol and folds:
        raise InputError(f"--folds {folds}: {protocol} has its own folds, leave out one of the two")
    if output and output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    if output:
        output = followed(output)
        check_writable(output)  # before the work, not after it
    parts = protocol_folds(protocol, loaded) if protocol else folds or 1
    sizes = sorted({*(size for size in SHORTLISTS if size < shortlist), shortlist} - {0})
    passes = passes_of(precision, rescore)
    two = TwoPasses(passes.first, passes.rescore) if passes.first else None
    with ExitStack() as stack:
        retrievers = [
            stack.enter_context(Retriever(bundle, backend, passes.precision, threads, memory_budget))
            for bundle in bundles
        ]
        with progress_bars(work_of(loaded, parts, len(retrievers), 2 if two else 1)) as advance:
            result = evaluate(retrievers, loaded, parts, advance, protocol, sizes, two)
    used = dict.fromkeys(retriever.backend for retriever in retrievers)
    setup = {"split": split, "backend": ", ".join(used), "precision": passes.precision}
    answer = json.dumps(result.as_dict() | setup, indent=2)
    if output:
        with write_aside(output) as aside:
            aside.write_text(f"{answer}\n", encoding="utf-8")
    if as_json:
        typer.echo(answer)
    else:
        Console().print(evaluation_table(result, f"{data} {split}: {result.protocol}"))
        if result.shortlists:
            for table in shortlist_tables(result):
                Console().print(table)
        if result.two_passes:
            Console().print(two_passes_table(result.two_passes))


def two_passes_table(found: Agreements) -> Table:
    """How rankings in two passes agree with those in one."""
    heads = ("same best", "same 10", "same order", "same 10, first pass alone", "rescored")
    title = f"two passes, the first in {found.precision}, against one: shares of the queries"
    table = Table("", *(Column(head, justify="right") for head in heads), title=title)
    for name, side in (("text to image", found.text_to_image), ("image to text", found.image_to_text)):
        shares = (side.same_best, side.same_ten, side.same_order, side.coarse_ten)
        table.add_row(name, *(f"{share:.2%}" for share in shares), f"{side.rescored:.1f}")
    return table


def evaluation_table(result: Evaluation, title: str) -> Table:
    """The metrics of an evaluation as a table: two rows for each network, for the mean of several, and for vectors."""
    table = Table(
        "", "", *(Column(name, justify="right") for name in ("R@1", "R@5", "R@10", "median", "rsum")), title=Text(title)
    )
    rows = list((result.members or {"network": result.network}).items())
    if len(rows) > 1:
        rows.append((f"average of {len(rows)}", result.network))
    if result.global_vectors:
        rows.append(("global vectors alone", result.global_vectors))
    if both := result.combination:
        rows.append((f"network + {both.weight:.4g} x vectors", both.metrics))
    for name, metrics in rows:
        shown = Text(visible(name))  # a bundle's files and folders may hold markup or control characters
        table.add_row(shown, "text to image", *_figures(metrics.text_to_image), "")
        table.add_row("", "image to text", *_figures(metrics.image_to_text), f"{metrics.rsum:.1f}", end_section=True)
    return table


def shortlist_tables(result: Evaluation) -> list[Table]:
    """Recalls with shortlists, each with its difference from the recall without one: of the network, and combined."""
    tables = [_shortlist_table("recall with a shortlist", result.network, result.shortlists)]
    if both := result.combination:
        title = f"the same, ranked by logit + {both.weight:.4g} x dot product of the vectors"
        tables.append(_shortlist_table(title, both.metrics, result.combined_shortlists))
    return tables


def _shortlist_table(title: str, every: Metrics, shortlists: Mapping[int, Metrics]) -> Table:
    heads = [f"{side} {recall}" for side in ("t2i", "i2t") for recall in ("R@1", "R@5", "R@10")]
    table = Table("candidates", *(Column(head, justify="right") for head in heads), title=title)
    whole = _recalls(every)
    for size, metrics in shortlists.items():
        table.add_row(str(size), *(f"{s:.1f} ({s - w:+.1f})" for s, w in zip(_recalls(metrics), whole, strict=True)))
    table.add_row("all", *(f"{w:.1f}" for w in whole))
    return table


def _recalls(metrics: Metrics) -> list[float]:
    sides = (metrics.text_to_image, metrics.image_to_text)
    return [recall for side in sides for recall in (side.r1, side.r5, side.r10)]


def _figures(side: Direction) -> list[str]:
    return [f"{value:.1f}" for value in (side.r1, side.r5, side.r10, side.median_rank)]
