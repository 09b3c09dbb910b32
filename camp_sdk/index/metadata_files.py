"""Metadata of many items in a file: CSV with a header, or a JSON object per line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camp_sdk.index.arrivals import key_of_path
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import absolute
from camp_sdk.runtime.messages import brief

NAMES = ("key", "file_name")  # the columns that name an item, in this order


def read_metadata_file(path: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Read the metadata of many items.

    Each row names its item in the column ``key``, or by the path of its picture in ``file_name``, relative to the
    folder of the file; the other columns are its metadata. In CSV, an empty cell is left out, and a cell that is a
    number in JSON is one.

    Args:
        path: The file, whose name ends in .csv, or .jsonl.
        folder: The folder of the index, to which its keys are relative.

    Returns:
        The metadata by key.

    Raises:
        InputError: The file is not such a file; the message names the line.
        OSError: It cannot be read.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"{path}: expected a file of metadata, .csv or .jsonl")
    found: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = _csv_rows(file) if path.suffix.lower() == ".csv" else map(_json_row, file)
            for line, row in enumerate(rows, start=1):
                name = next((name for name in NAMES if name in row), None)
                if name is None or not isinstance(row[name], str):
                    raise InputError(
                        f"{path}, row {line}: expected an item's `key`, or `file_name`, in {brief([*row])}"
                    )
                given = row.pop(name)
                key = given if name == "key" else key_of_path(absolute(path.absolute().parent / given), folder)
                checked_metadata(row, f"{brief(key)} ({path}, row {line})")
                found[key] = row
        except (csv.Error, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
            raise InputError(f"{path} cannot be read as {path.suffix}, after {len(found)} rows: {error}") from None
    return found


def _csv_rows(file: Iterable[str]) -> Iterable[dict[str, Any]]:
    for row in csv.DictReader(file, strict=True):
        yield {name: _cell(name, value) for name, value in row.items() if name is not None and value}


def _cell(name: str, value: str) -> Any:
    if name in NAMES:
        return value
    try:
        number = json.loads(value, parse_constant=str)
    except (ValueError, RecursionError):
        return value
    return number if isinstance(number, (int, float)) and not isinstance(number, bool) else value


def _json_row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, Mapping):
        raise json.JSONDecodeError("expected an object", line[:80], 0)
    return dict(row)
