"""The `camp` command: `eval`, `encode`, `rank`, `build`, `doctor`. Results on standard output, progress on standard error."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.commands.build import build_command
from camp_sdk.commands.doctor import doctor_command
from camp_sdk.commands.encode import encode_all, encode_command
from camp_sdk.commands.options import (
    IMAGES_HELP,
    BackendOption,
    BundleArgument,
    JsonOption,
    MegapixelsOption,
    PrecisionOption,
    SkipBrokenOption,
)
from camp_sdk.data import load_split
from camp_sdk.evaluation import Evaluation, evaluate, protocol_folds, work_of
from camp_sdk.metrics import Direction
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.progress import progress_bar, progress_bars
from camp_sdk.results import Match
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable, followed, write_aside
from camp_sdk.terminal import run_app, visible

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help="Rank pictures by text with CAMP."
)

SHORTLISTS = (10, 20, 50, 100, 200, 500, 1000)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("camp-sdk"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command("eval")
def eval_command(
    bundle: BundleArgument,
    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")],
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    protocol: Annotated[
        str | None, typer.Option(help="flickr30k, coco-5k or coco-1k: checks that the data fit.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Average over this many equal parts of the images.", min=1)] = None,
    shortlist: Annotated[
        int, typer.Option(help="Also show what shortlists of 10 and more candidates lose, up to this many.", min=0)
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the JSON to this file, too.")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Measure recall on a split: network and global vectors, both directions."""
    loaded = load_split(data, split)
    if protocol and folds:
        raise InputError(f"--folds {folds}: {protocol} has its own folds, give one of the two")
    if output and output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    if output:
        output = followed(output)
        check_writable(output)  # before the work, not after it
    parts = protocol_folds(protocol, loaded) if protocol else folds or 1
    sizes = sorted({*(size for size in SHORTLISTS if size < shortlist), shortlist} - {0})
    with Retriever(bundle, backend, precision) as retriever, progress_bars(work_of(loaded, parts)) as advance:
        result = evaluate(retriever, loaded, parts, advance, protocol, sizes)
    told = {"split": split, "backend": retriever.backend, "precision": precision}
    answer = json.dumps(result.as_dict() | told, indent=2)
    if output:
        with write_aside(output) as aside:
            aside.write_text(f"{answer}\n", encoding="utf-8")
    if as_json:
        typer.echo(answer)
    else:
        Console().print(evaluation_table(result, f"{data} {split}: {result.protocol}"))
        if result.shortlists:
            Console().print(shortlist_table(result))


@app.command("rank")
def rank_command(
    bundle: BundleArgument,
    query: Annotated[list[str], typer.Option(help="What to look for, in words; may be repeated.")],
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP)] = None,
    gallery: Annotated[Path | None, typer.Option(help="Gallery made by camp encode, instead of --images.")] = None,
    top_k: Annotated[int, typer.Option(help="How many answers.", min=1)] = 5,
    shortlist: Annotated[int | None, typer.Option(help="Score only so many, the nearest by global vector.")] = None,
    skip_broken: SkipBrokenOption = False,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Rank the pictures of a folder or a gallery, or the rows of a file of features, by a text."""
    if (images is None) == (gallery is None):
        raise InputError("give --images or --gallery, one of the two")
    with Retriever(bundle, backend, precision) as retriever:
        retriever.check_queries(query)  # before the pictures: they may take minutes
        retriever.check_counts(top_k, shortlist)
        if gallery is not None:
            corpus = retriever.open_gallery(gallery)
        else:
            assert images is not None
            corpus = encode_all(retriever, images, skip_broken, max_megapixels)
        pairs = len(query) * min(len(corpus), shortlist or len(corpus))
        with progress_bar("scoring pairs", pairs) as scored:
            rankings = retriever.rank(query, corpus, top_k, shortlist, scored)
    if as_json:
        found = [
            {"query": text, "matches": [_as_dict(match) for match in matches]}
            for text, matches in zip(query, rankings, strict=True)
        ]
        typer.echo(json.dumps({"rankings": found, "skipped": [asdict(one) for one in corpus.skipped]}, indent=2))
    else:
        for text, matches in zip(query, rankings, strict=True):
            Console().print(_ranking_table(text, matches))


app.command("encode")(encode_command)
app.command("build")(build_command)
app.command("doctor")(doctor_command)


def evaluation_table(result: Evaluation, title: str) -> Table:
    """The figures of an evaluation as a terminal table: two rows for the network, two for the global vectors."""
    table = Table(
        "", "", *(Column(name, justify="right") for name in ("R@1", "R@5", "R@10", "median", "rsum")), title=Text(title)
    )
    beside = [("global vectors alone", result.global_vectors)] if result.global_vectors else []
    for name, metrics in [("CAMP", result.network), *beside]:
        table.add_row(name, "text to image", *_figures(metrics.text_to_image), "")
        table.add_row("", "image to text", *_figures(metrics.image_to_text), f"{metrics.rsum:.1f}", end_section=True)
    return table


def shortlist_table(result: Evaluation) -> Table:
    """What scoring only the nearest by global vector loses: recalls minus those of scoring everything."""
    heads = [f"{side} {recall}" for side in ("t2i", "i2t") for recall in ("R@1", "R@5", "R@10")]
    table = Table("candidates", *(Column(head, justify="right") for head in heads), title="recall with a shortlist")
    whole = [
        recall for side in (result.network.text_to_image, result.network.image_to_text) for recall in _recalls(side)
    ]
    for size, metrics in result.shortlists.items():
        short = [recall for side in (metrics.text_to_image, metrics.image_to_text) for recall in _recalls(side)]
        table.add_row(str(size), *(f"{s:.1f} ({s - w:+.1f})" for s, w in zip(short, whole, strict=True)))
    table.add_row("all", *(f"{w:.1f}" for w in whole))
    return table


def _recalls(side: Direction) -> list[float]:
    return [side.r1, side.r5, side.r10]


def _figures(side: Direction) -> list[str]:
    return [f"{value:.1f}" for value in (side.r1, side.r5, side.r10, side.median_rank)]


def _as_dict(match: Match) -> dict[str, Any]:
    return {field: match[field] for field in ("rank", "document", "score", "logit", "corpus_id")}


def _ranking_table(query: str, matches: list[Match]) -> Table:
    # Text, not markup: a query or a file name may hold brackets.
    table = Table("rank", "score", Column("image", overflow="fold"), title=Text(visible(query)))
    for match in matches:
        table.add_row(str(match.rank), f"{match.score:.4f}", Text(visible(match.document or "")))
    return table


def main() -> None:
    """Entry point of the `camp` command."""
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # --max-megapixels is the limit here
    run_app(app)


if __name__ == "__main__":
    main()
