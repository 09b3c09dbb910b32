"""Region features of bottom-up attention: trainval_36.tsv and the like, with base64 in columns.

They become .npy files, a row at a time: R regions of width D per image, and their boxes as left, top, right and bottom
in fractions of the picture's width and height.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.data import CAPTIONS_PER_IMAGE
from camp_sdk.datasets.karpathy import KarpathyImage, read_images
from camp_sdk.datasets.records import NO_SPLIT, Reading
from camp_sdk.datasets.rows import RowWriter
from camp_sdk.datasets.text_files import Advance, read_lines
from camp_sdk.datasets.writer import Imported, SplitCounts, check_output, total_bytes
from camp_sdk.progress import progress_bars
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import followed, write_aside
from camp_sdk.runtime.messages import brief

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
MAX_LINE = 16 << 20  # bytes; 100 regions of width 2,048 take 1.1 MB
MAX_DIGITS = 6  # of a picture's sides and of the number of its boxes
FEW_CAPTIONS = f"images with fewer than {CAPTIONS_PER_IMAGE} captions"
NO_FEATURES = "images without features"
Choice = tuple[str, list[str]]  # the split of an image, and its captions


@dataclass(frozen=True)
class Regions:
    """A line of the file.

    Args:
        image_id: As the file has it.
        features: float32 [R, D].
        boxes: float32 [R, 4], in fractions of the picture.
        where: The file and the line, for messages.
    """

    image_id: str
    features: NDArray[np.float32]
    boxes: NDArray[np.float32]
    where: str


@dataclass(frozen=True)
class Captions:
    """The captions that belong to the features.

    Args:
        file: Karpathy's file, or None to write the features of all images without captions.
        restval: Whether the images of its "restval" are in "train".
        skip_missing: Whether images that lack features or captions are left out and counted, instead of being an error.
    """

    file: Path | None = None
    restval: bool = False
    skip_missing: bool = False


def import_butd(files: Sequence[Path], output: Path, captions: Captions) -> Imported:
    """Write features, boxes and ids as a data set of precomputed features. If it fails, nothing is written.

    With captions, the files of each split are ``{split}_ims.npy``, ``{split}_boxes.npy``, ``{split}_ids.txt`` and
    ``{split}_caps.txt``, of which the last has five lines per image. Without, they are ``features.npy``, ``boxes.npy``
    and ``ids.txt``.

    Args:
        files: The files of features; their images follow one another.
        output: The folder of the new data set.
        captions: The captions and splits.

    Raises:
        InputError: The output is not empty, or images lack features or captions.
        BundleError: A file is broken; the message names it and the line.
        OSError: The data set cannot be written.
    """
    check_output(output)
    titles = {"reading captions": [captions.file] if captions.file else [], "reading features": files}
    with progress_bars({title: total_bytes(own) for title, own in titles.items() if own}) as advance:
        reading = Reading(lambda size: advance("reading captions", size), captions.skip_missing)
        captioned = _Captioned(captions.file, captions.restval, reading) if captions.file else None
        regions = _all_regions(files, lambda size: advance("reading features", size))
        with write_aside(followed(output)) as aside:
            aside.mkdir()
            counts = _write(regions, aside, captioned.of if captioned else _everything)
            if captioned:
                captioned.check(", ".join(map(str, files)))
    captions_each = CAPTIONS_PER_IMAGE if captions.file else 0
    splits = {split or "all": SplitCounts(count, count * captions_each) for split, count in counts.items()}
    return Imported(output, splits, dict(reading.left_out))


def _everything(regions: Regions) -> Choice:
    """Every image, without splits and captions."""
    return "", []


class _Captioned:
    """The images that have captions: each in its split, with the first five captions."""

    def __init__(self, file: Path, restval: bool, reading: Reading) -> None:
        self._file, self._reading = file, reading
        self._images = list(read_images(file, reading, restval))
        self._by_id = {name: image for image in self._images for name in _names_of(image)}
        self._found: set[str] = set()

    def of(self, regions: Regions) -> Choice | None:
        """The split and the captions of an image; None to leave it out."""
        image = self._by_id.get(regions.image_id)
        if image is None:
            self._reading.left_out[NO_SPLIT] += 1
            return None
        self._found.add(image.where)
        if len(image.captions) >= CAPTIONS_PER_IMAGE:
            return image.split, image.captions[:CAPTIONS_PER_IMAGE]
        if not self._reading.skip_missing:
            raise InputError(
                f"{image.where} has {len(image.captions)} captions, expected at least {CAPTIONS_PER_IMAGE}; "
                "`skip_missing` leaves out such images"
            )
        self._reading.left_out[FEW_CAPTIONS] += 1
        return None

    def check(self, files: str) -> None:
        """Check that some images were found, and all of them unless others are left out."""
        missing = [image.where for image in self._images if image.where not in self._found]
        if not self._found:
            raise InputError(f"{files}: {self._file} has captions of none of the images")
        if missing and not self._reading.skip_missing:
            raise InputError(
                f"{missing[0]} and {len(missing) - 1} more have no features in {files}; `skip_missing` leaves them out"
            )
        self._reading.left_out.update({NO_FEATURES: len(missing)} if missing else {})


def _names_of(image: KarpathyImage) -> list[str]:
    """What files of features may call an image."""
    number = [] if image.cocoid is None else [str(image.cocoid)]
    return [*number, image.file_name, PurePath(image.file_name).stem]


class _SplitFiles:
    """The files of one split.

    Args:
        folder: The folder of the data set.
        split: The name of the split; "" for all images, without captions.
        shape: R and D.
    """

    def __init__(self, folder: Path, split: str, shape: tuple[int, int]) -> None:
        before, features = (f"{split}_", "ims") if split else ("", "features")
        self._features = RowWriter(folder / f"{before}{features}.npy", shape)
        self._boxes = RowWriter(folder / f"{before}boxes.npy", (shape[0], 4))
        self._ids = (folder / f"{before}ids.txt").open("w", encoding="utf-8")
        self._captions = (folder / f"{split}_caps.txt").open("w", encoding="utf-8") if split else None

    @property
    def count(self) -> int:
        """The number of images so far."""
        return self._features.count

    def append(self, regions: Regions, captions: Iterable[str]) -> None:
        """Write one image."""
        self._features.append(regions.features)
        self._boxes.append(regions.boxes)
        self._ids.write(f"{regions.image_id}\n")
        if self._captions is not None:
            self._captions.writelines(f"{caption}\n" for caption in captions)

    def close(self) -> None:
        """Close the files."""
        with ExitStack() as stack:  # closes the others, too, if one cannot be written to the end
            for file in (self._features, self._boxes, self._ids, self._captions):
                if file is not None:
                    stack.callback(file.close)


def _write(regions: Iterator[Regions], folder: Path, chosen: Callable[[Regions], Choice | None]) -> dict[str, int]:
    """Write the files of every split, and return the number of images of each."""
    splits: dict[str, _SplitFiles] = {}
    with ExitStack() as stack:
        for one in regions:
            if (choice := chosen(one)) is None:
                continue
            split, captions = choice
            if split not in splits:
                files = _SplitFiles(folder, split, (one.features.shape[0], one.features.shape[1]))
                splits[split] = stack.enter_context(closing(files))
            splits[split].append(one, captions)
    return {split: files.count for split, files in splits.items()}


def _all_regions(files: Sequence[Path], advance: Advance) -> Iterator[Regions]:
    """The images of all files: each once, and all of the same shape."""
    places: dict[str, str] = {}
    first: Regions | None = None
    for file in files:
        for regions in read_regions(file, advance):
            first = first or regions
            if regions.features.shape != first.features.shape:
                raise BundleError(
                    f"{regions.where} has {_size(regions)}, and {first.where} has {_size(first)}: expected the same "
                    "number of regions for every image, as in files named ..._36.tsv"
                )
            if (before := places.setdefault(regions.image_id, regions.where)) != regions.where:
                raise BundleError(f"{regions.where} has image_id {brief(regions.image_id)}, as {before} has")
            yield regions
    if first is None:
        raise BundleError(f"{', '.join(map(str, files))}: expected a line for each image")


def _size(regions: Regions) -> str:
    count, width = regions.features.shape
    return f"{count} regions of width {width}"


def read_regions(file: Path, advance: Advance) -> Iterator[Regions]:
    """Read a file of features, an image at a time.

    Args:
        file: The file.
        advance: Is called with the number of bytes just read.

    Raises:
        BundleError: A line is broken.
    """
    for number, line in read_lines(file, advance, MAX_LINE):
        if line.strip():
            yield _parsed(line.rstrip("\r\n").split("\t"), f"{file}:{number}")


def _parsed(values: list[str], where: str) -> Regions:
    if len(values) != len(COLUMNS):
        raise BundleError(f"{where} has {len(values)} columns, expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
    row = dict(zip(COLUMNS, (value.strip() for value in values), strict=True))
    # Readers of ids.txt may take other characters for the end of a line.
    if not row["image_id"].isprintable() or not 0 < len(row["image_id"]) <= 200:
        raise BundleError(f"{where} has image_id {brief(row['image_id'])}, expected a short name")
    width, height, count = (_whole(row[name], name, where) for name in ("image_w", "image_h", "num_boxes"))
    boxes = _floats(row["boxes"], "boxes", count, where)  # [R, 4]
    features = _floats(row["features"], "features", count, where)  # [R, D]
    if boxes.shape[1] != 4:
        raise BundleError(f"{where} has boxes of {boxes.shape[1]} numbers, expected 4")
    fractions = (boxes / [width, height, width, height]).astype(np.float32)
    return Regions(row["image_id"], features, fractions, where)


def _whole(text: str, name: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text)):
        raise BundleError(f"{where} has {name} {brief(text)}, expected a whole number above 0")
    return int(text)


def _floats(text: str, name: str, count: int, where: str) -> NDArray[Any]:
    """A column of base64 as float32 [R, width]."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BundleError(f"{where} has {name} that are not base64 ({error})") from None
    if not content or len(content) % (4 * count):
        raise BundleError(f"{where} has {len(content)} bytes of {name}, expected float32 of num_boxes {count}")
    numbers = np.frombuffer(content, "<f4").reshape(count, -1)  # [R, width]
    if not np.isfinite(numbers).all():
        raise BundleError(f"{where} has {name} that are not finite numbers")
    return numbers
