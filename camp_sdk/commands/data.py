"""The commands `camp data ...`: make data sets of the files that others publish, and check one.

What they do is imported when one of them is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.commands.options import JsonOption
from camp_sdk.runtime.messages import visible

if TYPE_CHECKING:
    from camp_sdk.datasets.report import DataReport
    from camp_sdk.datasets.writer import Imported

data_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make data sets of published captions and features, and check one.",
)

ImagesOption = Annotated[Path, typer.Option(help="Folder that all pictures lie below. They are not copied.")]
SkipOption = Annotated[
    bool,
    typer.Option("--skip-missing", help="Leave out pictures that are missing and captions that are empty."),
]
RestvalOption = Annotated[bool, typer.Option("--restval", help="Join the split restval of COCO to train.")]
BAR = 40  # the longest bar of a histogram, in characters
SHOWN = 5  # findings of each kind
OUTPUT = "Folder of the new data set."
SPLIT = "Split that the pictures are in."


@data_app.command("coco")
def coco_command(
    annotations: Annotated[list[Path], typer.Option(help="captions_train2017.json or the like; may be repeated.")],
    images: Annotated[list[Path], typer.Option(help="Folder of its pictures, for each file. They are not copied.")],
    output: Annotated[Path, typer.Option(help=OUTPUT)] = Path("data/coco"),
    split: Annotated[
        list[str] | None,
        typer.Option(help='Split, for each file. Default: dev for files with "val" in their names, otherwise train.'),
    ] = None,
    skip_missing: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """COCO's own captions."""
    from camp_sdk.datasets.coco import coco_splits, read_coco
    from camp_sdk.datasets.writer import Target, import_pictures

    root, sources = coco_splits(annotations, images, split or [])
    target = Target(output, root, skip_missing)
    _show(import_pictures(lambda reading: read_coco(sources, reading), annotations, target), as_json)


@data_app.command("karpathy")
def karpathy_command(
    file: Annotated[Path, typer.Argument(help="dataset_flickr30k.json, dataset_coco.json or the like.")],
    images: ImagesOption,
    output: Annotated[Path, typer.Option(help=OUTPUT)] = Path("data/karpathy"),
    restval: RestvalOption = False,
    skip_missing: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Karpathy's splits of Flickr30K, COCO and Flickr8K."""
    from camp_sdk.datasets.karpathy import read_karpathy
    from camp_sdk.datasets.writer import Target, import_pictures

    target = Target(output, images, skip_missing)
    _show(import_pictures(lambda reading: read_karpathy(file, images, reading, restval), [file], target), as_json)


@data_app.command("flickr30k")
def flickr30k_command(
    file: Annotated[Path, typer.Argument(help="results_20130124.token.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: flickr30k-images beside the file.")
    ] = None,
    output: Annotated[Path, typer.Option(help=OUTPUT)] = Path("data/flickr30k"),
    splits: Annotated[
        Path | None, typer.Option(help="Folder with train.txt, val.txt and test.txt, a picture on each line.")
    ] = None,
    split: Annotated[str, typer.Option(help=f"{SPLIT} Not with --splits.")] = "train",
    skip_missing: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Flickr30K's own captions."""
    from camp_sdk.datasets.flickr30k import read_flickr30k, read_lists
    from camp_sdk.datasets.records import split_name
    from camp_sdk.datasets.writer import Target, import_pictures

    in_split = read_lists(splits) if splits else split_name(split, "`split`")
    target = Target(output, images or file.parent / "flickr30k-images", skip_missing)
    _show(import_pictures(lambda reading: read_flickr30k(file, in_split, reading), [file], target), as_json)


@data_app.command("csv")
def csv_command(
    file: Annotated[Path, typer.Argument(help="Table as text, whose first line names the columns.")],
    images: ImagesOption,
    file_column: Annotated[str, typer.Option(help="Column with the picture's path below --images.")],
    caption_column: Annotated[list[str], typer.Option(help="Column with a caption; may be repeated.")],
    split_column: Annotated[str | None, typer.Option(help="Column with the split.")] = None,
    output: Annotated[Path, typer.Option(help=OUTPUT)] = Path("data/csv"),
    split: Annotated[str, typer.Option(help=f"{SPLIT} Not with --split-column.")] = "train",
    delimiter: Annotated[
        str | None, typer.Option(help=r"Between columns, \t for a tab. Default: found by the first line.")
    ] = None,
    skip_missing: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """A table with named columns."""
    from camp_sdk.datasets.csv_columns import Columns, read_table
    from camp_sdk.datasets.writer import Target, import_pictures

    between = "\t" if delimiter == r"\t" else delimiter
    columns = Columns(file_column, caption_column, split_column, between, split)
    target = Target(output, images, skip_missing)
    _show(import_pictures(lambda reading: read_table(file, columns, reading), [file], target), as_json)


@data_app.command("butd")
def butd_command(
    files: Annotated[list[Path], typer.Argument(help="trainval_36.tsv or the like; several follow one another.")],
    captions: Annotated[
        Path | None, typer.Option(help="dataset_coco.json or the like, with splits and captions. Default: none.")
    ] = None,
    output: Annotated[Path, typer.Option(help=OUTPUT)] = Path("data/butd"),
    restval: RestvalOption = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images that lack features or five captions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Region features of bottom-up attention."""
    from camp_sdk.datasets.butd import Captions, import_butd

    _show(import_butd(files, output, Captions(captions, restval, skip_missing)), as_json)


@data_app.command("check")
def check_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set.")],
    html: Annotated[Path | None, typer.Option(help="Page to write, with samples of every split.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every line, picture and caption of a data set; exit code 1 if something is broken."""
    from camp_sdk.datasets.check import check_data
    from camp_sdk.datasets.page import write_page
    from camp_sdk.runtime.files import check_writable, followed

    if html:
        check_writable(followed(html))
    report = check_data(folder)
    if html:
        write_page(html, report)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report, Console())
    raise typer.Exit(0 if report.is_whole else 1)


def _print_report(report: DataReport, console: Console) -> None:
    from camp_sdk.datasets.report import BROKEN, NOTES, summary_rows

    if report.root:
        console.print(_line(f"pictures: {report.root}"))
    head, *rows = summary_rows(report.splits)
    table = Table(*(Column(_line(name), justify="right" if name else "left") for name in head))
    for row in rows:
        table.add_row(*map(_line, row))
    console.print(table)
    for split in report.splits:
        most = max((count for _, count in split.histogram), default=0)
        console.print(_line(f"words in captions of {split.name}:"))
        for label, count in split.histogram:
            console.print(_line(f"{label:>10} {count:>9,} {'█' * round(BAR * count / most)}"))
    for kind in (*BROKEN, *NOTES):
        _print_findings(kind, report.findings[kind], "red" if kind in BROKEN else "yellow", console)
    console.print("nothing is broken" if report.is_whole else "something is broken")


def _print_findings(kind: str, lines: list[str], style: str, console: Console) -> None:
    if lines:
        console.print(Text(f"{kind}: {len(lines):,}", style=style))
    for line in lines[:SHOWN]:
        console.print(_line(f"  {line}"), soft_wrap=True)
    if len(lines) > SHOWN:
        console.print(f"  and {len(lines) - SHOWN:,} more: --json lists all")


def _line(text: str) -> Text:
    return Text(visible(text))


def _show(imported: Imported, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(imported.as_dict(), indent=2))
        return
    for split, counts in imported.splits.items():
        captions = f", {counts.captions:,} captions" if counts.captions else ""
        typer.echo(visible(f"{imported.output}: {split}: {counts.images:,} images{captions}"))
    for what, count in imported.left_out.items():
        typer.echo(visible(f"{what}, left out: {count:,}"))
