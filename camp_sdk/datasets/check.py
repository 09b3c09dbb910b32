"""Checks a data set: every line, picture and caption, and whether images are in two splits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.data import Split, load_split
from camp_sdk.datasets.metadata import METADATA_FILE, Row, read_rows
from camp_sdk.datasets.report import (
    BROKEN_FILE,
    BROKEN_LINE,
    BROKEN_PICTURE,
    EMPTY,
    LEAK,
    MISSING,
    NO_CAPTION,
    REPEATED,
    SAME_IMAGE,
    SHARED,
    UNDESCRIBED,
    DataReport,
    Sample,
    Size,
    SplitReport,
)
from camp_sdk.datasets.root import MissingPictureError, PictureRoot, declared_root
from camp_sdk.picture_files import SUFFIXES, open_picture
from camp_sdk.pictures import PictureError, read_picture
from camp_sdk.progress import progress_bar
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import forget_pages, sha256_of
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.threads import available_cores, map_ahead

SAMPLES = 12  # of each split
SIDE = 64  # pictures are decoded to this size: JPEGs then at an eighth of theirs, but to the end of the file
AHEAD = 32
ROWS = 64  # of features at a time
ORDER = ("train", "dev", "val", "validation", "test")
FEATURES = "_ims.npy"


@dataclass(frozen=True)
class Inspected:
    """What a picture file holds.

    Args:
        digest: SHA-256 of the file; "" if it cannot be read.
        nbytes: The size of the file.
        size: In pixels, or None if it cannot be read.
        problem: Why it cannot be used as a picture, or "".
    """

    digest: str = ""
    nbytes: int = 0
    size: Size | None = None
    problem: str = ""


@dataclass
class _Seen:
    """The images and captions seen so far."""

    report: DataReport
    digests: dict[str, dict[str, str]] = field(default_factory=dict)  # the name of each image, by digest and split

    def image(self, digest: str, split: str, name: str) -> None:
        """Compare an image with all before it."""
        known = self.digests.setdefault(digest, {})
        for other, before in known.items():
            kind = SAME_IMAGE if other == split else LEAK
            self.report.findings[kind].append(f"{name} is {before}")
        known.setdefault(split, name)


def check_data(data: Path) -> DataReport:
    """Check every split of a data set, with progress bars.

    Args:
        data: The folder of the data set.

    Raises:
        BundleError: It has no split, or its dataset.json is broken.
    """
    pictures, features = _splits_of(data)
    if not pictures and not features:
        raise BundleError(f"{data} has no split: expected {{split}}/{METADATA_FILE} or {{split}}{FEATURES}")
    report = DataReport(data, declared_root(data))
    seen = _Seen(report)
    named: set[Path] = set()
    for split in pictures:
        named |= _check_pictures(split, seen)
    _find_undescribed(named, report)
    for split in features:
        _check_features(split, seen)
    return report


def _splits_of(data: Path) -> tuple[list[str], list[str]]:
    """The names of the splits of pictures, and of features."""
    try:
        names = [path.name for path in data.iterdir()]
    except (OSError, ValueError) as error:
        raise BundleError(f"{data} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    pictures = [name for name in names if (data / name / METADATA_FILE).is_file()]
    features = [name.removesuffix(FEATURES) for name in names if name.endswith(FEATURES) and name != FEATURES]
    return _in_order(pictures), _in_order(name for name in features if name not in pictures)


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


# Pictures


def _check_pictures(split: str, seen: _Seen) -> set[Path]:
    """Check one split of pictures, and return those that are there."""
    own, folder = SplitReport(split), seen.report.data / split
    seen.report.splits.append(own)
    root = PictureRoot(folder) if seen.report.root is None else PictureRoot(seen.report.root, declared=True)
    described = _described(folder / METADATA_FILE, own, root, seen.report)
    _check_captions(((row.file_name, row.captions) for row, _ in described), own, seen.report)
    paths = [path for _, path in described]
    with (
        progress_bar(f"reading pictures of {split}", len(paths)) as advance,
        closing(map_ahead(inspect, paths, available_cores(), AHEAD)) as inspected,
    ):
        whole = []
        for (row, path), found in zip(described, inspected, strict=True):
            _note_picture(found, f"{split}/{row.file_name}", own, seen)
            whole += [] if found.problem or not row.is_whole else [(row, path)]
            advance(1)
    chosen = (whole[k] for k in _spread(len(whole)))
    seen.report.samples += [Sample(split, row.file_name, path, row.captions) for row, path in chosen]
    return set(paths)


def _described(metadata: Path, own: SplitReport, root: PictureRoot, report: DataReport) -> list[tuple[Row, Path]]:
    """The rows whose pictures are there; what is wrong with the others is reported."""
    lines_of: dict[Path, int] = {}
    described: list[tuple[Row, Path]] = []
    for row in _readable_rows(metadata, report):
        own.images += 1
        where = f"{metadata}:{row.number}"
        if not row.captions:
            report.findings[NO_CAPTION].append(f"{where}: {row.file_name}")
        blank = sum(not caption.strip() for caption in row.captions)
        report.findings[EMPTY] += [f"{where}: {row.file_name}"] * blank
        try:
            path = root.path_of(row.file_name, where)
        except BundleError as error:
            report.findings[MISSING if isinstance(error, MissingPictureError) else BROKEN_LINE].append(str(error))
            continue
        if (before := lines_of.setdefault(path, row.number)) != row.number:
            report.findings[BROKEN_LINE].append(f"{where} describes {row.file_name}, as line {before} does")
            continue
        described.append((row, path))
    if not own.images:
        report.findings[BROKEN_FILE].append(f"{metadata} describes no picture")
    return described


def _readable_rows(metadata: Path, report: DataReport) -> Iterator[Row]:
    try:
        for row in read_rows(metadata):
            if isinstance(row, Row):
                yield row
            else:
                report.findings[BROKEN_LINE].append(str(row))
    except BundleError as error:  # from there on it is not text
        report.findings[BROKEN_FILE].append(str(error))


def inspect(path: Path) -> Inspected:
    """Read a picture file: its hash, its size, and whether it can be decoded.

    Args:
        path: The file.
    """
    try:
        digest, nbytes = sha256_of(path), path.stat().st_size
    except OSError as error:
        return Inspected(problem=f"{path} cannot be read: {error.strerror or error}")
    try:
        read_picture(path, SIDE, SIDE, str(path))
    except PictureError as error:
        return Inspected(digest, nbytes, problem=str(error))
    return Inspected(digest, nbytes, _size_of(path))


def _size_of(path: Path) -> Size | None:
    try:
        with open_picture(path) as opened:
            return Size(*opened.size)
    except MemoryError:
        raise
    except Exception:  # of any type: the decoder above knows what to do about large metadata of a PNG, this does not
        return None


def _note_picture(found: Inspected, name: str, own: SplitReport, seen: _Seen) -> None:
    own.nbytes += found.nbytes
    if found.size:
        own.sizes[found.size] += 1
    if found.problem:
        seen.report.findings[BROKEN_PICTURE].append(found.problem)
    if found.digest:
        seen.image(found.digest, own.name, name)


def _find_undescribed(named: set[Path], report: DataReport) -> None:
    """Report the pictures in the same folders that no line of any split describes."""
    for folder in sorted({path.parent for path in named}):
        with os.scandir(folder) as entries:
            pictures = (entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
            names = sorted(name for name in pictures if not name.startswith("."))
        report.findings[UNDESCRIBED] += [str(folder / name) for name in names if folder / name not in named]


# Captions


def _check_captions(images: Iterable[tuple[str, list[str]]], own: SplitReport, report: DataReport) -> None:
    """Count the captions of a split, and report those that are there twice."""
    first: dict[str, str] = {}
    several: dict[str, int] = defaultdict(lambda: 1)
    for name, captions in images:
        whole = [caption for caption in captions if caption.strip()]
        own.add_captions(whole)
        distinct = dict.fromkeys(whole)
        if len(distinct) < len(whole):
            report.findings[REPEATED].append(f"{own.name}/{name} repeats {len(whole) - len(distinct)} of its captions")
        for caption in distinct:
            if first.setdefault(caption, name) != name:
                several[caption] += 1
    report.findings[SHARED] += [f"{brief(text)} is of {count} images of {own.name}" for text, count in several.items()]


def _spread(count: int) -> list[int]:
    """A few numbers below ``count``, spread evenly."""
    return sorted(set(np.linspace(0, count - 1, min(SAMPLES, count)).astype(int).tolist()))


# Features


def _check_features(split: str, seen: _Seen) -> None:
    own = SplitReport(split)
    seen.report.splits.append(own)
    try:
        loaded = load_split(seen.report.data, split)
    except BundleError as error:
        seen.report.findings[BROKEN_FILE].append(str(error))
        return
    features: Any = loaded.images
    own.images, own.shape, own.nbytes = len(features), features.shape[1:], features.nbytes
    captions = _captions_of(loaded)
    _check_captions(((f"image {k}", texts) for k, texts in enumerate(captions)), own, seen.report)
    with progress_bar(f"reading features of {split}", len(features)) as advance:
        for start in range(0, len(features), ROWS):
            for index, row in enumerate(features[start : start + ROWS], start=start):
                name = f"image {index} of {split}"
                if not np.isfinite(row).all():
                    seen.report.findings[BROKEN_PICTURE].append(f"{name} has features that are not finite numbers")
                seen.image(hashlib.sha256(row.tobytes()).hexdigest(), split, name)
                advance(1)
            forget_pages(features)
    seen.report.samples += [Sample(split, f"image {k}", None, captions[k]) for k in _spread(len(captions))]


def _captions_of(split: Split) -> list[list[str]]:
    captions: list[list[str]] = [[] for _ in range(len(split.images))]
    for owner, caption in zip(split.image_of_caption, split.captions, strict=True):
        captions[owner].append(caption)
    return captions
