"""Arguments and options that several commands of `camp` share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.runtime.backends import BACKENDS
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def bytes_of(text: str) -> int:
    """The number of bytes of a size such as 512M.

    Args:
        text: The size.
    """
    found = re.fullmatch(r"(\d{1,15})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise typer.BadParameter(f"{text!r}: expected a size such as 512M or 2G")
    return int(found[1]) * UNITS[found[2].upper()]


IMAGES_HELP = (
    "Folder of pictures (without subfolders), or .npy file of float32 features [I, R, D]; rows repeated five times "
    "count once."
)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder written by camp export.")]
IndexArgument = Annotated[Path, typer.Argument(help="File of the index, such as photos.index.")]
BundleOption = Annotated[Path, typer.Option(help="Bundle folder written by camp export.")]
BackendOption = Annotated[str, typer.Option(help=f"Inference engine: auto, {', '.join(BACKENDS)}.")]
PrecisionOption = Annotated[
    str, typer.Option(help="float32; faster, with slightly different scores: float16 (GPUs), bfloat16 (openvino).")
]
TwoPassOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="float32; faster, with slightly different scores: float16 (GPUs), bfloat16 (openvino). In two passes, "
        "the second in float32, whose scores are shown: int8, bfloat16 with --rescore, or auto for what is fast here.",
    ),
]
RescoreOption = Annotated[
    str | None,
    typer.Option(help="Items per query that the second pass scores: a number, or auto, by the error of the first."),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads on the CPU. Default: every core, within a container's quota.", min=1)
]
MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--memory-budget",
        parser=bytes_of,
        metavar="SIZE",
        help="Most memory for scoring, such as 512M or 2G. Default: as much as makes it fast.",
    ),
]
ShortlistOption = Annotated[
    int | None,
    typer.Option(
        help="Score only this many images per query, the nearest by global vector. 0: all. Default: the bundle's."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBrokenOption = Annotated[
    bool,
    typer.Option("--skip-broken", help="Skip pictures that cannot be read, with a warning on standard error."),
]
MegapixelsOption = Annotated[float, typer.Option(help="Largest picture to decode, in megapixels.")]
WhereOption = Annotated[str | None, typer.Option(help='Conditions on metadata, in JSON: \'{"year": {"gte": 2020}}\'.')]


def conditions_of(where: str | None) -> Any:
    """The conditions that an option holds, in JSON.

    Args:
        where: The option; None for no conditions.
    """
    if where is None:
        return None
    try:
        return json.loads(where)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`where` is {brief(where)}: expected JSON ({error})") from None
