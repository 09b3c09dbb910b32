"""The command `camp encode`: makes a gallery of a folder of pictures or a file of features, for `camp rank`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.commands.options import (
    IMAGES_HELP,
    BackendOption,
    BundleArgument,
    JsonOption,
    MegapixelsOption,
    MemoryOption,
    PrecisionOption,
    SkipBrokenOption,
    ThreadsOption,
)
from camp_sdk.data import open_rows
from camp_sdk.gallery import Gallery
from camp_sdk.gallery_files import check_output
from camp_sdk.picture_files import PassedOver, describe, find_pictures
from camp_sdk.pictures import MAX_MEGAPIXELS, PictureError
from camp_sdk.progress import progress_bar
from camp_sdk.results import Skipped
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import visible
from camp_sdk.terminal import stderr

STORED_HELP = f"Storage: {', '.join(GALLERY_PRECISIONS)}; fewer bits take less space but change scores slightly."


def encode_command(
    bundle: BundleArgument,
    images: Annotated[Path, typer.Option(help=IMAGES_HELP)],
    output: Annotated[Path, typer.Option(help="Gallery folder to write; replaces an older gallery.")],
    gallery_precision: Annotated[str | None, typer.Option(help=STORED_HELP)] = None,
    skip_broken: SkipBrokenOption = False,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode pictures or features once, as a gallery for camp rank --gallery."""
    check_output(output)
    with Retriever(bundle, backend, precision, threads, memory_budget) as retriever:
        gallery, passed_over = encode_all(retriever, images, skip_broken, max_megapixels, gallery_precision)
    gallery.save(output)
    summary = {"gallery": str(output), "images": len(gallery), "bytes": gallery.nbytes, "precision": gallery.precision}
    if as_json:
        typer.echo(json.dumps(summary | as_lists(gallery.skipped, passed_over), indent=2))
    else:
        typer.echo(f"{output}: {len(gallery)} images, {gallery.nbytes / 1e6:.1f} MB, {gallery.precision}")


def encode_all(
    retriever: Retriever, images: Path, skip_broken: bool, max_megapixels: float, stored: str | None = None
) -> tuple[Gallery, Sequence[PassedOver]]:
    """Encode the pictures of a folder, or the features of a file, with a progress bar.

    What the folder holds besides pictures is reported in one line on standard error.

    Args:
        retriever: Encodes the images.
        images: A folder of pictures, or a .npy file of features.
        skip_broken: As `Retriever.encode_images` takes it.
        max_megapixels: As `Retriever.encode_images` takes it.
        stored: The precision of the gallery; None for the default of `Retriever.encode_images`.

    Returns:
        The gallery, and what the folder holds besides pictures.

    Raises:
        InputError: As `Retriever.encode_images` raises it.
        BundleError: The file does not hold features.
    """
    from PIL import Image  # here: camp --help does not need it

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit here
    found, names, passed_over = _images_in(images)
    try:
        with progress_bar("encoding images", len(found)) as advance:
            gallery = retriever.encode_images(
                found, names, advance, stored, skip_broken=skip_broken, max_megapixels=max_megapixels
            )
    except PictureError as error:
        raise InputError(f"{error}; --skip-broken leaves out such pictures") from None
    return gallery, passed_over


def _images_in(images: Path) -> tuple[Any, list[str] | None, Sequence[PassedOver]]:
    """The features of a file and their names, or the pictures of a folder and what else it holds."""
    if images.suffix == ".npy":
        return *open_rows(images), ()
    found = find_pictures(images)
    if found.passed_over:
        line = visible(describe(found.passed_over))
        stderr.print(line, markup=False, highlight=False, soft_wrap=True)
    return found.paths, None, found.passed_over


def as_lists(skipped: Sequence[Skipped], passed_over: Sequence[PassedOver]) -> dict[str, list[dict[str, Any]]]:
    """The pictures and files that are not in a gallery, for JSON."""
    return {"skipped": [asdict(one) for one in skipped], "passed_over": [asdict(one) for one in passed_over]}
