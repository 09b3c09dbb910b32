"""Encode images batch by batch, and keep what a gallery needs of each: tensors, names, paths, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from camp_sdk.arguments import Advance, checked_names, is_several
from camp_sdk.features import FeatureBatch, nothing_left
from camp_sdk.picture_files import is_one_picture, is_path
from camp_sdk.results import Skipped
from camp_sdk.runtime.encode import FeatureEncoder
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """Images encoded for a gallery.

    Args:
        encoded: The images' tensors.
        documents: The name of each image, or None.
        files: The absolute path of each image whose name is its path, or None.
        skipped: The pictures that were left out.
    """

    encoded: EncodedImages
    documents: list[str | None]
    files: list[str | None]
    skipped: list[Skipped]


def checked_images(images: Any, names: Any, max_megapixels: Any) -> tuple[list[str] | None, int | None]:
    """Check the arguments of `Retriever.encode_images`.

    Returns:
        The names, if there are any, and the number of images, if it is known in advance.

    Raises:
        InputError: An argument has the wrong type or is out of range.
    """
    if is_one_picture(images) or not is_several(images):
        found = type(images).__name__ if is_one_picture(images) and not is_path(images) else repr(images)
        raise InputError(f"images is {found}: expected a list of images, or one array [I, R, D]")
    if not isinstance(max_megapixels, (int, float, np.number)) or not max_megapixels > 0:
        raise InputError(f"`max_megapixels` is {max_megapixels!r}: expected a number above 0")
    named = checked_names(names)
    total = len(images) if isinstance(images, Sized) else None
    if named is not None and total is not None and len(named) != total:
        raise InputError(f"{len(named)} names for {total} images: expected one each")
    return named, total


def encode_batches(
    batches: Iterable[FeatureBatch], open_encoder: Callable[[], FeatureEncoder], on_progress: Advance
) -> Encoded:
    """Encode all batches.

    Args:
        batches: The features of the images.
        open_encoder: Makes the encoder; called when there is something to encode.
        on_progress: Receives the number of images in each batch that was encoded.

    Raises:
        InputError: No image was left to encode.
    """
    documents: list[str | None] = []
    files: list[str | None] = []
    skipped: list[Skipped] = []
    encoder: FeatureEncoder | None = None
    for batch in batches:
        documents += batch.documents
        files += batch.files or (None,) * len(batch.documents)
        skipped += batch.skipped
        if batch.features is not None:
            encoder = encoder or open_encoder()
            encoder.add(batch.features)
        on_progress(len(batch))
    if encoder is None:
        raise InputError(nothing_left(skipped))
    return Encoded(encoder.encoded(), documents, files, skipped)
