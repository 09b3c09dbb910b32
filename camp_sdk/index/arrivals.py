"""Items on their way into an index: their keys, their metadata, and the hashes by which known content is recognised."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.arguments import is_several
from camp_sdk.index.changes import Entry
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.picture_files import is_one_picture, is_path, path_name
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import absolute, forget_pages, sha256_of
from camp_sdk.runtime.messages import brief

MAX_KEY = 10_000  # characters, as of a text
MISSING = object()
FORGET_ITEMS = 512


@dataclass(frozen=True)
class Arrival:
    """An item that is to be added.

    Args:
        index: Its position among those that were passed.
        item: The picture, its features, or the text.
        entry: What the table will say of it; its digest is set by `hashed`.
        name: Its name in messages.
        path: The absolute path of a picture given as a path, otherwise None.
    """

    index: int
    item: Any
    entry: Entry
    name: str
    path: Path | None = None

    def hashed(self) -> Arrival:
        """The arrival with the hash of its content, if it has one."""
        return replace(self, entry=replace(self.entry, digest=_digest(self.path or self.item)))


def arrivals(kind: str, items: Any, keys: Any, metadata: Any, folder: Path) -> Iterator[Arrival]:
    """Check items, and give each its key and its metadata; nothing is read ahead.

    Args:
        kind: "image" or "text".
        items: Pictures, features or texts.
        keys: A key for each item, or None.
        metadata: Metadata for each item, each a mapping or None; or None.
        folder: The folder of the index.

    Raises:
        InputError: An argument has the wrong type, or there are not as many keys or metadata as items.
    """
    if is_one_picture(items) or not is_several(items):
        raise InputError(f"items is {brief(items)}: expected a list of {kind}s")
    for name, values in (("keys", keys), ("metadata", metadata)):
        if values is not None and (isinstance(values, (str, bytes, dict)) or not is_several(values)):
            raise InputError(f"{name} is {brief(values)}: expected a list with one entry for each item")
    columns = [itertools.repeat(None) if values is None else values for values in (keys, metadata)]
    # The longest decides, so that an item without a key is found, and a key without an item.
    given = [keys is not None, metadata is not None]
    return _numbered(kind, _rows(items, columns, given), folder)


def _rows(items: Iterable[Any], columns: list[Any], given: list[bool]) -> Iterator[tuple[Any, Any, Any]]:
    others = [iter(column) for column in columns]
    count = 0
    for count, item in enumerate(items, start=1):
        row = [next(column, MISSING) for column in others]
        for name, value in zip(("keys", "metadata"), row, strict=True):
            if value is MISSING:
                raise InputError(f"{name} has {count - 1} entries, there are more items: expected one for each")
        yield item, row[0], row[1]
        if not count % FORGET_ITEMS:
            forget_pages(items)  # of a memory-mapped array
    for name, column, counted in zip(("keys", "metadata"), others, given, strict=True):
        if counted and next(column, MISSING) is not MISSING:
            raise InputError(f"{name} has more entries than the {count} items: expected one for each")


def _numbered(kind: str, rows: Iterator[tuple[Any, Any, Any]], folder: Path) -> Iterator[Arrival]:
    for index, (item, key, metadata) in enumerate(rows):
        found = _text(index, item, key) if kind == "text" else _picture(index, item, key, folder)
        if metadata is not None:
            found = replace(found, entry=replace(found.entry, metadata=checked_metadata(metadata, found.name)))
        yield found


def checked_key(key: Any) -> str:
    """A key.

    Raises:
        InputError: It is not a string of 1 to 10,000 characters.
    """
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or _has_surrogates(key):
        raise InputError(f"the key {brief(key)}: expected a string of Unicode, 1 to {MAX_KEY} characters")
    return str(key)


def checked_keys(keys: Any) -> list[str]:
    """A list of keys.

    Raises:
        InputError: It is no list, or one of them is not a key.
    """
    if isinstance(keys, str) or not is_several(keys):
        raise InputError(f"keys is {brief(keys)}: expected a list of keys")
    return [checked_key(key) for key in keys]


def key_of_path(path: Path, folder: Path) -> str:
    """The key of a picture that is a file: its path, relative to the folder of the index if it lies below that.

    Args:
        path: The absolute path.
        folder: The folder of the index.
    """
    return os.fsencode(_below(path, folder)).decode("utf-8", "backslashreplace")


def stored_path(path: Path, folder: Path) -> bytes:
    """How an item's row holds the absolute path of its picture."""
    return os.fsencode(_below(path, folder))


def file_of(stored: Any, folder: Path) -> str | None:
    """The absolute path that an item's row holds."""
    if not isinstance(stored, bytes):
        return None
    return os.path.normpath(folder / os.fsdecode(stored))


def _text(index: int, item: Any, key: Any) -> Arrival:
    if not isinstance(item, str):
        raise InputError(f"text {index} is {brief(item)}: expected a string")
    name = f"text {index}"
    return Arrival(index, item, Entry(checked_key(item if key is None else key), text=item), name)


def _picture(index: int, item: Any, key: Any, folder: Path) -> Arrival:
    if is_path(item):
        return _file(index, item, key, folder)
    name = f"image {index}" if key is None else brief(key)
    if key is not None:
        return Arrival(index, item, Entry(checked_key(key)), name)
    digest = _digest(item)
    if digest is None:
        raise InputError(f"image {index} is {brief(item)}, which has no key of its own: pass `keys`")
    return Arrival(index, item, Entry(digest.hex(), digest=digest), name)


def _file(index: int, item: Any, key: Any, folder: Path) -> Arrival:
    name = path_name(item) or f"image {index}"
    try:
        path = absolute(name)
        found = path.stat()
    except (OSError, ValueError, RuntimeError):  # reported, or left out, when it is read
        found = None
    if found is None:
        return Arrival(index, item, Entry(checked_key(key or ascii(name)[1:-1] or "?")), name)
    key = key_of_path(path, folder) if key is None else checked_key(key)
    entry = Entry(checked_key(key), stored_path(path, folder), None, found.st_size, found.st_mtime_ns)
    return Arrival(index, item, entry, name, path)


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _digest(item: Any) -> bytes | None:
    """A hash of the content of a file, a text, bytes or an array; None for what cannot be hashed."""
    if isinstance(item, Path):
        with suppress(OSError):
            return bytes.fromhex(sha256_of(item))
        return None
    if isinstance(item, np.ndarray):
        digest = hashlib.sha256(f"{item.dtype.str} {item.shape} ".encode())
        digest.update(np.ascontiguousarray(item).data.cast("B") if item.size else b"")
        return digest.digest()
    if isinstance(item, str):
        return hashlib.sha256(item.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(item).digest() if isinstance(item, (bytes, bytearray, memoryview)) else None


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
