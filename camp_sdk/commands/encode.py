"""The command `camp encode`: makes a gallery of a folder of pictures or a file of features, for `camp rank`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from camp_sdk.pictures import MAX_MEGAPIXELS, PictureError, find_pictures
from camp_sdk.progress import progress_bar
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS
from camp_sdk.runtime.errors import InputError

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
        gallery = encode_all(retriever, images, skip_broken, max_megapixels, gallery_precision)
    gallery.save(output)
    summary = {"gallery": str(output), "images": len(gallery), "bytes": gallery.nbytes, "precision": gallery.precision}
    if as_json:
        typer.echo(json.dumps(summary | {"skipped": [asdict(one) for one in gallery.skipped]}, indent=2))
    else:
        typer.echo(f"{output}: {len(gallery)} images, {gallery.nbytes / 1e6:.1f} MB, {gallery.precision}")


def encode_all(
    retriever: Retriever, images: Path, skip_broken: bool, max_megapixels: float, stored: str | None = None
) -> Gallery:
    """Encode the pictures of a folder, or the features of a file, with a progress bar.

    Args:
        retriever: Encodes the images.
        images: A folder of pictures, or a .npy file of features.
        skip_broken: As `Retriever.encode_images` takes it.
        max_megapixels: As `Retriever.encode_images` takes it.
        stored: The precision of the gallery; None for the default of `Retriever.encode_images`.

    Raises:
        InputError: As `Retriever.encode_images` raises it.
        BundleError: The file does not hold features.
    """
    from PIL import Image  # here: camp --help does not need it

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit here
    found, names = open_rows(images) if images.suffix == ".npy" else (find_pictures(images), None)
    try:
        with progress_bar("encoding images", len(found)) as advance:
            return retriever.encode_images(
                found, names, advance, stored, skip_broken=skip_broken, max_megapixels=max_megapixels
            )
    except PictureError as error:
        raise InputError(f"{error}; --skip-broken leaves out such pictures") from None
