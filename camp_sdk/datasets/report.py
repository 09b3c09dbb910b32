"""What the check of a data set finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROKEN_FILE = "broken files"
BROKEN_LINE = "broken lines"
MISSING = "missing pictures"
BROKEN_PICTURE = "broken pictures"
NO_CAPTION = "pictures without captions"
EMPTY = "empty captions"
LEAK = "images in two splits"
UNDESCRIBED = "pictures that no line describes"
SAME_IMAGE = "images twice in a split"
REPEATED = "captions twice at an image"
SHARED = "captions of several images"
BROKEN = (BROKEN_FILE, BROKEN_LINE, MISSING, BROKEN_PICTURE, NO_CAPTION, EMPTY, LEAK)
EDGES = (5, 10, 15, 20, 25, 30, 35, 40, 47)  # words; training cuts captions after 47
NOTES = (UNDESCRIBED, SAME_IMAGE, REPEATED, SHARED)  # may be as they should be


@dataclass(frozen=True)
class Size:
    """The size of a picture in pixels.

    Args:
        width: As the file stores it.
        height: As the file stores it.
    """

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass
class SplitReport:
    """One split of a data set.

    Args:
        name: Its name.
        images: The number of its images, the broken ones too.
        captions: The number of captions, without the empty ones.
        nbytes: The size of the pictures' files, or of the features.
        shape: R and D of features; None for pictures.
        sizes: The number of pictures of each size in pixels.
        captions_each: The number of images by their number of captions.
        words: The number of captions by their number of words.
    """

    name: str
    images: int = 0
    captions: int = 0
    nbytes: int = 0
    shape: tuple[int, int] | None = None
    sizes: Counter[Size] = field(default_factory=Counter)
    captions_each: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)

    def add_captions(self, captions: list[str]) -> None:
        """Count the captions of one image."""
        self.captions += len(captions)
        self.captions_each[len(captions)] += 1
        self.words.update(len(caption.split()) for caption in captions)

    @property
    def size_range(self) -> tuple[Size, Size, Size] | None:
        """The smallest, the median and the largest size by area; None without any."""
        by_area = sorted(self.sizes, key=lambda size: (size.width * size.height, size.width))
        if not by_area:
            return None
        middle = median(Counter({place: self.sizes[size] for place, size in enumerate(by_area)}))
        return by_area[0], by_area[middle], by_area[-1]

    @property
    def histogram(self) -> list[tuple[str, int]]:
        """The number of captions by number of words, in ranges such as "6-10", up to the last that is not empty."""
        ranges = list(zip((1, *(edge + 1 for edge in EDGES)), EDGES, strict=False))
        counts = [(f"{low}-{high}", sum(self.words[n] for n in range(low, high + 1))) for low, high in ranges]
        counts.append((f"{EDGES[-1] + 1} or more", sum(count for n, count in self.words.items() if n > EDGES[-1])))
        while counts and not counts[-1][1]:
            counts.pop()
        return counts

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "name": self.name,
            "images": self.images,
            "captions": self.captions,
            "bytes": self.nbytes,
            "shape": self.shape,
            "sizes": [[size.width, size.height, count] for size, count in self.sizes.most_common()],
            "captions_each": dict(sorted(self.captions_each.items())),
            "words": dict(sorted(self.words.items())),
        }


@dataclass(frozen=True)
class Sample:
    """An image to show.

    Args:
        split: Its split.
        name: Its name in the split.
        path: The picture, or None for features.
        captions: Its captions.
    """

    split: str
    name: str
    path: Path | None
    captions: list[str]


@dataclass
class DataReport:
    """What the check of a data set found.

    Args:
        data: The folder of the data set.
        root: The folder that its dataset.json declares for the pictures, or None.
        splits: The splits.
        findings: What was found, by kind: a line for each.
        samples: A few images of every split.
    """

    data: Path
    root: Path | None = None
    splits: list[SplitReport] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in (*BROKEN, *NOTES)})
    samples: list[Sample] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is broken: training and evaluation can use every image and caption."""
        return not any(self.findings[kind] for kind in BROKEN)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON, without the samples."""
        return {
            "data": str(self.data),
            "root": None if self.root is None else str(self.root),
            "whole": self.is_whole,
            "splits": [split.as_dict() for split in self.splits],
            "findings": self.findings,
        }


def median(counts: Counter[int]) -> int:
    """The median of numbers, given how often each occurs; the lower of two, and 0 of none."""
    left = (sum(counts.values()) + 1) // 2
    for number, count in sorted(counts.items()):
        left -= count
        if left <= 0:
            return number
    return 0


def summary_rows(splits: list[SplitReport]) -> list[list[str]]:
    """A table of some splits: a row with their names, and a row for each property."""
    return [
        ["", *(split.name for split in splits)],
        ["images", *(f"{split.images:,}" for split in splits)],
        ["captions", *(f"{split.captions:,}" for split in splits)],
        ["captions of an image", *(_range(split.captions_each) for split in splits)],
        ["words of a caption", *(_range(split.words) for split in splits)],
        ["pixels or features", *map(_shape, splits)],
        ["MB", *(f"{split.nbytes / 1e6:,.1f}" for split in splits)],
    ]


def _shape(split: SplitReport) -> str:
    if split.shape:
        return f"{split.shape[0]} regions of width {split.shape[1]}"
    return _between(*split.size_range) if split.size_range else "-"


def _range(counts: Counter[int]) -> str:
    return _between(min(counts), median(counts), max(counts)) if counts else "-"


def _between(least: object, middle: object, most: object) -> str:
    """The least and the most of several values with the median; or the only one."""
    return f"{least} to {most} (median {middle})" if least != most else str(least)
