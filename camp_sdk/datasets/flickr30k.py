"""Flickr30K's own file of captions, results_20130124.token; Flickr8K's files have the same form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from camp_sdk.datasets.records import NO_SPLIT, Reading, Record, split_name
from camp_sdk.datasets.text_files import read_lines
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)", re.DOTALL)
EXPECTED = "expected 1000092795.jpg#0, a tab, and the caption"


def read_lists(folder: Path) -> dict[str, str]:
    """Read lists of the pictures of each split.

    Args:
        folder: Holds a file such as train.txt for each split, with the name of a picture on each line, with or without
            its suffix.

    Returns:
        The split of each name on a line.

    Raises:
        InputError: There is no list.
        BundleError: A list is broken, or a picture is in two.
    """
    split_of: dict[str, str] = {}
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise InputError(f"`splits` {folder} holds no lists: expected a folder with train.txt, val.txt and test.txt")
    for file in files:
        split = split_name(file.stem, str(file))
        for number, line in read_lines(file, lambda size: None):
            if (name := line.strip()) and split_of.setdefault(name, split) != split:
                raise BundleError(f"{file}:{number}: {brief(name)} is also in the list of {split_of[name]}")
    return split_of


def read_flickr30k(file: Path, splits: str | dict[str, str], reading: Reading) -> Iterator[Record]:
    """Read the file of captions.

    Args:
        file: The file.
        splits: The split of all pictures, or the split of each name with or without its suffix; other pictures are
            left out and counted.
        reading: How to read.

    Raises:
        BundleError: A line is broken.
        InputError: A caption is empty.
    """
    in_no_split: set[str] = set()
    for number, line in read_lines(file, reading.advance):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        found = LINE.fullmatch(line)
        if not found:
            raise BundleError(f"{where} is {brief(line)}: {EXPECTED}")
        name = found["name"]
        split = splits if isinstance(splits, str) else splits.get(name) or splits.get(PurePath(name).stem)
        if split is None:
            in_no_split.add(name)
        elif captions := reading.captions([found["caption"]], where):
            yield Record(split, name, captions, where)
    if in_no_split:
        reading.left_out[NO_SPLIT] += len(in_no_split)
