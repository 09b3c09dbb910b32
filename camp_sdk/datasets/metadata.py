"""Lines of a ``metadata.jsonl``: one picture with its captions each, as the ImageFolder convention has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.datasets.text_files import read_lines
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

METADATA_FILE = "metadata.jsonl"
EXPECTED = 'expected {"file_name": "...", "captions": ["...", ...]}'
MAX_ROW = 16 << 20  # characters of a line: 160,000 captions
NO_CAPTIONS = "with at least one caption, no empty caption, and valid Unicode"


@dataclass(frozen=True)
class Row:
    """One line of a metadata.jsonl.

    Args:
        number: The number of the line, from 1.
        file_name: The name of the picture.
        captions: Its captions, as they stand: there may be none, and they may be empty.
    """

    number: int
    file_name: str
    captions: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether there is a caption, and none is empty."""
        return bool(self.captions) and all(caption.strip() for caption in self.captions)


def read_rows(metadata: Path) -> Iterator[Row | BundleError]:
    """Read a metadata.jsonl line by line; blank lines are passed over.

    Args:
        metadata: The file.

    Yields:
        The row of each line, or what is wrong with the line.

    Raises:
        BundleError: A line is not UTF-8 text, or is too long; no more can be read.
    """
    for number, line in read_lines(metadata, lambda size: None, MAX_ROW):
        if line.strip():
            yield _parsed(line, number, metadata)


def write_rows(metadata: Path, rows: Iterator[tuple[str, Sequence[str]]]) -> None:
    """Write a metadata.jsonl.

    Args:
        metadata: The file, in a folder that exists.
        rows: The name and the captions of each picture.

    Raises:
        BundleError: A line would be longer than what is read.
    """
    with metadata.open("w", encoding="utf-8", newline="\n") as file:
        for name, captions in rows:
            row = {"file_name": name, "captions": list(captions)}
            line = json.dumps(row, ensure_ascii=False) + "\n"
            if len(line) > MAX_ROW:
                raise BundleError(f"{brief(name)} has {len(captions)} captions of more than {MAX_ROW} characters")
            file.write(line)


def _parsed(line: str, number: int, metadata: Path) -> Row | BundleError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BundleError(f"{metadata}:{number} is not JSON ({error}): {EXPECTED}")
    name, captions = (row.get("file_name"), _captions_of(row)) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str) or captions is None:
        return BundleError(f"{metadata}:{number}: {EXPECTED} {NO_CAPTIONS}")
    return Row(number, name, captions)


def _captions_of(row: dict[str, Any]) -> list[str] | None:
    """The captions under our key or that of Hugging Face, one or several; None if they are something else."""
    found = row["captions"] if "captions" in row else row.get("text")
    captions = [found] if isinstance(found, str) else found
    valid = isinstance(captions, list) and all(isinstance(caption, str) and encodes(caption) for caption in captions)
    return captions if valid else None


def encodes(text: str) -> bool:
    """Whether a text is valid Unicode: JSON can hold lone surrogates, which no file or tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
