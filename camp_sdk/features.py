"""What an app gives as images, to region features: pictures through the vision graph, ready features checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.pictures import normalise, read_picture
from camp_sdk.runtime.bundle import Manifest
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import forget_pages

Image = Any  # a path, a PIL image, a uint8 array [H, W, 3], or float features [R, D]
ENCODE_IMAGES = 32


@dataclass(frozen=True)
class FeatureReader:
    """Reads images as a bundle takes them; ``vision`` makes features [b, R, D] of normalised pixels [b, 3, H, W]."""

    manifest: Manifest
    vision: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def batches(
        self,
        images: Iterable[Image],
        names: Sequence[str] | None,
        documents: list[str | None],
        on_progress: Callable[[int], None],
    ) -> Iterator[NDArray[np.float32]]:
        """Features [b, R, D] of consecutive images, checked; what each is called goes to ``documents``.

        Raises InputError, naming the image, for one that cannot be read or is not like the others.
        """
        first: NDArray[Any] | None = None  # the features all others must be like, if these are features
        walk = enumerate(images)
        while batch := list(itertools.islice(walk, ENCODE_IMAGES)):
            if batch[0][0] == 0 and _is_features(batch[0][1]):
                first = batch[0][1]
            yield self._read_pictures(batch) if first is None else self._check_features(batch, first.shape[0], names)
            forget_pages(images)
            documents += [str(image) if isinstance(image, (str, Path)) else None for _, image in batch]
            on_progress(len(batch))

    def _read_pictures(self, batch: list[tuple[int, Image]]) -> NDArray[np.float32]:
        for index, image in batch:
            if index and _is_features(image):
                raise InputError(f"image {index} is ready features, those before it pictures: encode them apart")
        spec = self.manifest.pixels
        if spec is None:
            raise InputError(
                f"image {batch[0][0]} is a {kind_of(batch[0][1])}, but this bundle takes region features, float [R, "
                f"{self.manifest.feature_width}]; export a model trained on pictures to encode pictures"
            )
        names = [str(image) if isinstance(image, (str, Path)) else f"image {index}" for index, image in batch]
        pixels = [read_picture(p, spec.height, spec.width, name) for (_, p), name in zip(batch, names, strict=True)]
        return self.vision(normalise(np.stack(pixels), spec))

    def _check_features(
        self, batch: list[tuple[int, Image]], regions: int, names: Sequence[str] | None
    ) -> NDArray[np.float32]:
        width = self.manifest.feature_width
        rows = np.empty((len(batch), regions, width), np.float32)
        for row, (index, features) in zip(rows, batch, strict=True):
            name = names[index] if names and index < len(names) else f"image {index}"
            if not _is_features(features):
                raise InputError(f"{name} is a {kind_of(features)}, those before it ready features: encode them apart")
            if features.shape[1] != width or not features.shape[0]:
                raise InputError(
                    f"{name} has features {features.shape}: expected [R, {width}] with R above 0, of the detector or "
                    "network this model was trained with"
                )
            if features.shape[0] != regions:
                raise InputError(
                    f"{name} has {features.shape[0]} regions, those before it {regions}: encode images of different "
                    "numbers of regions as galleries of their own"
                )
            with np.errstate(over="ignore"):
                row[:] = features
            if not np.isfinite(row).all():
                raise InputError(
                    f"{name} has features that are NaN or infinite: expected finite float32 numbers; leave it out, or "
                    "extract its features again"
                )
        return rows


def _is_features(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == 2 and np.issubdtype(image.dtype, np.floating)


def kind_of(image: Any) -> str:
    """What an image was given as, for messages."""
    if isinstance(image, np.ndarray):
        return f"{image.dtype} array {image.shape}"
    return "picture" if isinstance(image, (str, Path)) else type(image).__name__
