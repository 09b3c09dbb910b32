"""Data sets on disk: folders of pictures with captions, and precomputed region features.

Pictures: ``{split}/metadata.jsonl`` with one line ``{"file_name": ..., "captions": [...]}`` per picture (the
ImageFolder convention), in the folder of the split or below the root that a ``dataset.json`` declares. Features:
``{split}_ims.npy`` float [images, R, D] and ``{split}_caps.txt`` with one caption per line. Both layouts in circulation
are read: one row per image with five captions each, and one row per caption, with the row of each image repeated five
times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.datasets.metadata import EXPECTED, METADATA_FILE, NO_CAPTIONS, read_rows
from camp_sdk.datasets.root import picture_root
from camp_sdk.datasets.text_files import read_lines
from camp_sdk.runtime.arrays import map_array
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

CAPTIONS_PER_IMAGE = 5
OTHER_NAMES = {"dev": ("val", "validation"), "val": ("dev", "validation"), "validation": ("dev", "val")}
Features = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Args:
        name: The name of the split, such as "test".
        images: Paths of I pictures, or features [I, R, D] in float16, float32 or float64, memory-mapped. Readers of
            features convert them to float32, batch by batch.
        captions: T strings.
        image_of_caption: [T] int64: the index of the image that each caption describes.
    """

    name: str
    images: Sequence[Path] | Features
    captions: list[str]
    image_of_caption: NDArray[np.int64]

    @property
    def has_pictures(self) -> bool:
        """Whether the images are pictures, not features."""
        return not isinstance(self.images, np.ndarray)


def load_split(data: str | Path, split: str) -> Split:
    """Read one split of a data set of pictures or of precomputed features.

    Args:
        data: The folder of the data set. A split of pictures is a folder with a file metadata.jsonl; a split of
            features is a pair of files such as test_ims.npy and test_caps.txt.
        split: The name of the split, such as "train", "dev" or "test". Where there is no "dev", a "val" or
            "validation" is read, and the other way round.

    Raises:
        BundleError: There is no such split, or one of its files is broken; the message names the file and the line.
    """
    folder = Path(data)
    names = [split, *OTHER_NAMES.get(split, ())]
    for name in names:
        if _is_file(folder / name / METADATA_FILE):
            return _load_pictures(folder, folder / name, split)
        if _is_file(folder / f"{name}_ims.npy"):
            return _load_features(folder, name, split)
    raise BundleError(
        f"{folder} has no split {' or '.join(map(brief, names))}: expected {split}/metadata.jsonl (pictures) or "
        f"{split}_ims.npy with {split}_caps.txt (features); make an example with: camp scenes --output {folder}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError) as error:  # a name longer than the system allows, or with a zero byte
        raise BundleError(
            f"{brief(str(path))} cannot be a path ({getattr(error, 'strerror', None) or error})"
        ) from None


def _load_pictures(data: Path, folder: Path, split: str) -> Split:
    metadata, root = folder / METADATA_FILE, picture_root(data, folder)
    images: list[Path] = []
    captions: list[str] = []
    owners: list[int] = []
    lines_of: dict[Path, int] = {}
    for row in read_rows(metadata):
        if isinstance(row, BundleError):
            raise row
        where = f"{metadata}:{row.number}"
        if not row.is_whole:
            raise BundleError(f"{where}: {EXPECTED} {NO_CAPTIONS}")
        path = root.path_of(row.file_name, where)
        if (before := lines_of.setdefault(path, row.number)) != row.number:
            # As two images they would be each other's negatives, and a query could never rank the right one first.
            raise BundleError(f"{where} describes {path.name}, as line {before} does: expected one line")
        owners += [len(images)] * len(row.captions)
        captions += row.captions
        images.append(path)
    if not captions:
        raise BundleError(f"{metadata} describes no picture: expected one line per picture")
    return Split(split, images, captions, np.array(owners, np.int64))


def _load_features(folder: Path, name: str, split: str) -> Split:
    features_file, captions_file = folder / f"{name}_ims.npy", folder / f"{name}_caps.txt"
    features = _map_features(features_file)
    captions = _read_captions(captions_file)
    rows, count = len(features), len(captions)
    if rows == count:
        features = _distinct_rows(features, features_file)
    if count % len(features) or count // len(features) not in (1, CAPTIONS_PER_IMAGE):
        raise BundleError(
            f"{captions_file} has {count} captions for the {rows} rows of {features_file}: "
            f"expected one per row, or {CAPTIONS_PER_IMAGE}"
        )
    return Split(split, features, captions, np.repeat(np.arange(len(features)), count // len(features)))


def open_rows(path: Path) -> tuple[Features, list[str]]:
    """Open a .npy file of features, memory-mapped.

    If the file repeats each row five times, once for each caption, only every fifth row is used.

    Args:
        path: The file: float16, float32 or float64 [I, R, D].

    Returns:
        Features [I, R, D], and the name of each image, which is its row in the file: "row 5".

    Raises:
        BundleError: The file does not hold features.
    """
    rows = _map_features(path)
    whole = len(rows) % CAPTIONS_PER_IMAGE == 0
    features = rows[::CAPTIONS_PER_IMAGE] if whole and _repeats_rows(rows) else rows
    return features, [f"row {row}" for row in range(0, len(rows), len(rows) // len(features))]


def _map_features(path: Path) -> Features:
    features: NDArray[Any] = map_array(path, "copy it again")
    if features.dtype.kind != "f" or features.ndim != 3 or not len(features):
        raise BundleError(f"{path} is {features.dtype} {features.shape}: expected floats [images, regions, width]")
    return features


def _read_captions(path: Path) -> list[str]:
    if not path.is_file():
        raise BundleError(f"{path} is missing: expected one caption per line")
    captions = [line.strip() for _, line in read_lines(path, lambda size: None)]
    for number, caption in enumerate(captions, start=1):
        if not caption:
            raise BundleError(f"{path}:{number} is empty: expected a caption on every line")
    return captions


def _distinct_rows(features: Features, path: Path) -> Features:
    """Each image once, from a file with one row per caption, which may hold an image's row for each of its captions."""
    if not _repeats_rows(features):  # two pictures may be equal
        return features
    if len(features) % CAPTIONS_PER_IMAGE:
        raise BundleError(
            f"{path} repeats its rows, as files with one row per caption do, but its {len(features)} rows are not "
            f"groups of {CAPTIONS_PER_IMAGE} equal ones"
        )
    return features[::CAPTIONS_PER_IMAGE]


def _repeats_rows(features: Features) -> bool:
    """Whether each row is repeated five times, except at the end; reads a few rows, not the whole file.

    If the number of rows is no multiple of five, at least two groups must be repeated.
    """
    groups, rest = divmod(len(features), CAPTIONS_PER_IMAGE)
    if groups < (2 if rest else 1):
        return False
    some = np.unique(np.linspace(0, groups - 1, 8).astype(int)) * CAPTIONS_PER_IMAGE
    return all((features[k : k + CAPTIONS_PER_IMAGE] == features[k]).all() for k in some)
