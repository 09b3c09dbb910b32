"""COCO's own files of captions: captions_train2017.json and the like."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.datasets.records import NO_CAPTIONS, Reading, Record, split_name
from camp_sdk.datasets.text_files import Item, read_items
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

IMAGE = 'expected {"id": number, "file_name": "..."}'
ANNOTATION = 'expected {"image_id": number, "caption": "..."}'


@dataclass(frozen=True)
class CocoSplit:
    """A file of captions, and where its pictures are.

    Args:
        annotations: The file.
        split: The split that it becomes.
        folder: The folder of its pictures, relative to the root of the data set; "" if they are the same.
    """

    annotations: Path
    split: str
    folder: str = ""


def coco_splits(
    annotations: Sequence[Path], images: Sequence[Path], splits: Sequence[str]
) -> tuple[Path, list[CocoSplit]]:
    """Match files of captions with the folders of their pictures.

    Args:
        annotations: The files.
        images: The folder of the pictures of each file, or one for all of them.
        splits: The split that each file becomes. Without any, a file with "val" in its name becomes "dev", and any
            other "train".

    Returns:
        The root of the data set, which is the folder above all of ``images``, and each file with its folder.

    Raises:
        InputError: The numbers do not fit, or a file is named twice.
        BundleError: A split cannot name a folder.
    """
    splits = splits or ["dev" if "val" in path.stem else "train" for path in annotations]
    folders = [*images] * len(annotations) if len(images) == 1 else [*images]
    if not len(annotations) == len(folders) == len(splits):
        raise InputError(
            f"{len(annotations)} `annotations`, {len(images)} `images` and {len(splits)} `split`: expected one of each "
            "for each file, in the same order"
        )
    if twice := next((file for file in annotations if annotations.count(file) > 1), None):
        raise InputError(f"`annotations` names {twice} twice: every caption would be there twice")
    root = _above(images)
    below = [os.path.relpath(folder, root) for folder in folders]
    names = [split_name(split, "`split`") for split in splits]
    return root, [
        CocoSplit(file, name, "" if folder == os.curdir else folder)
        for file, name, folder in zip(annotations, names, below, strict=True)
    ]


def _above(images: Sequence[Path]) -> Path:
    """The folder above some folders, as the caller names it; one folder is its own."""
    if len(images) == 1:
        return images[0]
    if any(os.pardir in path.parts for path in images) or len({path.is_absolute() for path in images}) > 1:
        raise InputError("several `images` need one folder above them: name them all from there, without ..")
    return Path(os.path.commonpath(images))


def read_coco(sources: Sequence[CocoSplit], reading: Reading) -> Iterator[Record]:
    """Read files of captions.

    Args:
        sources: The files.
        reading: How to read.

    Yields:
        The captions of each picture that has any, in the order in which the file lists the pictures.

    Raises:
        BundleError: A file is broken; the message names it, the line and the item.
        InputError: A caption is empty.
    """
    for source in sources:
        yield from _read_file(source, reading)


def _read_file(source: CocoSplit, reading: Reading) -> Iterator[Record]:
    names: dict[int, str] = {}
    captions: dict[int, list[str]] = {}
    places: dict[int, str] = {}
    for item in read_items(source.annotations, ("images", "annotations"), reading.advance):
        if item.array == "images":
            key, name = _image(item)
            if names.setdefault(key, name) != name:
                raise BundleError(f"{item.where}: id {brief(key)} is also that of {brief(names[key])}")
        else:
            key, text = _annotation(item)
            captions.setdefault(key, []).extend(reading.captions([text], item.where))
            places.setdefault(key, item.where)
    for key in captions:
        if key not in names:
            raise BundleError(f"{places[key]}: image_id {brief(key)} is the id of none of the images")
    for key, name in names.items():
        if own := captions.get(key):
            yield Record(source.split, f"{source.folder}/{name}" if source.folder else name, own, places[key])
        else:
            reading.left_out[NO_CAPTIONS] += 1


def _image(item: Item) -> tuple[int, str]:
    key, name = _values(item, "id", "file_name")
    if not isinstance(name, str) or type(key) is not int:
        raise BundleError(f"{item.where} has id {brief(key)} and file_name {brief(name)}: {IMAGE}")
    return key, name


def _annotation(item: Item) -> tuple[int, Any]:
    key, caption = _values(item, "image_id", "caption")
    if type(key) is not int or not isinstance(caption, str):
        raise BundleError(f"{item.where} has image_id {brief(key)} and caption {brief(caption)}: {ANNOTATION}")
    return key, caption


def _values(item: Item, *keys: str) -> list[Any]:
    return [item.value.get(key) if isinstance(item.value, dict) else None for key in keys]
