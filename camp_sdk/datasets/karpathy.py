"""Karpathy's splits: dataset_flickr30k.json, dataset_coco.json and dataset_flickr8k.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from camp_sdk.datasets.records import NO_CAPTIONS, Reading, Record, split_name
from camp_sdk.datasets.text_files import Item, read_items
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

EXPECTED = 'expected {"filename": "...", "split": "...", "sentences": [{"raw": "..."}, ...]}'
RESTVAL = "restval"


@dataclass(frozen=True)
class KarpathyImage:
    """An image of the file.

    Args:
        file_name: Its name, without folders.
        folder: The folder that the file names for it, such as "train2014"; "" if it names none.
        cocoid: COCO's number of the image, or None.
        split: The split it is in.
        captions: Its captions; there may be none.
        where: The file and the line, for messages.
    """

    file_name: str
    folder: str
    cocoid: int | None
    split: str
    captions: list[str]
    where: str


def read_images(file: Path, reading: Reading, restval: bool = False) -> Iterator[KarpathyImage]:
    """Read the images of the file, with their splits and captions.

    Args:
        file: The file.
        reading: How to read.
        restval: Whether the images of "restval" are in "train"; otherwise they are left out and counted.

    Raises:
        BundleError: The file is broken; the message names it, the line and the item.
        InputError: A caption is empty.
    """
    for item in read_items(file, ("images",), reading.advance):
        image = _image(item, reading)
        if image.split != RESTVAL:
            yield image
        elif restval:
            yield replace(image, split="train")
        else:
            reading.left_out[f"pictures of {RESTVAL}"] += 1


def read_karpathy(file: Path, images: Path, reading: Reading, restval: bool = False) -> Iterator[Record]:
    """Read the file as records.

    Args:
        file: The file.
        images: The root of the pictures. The folder that the file names for a picture is used if it is there.
        reading: How to read.
        restval: As `read_images` takes it.

    Raises:
        BundleError: As `read_images` raises it.
        InputError: A caption is empty.
    """
    there: dict[str, bool] = {}
    for image in read_images(file, reading, restval):
        if image.folder not in there:
            there[image.folder] = bool(image.folder) and _is_folder(images / image.folder)
        name = f"{image.folder}/{image.file_name}" if there[image.folder] else image.file_name
        if image.captions:
            yield Record(image.split, name, image.captions, image.where)
        else:
            reading.left_out[NO_CAPTIONS] += 1


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no folder can have
        return False


def _image(item: Item, reading: Reading) -> KarpathyImage:
    image = item.value if isinstance(item.value, dict) else {}
    name, sentences = image.get("filename"), image.get("sentences")
    folder, cocoid = image.get("filepath", ""), image.get("cocoid")
    listed = isinstance(sentences, list) and all(isinstance(one, dict) and "raw" in one for one in sentences)
    if not isinstance(name, str) or sentences is None or not listed:
        raise BundleError(f"{item.where} has filename {brief(name)} and sentences {brief(sentences)}: {EXPECTED}")
    if not isinstance(folder, str) or ".." in PurePosixPath(folder).parts or type(cocoid) not in (int, type(None)):
        raise BundleError(f"{item.where} has filepath {brief(folder)} and cocoid {brief(cocoid)}: {EXPECTED}")
    captions = reading.captions((one["raw"] for one in sentences), item.where)
    return KarpathyImage(name, folder, cocoid, split_name(image.get("split"), item.where), captions, item.where)
