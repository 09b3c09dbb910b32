"""From images to region features: pictures are encoded by the vision graph, ready features are checked."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from camp_sdk.picture_files import is_one_picture, path_name
from camp_sdk.pictures import MAX_MEGAPIXELS, PictureError, check_picture, held, is_lazy, normalise, read_pixels
from camp_sdk.results import Skipped
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import absolute, forget_pages
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.messages import visible
from camp_sdk.runtime.threads import available_cores, map_ahead

# A path, a file object, the bytes of a picture file, a PIL image, a uint8 array [H, W, 3], or float features [R, D].
Image = Any
Features = NDArray[np.float32]
ENCODE_IMAGES = 32
LOG = logging.getLogger("camp_sdk")


class _Item(NamedTuple):
    """One image of the input.

    Args:
        place: Its position in the input.
        document: Its name in a gallery, or None.
        name: Its name in messages.
        image: The image itself; after decoding, its pixels, or the error if it cannot be read.
        file: The absolute path of an image given as a path without a name.
    """

    place: int
    document: str | None
    name: str
    image: Any
    file: str | None = None


@dataclass(frozen=True)
class FeatureBatch:
    """Consecutive images of the input.

    Args:
        features: Checked features [b, R, D] float32; None if every picture of the batch was left out.
        documents: The gallery's name for each image in ``features``.
        skipped: The pictures that were left out.
        files: The absolute path of each image whose name in the gallery is its path; () if there are none.
    """

    features: Features | None
    documents: tuple[str | None, ...]
    skipped: tuple[Skipped, ...] = ()
    files: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        """The number of images done, including those left out."""
        return len(self.documents) + len(self.skipped)


Batches = Generator[FeatureBatch, None, None]


@dataclass(frozen=True)
class FeatureReader:
    """Reads images into region features for a bundle.

    Args:
        pixels: The input of the vision graph; None for a bundle without one.
        feature_width: Width D of the features.
        vision: Computes features [b, R, D] from normalised pixels [b, 3, H, W].
        threads: The number of threads that decode pictures, one batch ahead of ``vision``; None for one per core.
        skip_broken: Leave out pictures that cannot be read. Ready features are never left out.
        max_megapixels: Pictures with more megapixels are not decoded.
    """

    pixels: PixelSpec | None
    feature_width: int
    vision: Callable[[Features], Features]
    threads: int | None = None
    skip_broken: bool = False
    max_megapixels: float = MAX_MEGAPIXELS

    def batches(self, images: Iterable[Image], names: Sequence[str] | None = None) -> Batches:
        """Yield the features of all images, in order and in batches. Close the generator if you may stop early.

        Args:
            images: Pictures, or features [R, D], not both.
            names: The name of each image.

        Raises:
            InputError: An image cannot be read, or is of another kind or size than the others; the message names it.
        """
        items = _items(images, names)
        first = next(items, None)
        if first is None:
            return
        items = itertools.chain([first], items)
        if _is_features(first.image):
            batches = self._feature_batches(items, len(first.image))
        else:
            batches = self._picture_batches(items, self._pixels_for(first))
        with closing(batches):
            for batch in batches:
                yield batch
                forget_pages(images)

    def _pixels_for(self, first: _Item) -> PixelSpec:
        if self.pixels is None:
            raise InputError(
                f"{first.name} is a {kind_of(first.image)}, but this bundle takes region features, float "
                f"[R, {self.feature_width}]; to encode pictures, use the bundle of a model trained on pictures"
            )
        return self.pixels

    def _picture_batches(self, items: Iterator[_Item], spec: PixelSpec) -> Batches:
        read, threads = partial(self._read, spec=spec), self.threads or available_cores()
        with closing(map_ahead(read, _pictures_only(items), threads, ENCODE_IMAGES, _reads_now)) as decoded:
            while taken := self._take(decoded):
                good = [item for item in taken if not isinstance(item.image, PictureError)]
                skipped = tuple(_skipped(item) for item in taken if isinstance(item.image, PictureError))
                features = None
                if good:
                    pixels = np.stack([item.image for item in good])  # [b, H, W, 3]
                    features = self.vision(normalise(pixels, spec))  # [b, R, D]
                files = tuple(item.file for item in good)
                yield FeatureBatch(features, tuple(item.document for item in good), skipped, files)

    def _take(self, decoded: Iterator[_Item]) -> list[_Item]:
        """Items up to a full batch of readable ones, so that pictures left out do not change the other batches."""
        taken: list[_Item] = []
        readable = 0
        while readable < ENCODE_IMAGES and (item := next(decoded, None)) is not None:
            if not isinstance(item.image, PictureError):
                readable += 1
            elif not self.skip_broken:
                raise item.image
            taken.append(item)
        return taken

    def _read(self, item: _Item, spec: PixelSpec) -> _Item:
        """The item with its image replaced by its pixels [H, W, 3], or by the error if it cannot be read."""
        if isinstance(item.image, PictureError):
            return item
        pixels: NDArray[np.uint8] | PictureError
        try:
            pixels = read_pixels(item.image, spec, item.name, self.max_megapixels)
        except PictureError as error:
            pixels = error
        return item._replace(image=pixels)

    def _feature_batches(self, items: Iterator[_Item], regions: int) -> Batches:
        while batch := list(itertools.islice(items, ENCODE_IMAGES)):
            rows = np.empty((len(batch), regions, self.feature_width), np.float32)  # [b, R, D]
            for row, item in zip(rows, batch, strict=True):
                self._check_features(item, regions)
                with np.errstate(over="ignore"):
                    row[:] = item.image
                if not np.isfinite(row).all():
                    raise InputError(
                        f"{item.name} has features that are NaN or infinite: expected finite float32 numbers; leave it "
                        "out, or extract its features again"
                    )
            yield FeatureBatch(rows, tuple(item.document for item in batch))

    def _check_features(self, item: _Item, regions: int) -> None:
        if not _is_features(item.image):
            raise InputError(
                f"{item.name} is a {kind_of(item.image)}, those before it are ready features: encode them separately"
            )
        found, width = item.image.shape, self.feature_width
        if found[1] != width or not found[0]:
            raise InputError(
                f"{item.name} has features {found}: expected [R, {width}] with R above 0, made by the detector or "
                "network that this model was trained with"
            )
        if found[0] != regions:
            raise InputError(
                f"{item.name} has {found[0]} regions, those before it have {regions}: encode images with different "
                "numbers of regions as separate galleries"
            )


def _skipped(item: _Item) -> Skipped:
    reason = str(item.image).removeprefix(f"{item.name} ")
    LOG.warning("left out %s: %s", visible(item.name), visible(reason))
    return Skipped(item.place, item.name, reason)


def _items(images: Iterable[Image], names: Sequence[str] | None) -> Iterator[_Item]:
    for index, image in enumerate(images):
        if names and index < len(names):
            yield _Item(index, names[index], names[index] or f"image {index}", image)
            continue
        document = _path_of(image, index)
        yield _Item(index, document, document or f"image {index}", image, _file_of(document))


def _path_of(image: Any, index: int) -> str | None:
    try:
        return path_name(image)
    except Exception as error:  # an object that stands for a path may raise anything
        raise InputError(f"image {index} gives no path ({error}): expected a path, or another picture") from None


def _file_of(document: str | None) -> str | None:
    """The absolute path of a file; None for no path, and for one that leads nowhere from here."""
    if document is None or "\0" in document:
        return None
    try:
        os.fsencode(document)  # fails for half a surrogate pair
        return str(absolute(document))
    except (OSError, ValueError, RuntimeError):  # such as a relative path in a folder that was deleted
        return None


def _pictures_only(items: Iterator[_Item]) -> Iterator[_Item]:
    for item in items:
        if _is_features(item.image):
            raise InputError(f"{item.name} is ready features, those before it are pictures: encode them separately")
        check_picture(item.image, item.name)  # raises at once: what is not a picture at all is never left out
        yield _held(item)


def _held(item: _Item) -> _Item:
    """The item with what the caller may change, move or close read into memory, or with the error of reading it."""
    try:
        return item._replace(image=held(item.image, item.name))
    except PictureError as error:
        return item._replace(image=error)


def _reads_now(item: _Item) -> bool:
    return is_lazy(item.image)


def _is_features(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 2 and np.issubdtype(image.dtype, np.floating)


def kind_of(image: Any) -> str:
    """The type of an image, for messages."""
    if isinstance(image, np.ndarray):
        return f"{image.dtype} array {image.shape}"
    return "picture" if is_one_picture(image) else type(image).__name__


def nothing_left(skipped: Sequence[Skipped]) -> str:
    """The message if there is no image to encode: none was given, or none can be read."""
    if not skipped:
        return "there are no images to encode: expected at least one"
    return f"none of the {len(skipped)} pictures can be read; the first, {skipped[0].name}: {skipped[0].reason}"
