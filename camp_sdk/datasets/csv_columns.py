"""Tables of captions as text, with named columns: .csv, .tsv and the like."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.datasets.records import Reading, Record, split_name
from camp_sdk.datasets.text_files import read_lines
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Args:
        file: The column with the name of the picture, relative to the root.
        captions: The columns with a caption; several rows may be of the same picture.
        split: The column with the split, or None.
        delimiter: What separates columns; None to find it by the first line.
        all_in: The split of all pictures, without a column for it.
    """

    file: str
    captions: Sequence[str]
    split: str | None = None
    delimiter: str | None = None
    all_in: str = "train"

    @property
    def names(self) -> list[str]:
        """All named columns: the file, the captions, and the split if it has a column."""
        return [self.file, *self.captions, *([self.split] if self.split else [])]


def read_table(file: Path, columns: Columns, reading: Reading) -> Iterator[Record]:
    """Read a table whose first line names its columns.

    A row that ends before a caption has an empty caption there.

    Args:
        file: The table, as UTF-8 text.
        columns: Which of its columns are read.
        reading: How to read.

    Raises:
        BundleError: The table is broken, or has no such columns; the message names the line.
        InputError: A caption is empty, or the delimiter cannot be one.
    """
    all_in = split_name(columns.all_in, "`split`")
    lines = (line for _, line in read_lines(file, reading.advance))
    first = next(lines, "")
    delimiter, places = _places(first, columns, f"{file}:1")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    for row, number in _numbered(rows, file):
        yield from _records(row, places, columns, (all_in, f"{file}:{number}"), reading)


def _numbered(rows: Any, file: Path) -> Iterator[tuple[list[str], int]]:
    """The rows that are not empty, each with the number of its first line: a cell may have several."""
    while True:
        number = rows.line_num + 2  # it does not count the header, and has not read this row
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise BundleError(f"{file}:{number} is not a row of a table ({error})") from None
        if row is None:
            return
        if any(row):
            yield row, number


def _places(line: str, columns: Columns, where: str) -> tuple[str, list[int]]:
    """The delimiter, and the place of each named column."""
    for delimiter in [columns.delimiter] if columns.delimiter else DELIMITERS:
        try:
            header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error as error:
            raise BundleError(f"{where} is not the header of a table ({error})") from None
        except (TypeError, ValueError):
            raise InputError(f"`delimiter` is {brief(delimiter)}: expected one character") from None
        if set(columns.names) <= set(header):
            if twice := [name for name in columns.names if header.count(name) > 1]:
                raise BundleError(f"{where} has several columns named {brief(twice[0])}: expected one")
            return delimiter, [header.index(name) for name in columns.names]
    raise BundleError(f"{where} is {brief(line)}: expected columns named {', '.join(map(brief, columns.names))}")


def _records(
    row: list[str], places: list[int], columns: Columns, defaults: tuple[str, str], reading: Reading
) -> Iterator[Record]:
    split, where = defaults
    values = [row[place].strip() if place < len(row) else "" for place in places]
    name, captions = values[0], values[1 : 1 + len(columns.captions)]
    if columns.split:
        split = split_name(values[-1], where)
    if not name:
        raise BundleError(f"{where} names no picture in column {brief(columns.file)}")
    if whole := reading.captions(captions, where):
        yield Record(split, name, whole, where)
