"""What an index returns: items, counts and its description, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camp_sdk.results import Skipped


@dataclass(frozen=True)
class IndexItem:
    """An item of an index.

    Args:
        key: Its key.
        document: The absolute path of a picture that was added as a path, or the text of an item of an index of texts;
            otherwise None.
        metadata: Its metadata.
    """

    key: str
    document: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Added:
    """What `Index.add` did.

    Args:
        added: The number of items with new keys.
        replaced: The number of items that took the place of others with their keys.
        unchanged: The number of items that the index held already, with the same content; they were not encoded.
        skipped: The pictures that were left out.
    """

    added: int
    replaced: int
    unchanged: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class IndexInfo:
    """The description of an index.

    Args:
        path: Its file.
        kind: What it holds: "image" or "text".
        items: The number of items.
        precision: How tensors are stored.
        bundle: The fingerprint of the bundle that encoded it.
        item_bytes: What an item's tensors take, without its global vector; None before the first item, and for texts,
            whose sizes differ.
        vector_bytes: What an item's global vector takes.
        file_bytes: The size of the file, with what is being written to it.
        free_bytes: The part of it that is free, and used again by the next items; `Index.compact` gives it back.
        reencoding: The number of items that `Index.reencode` has encoded for another bundle so far; None if it was not
            begun.
    """

    path: Path
    kind: str
    items: int
    precision: str
    bundle: str
    item_bytes: int | None
    vector_bytes: int
    file_bytes: int
    free_bytes: int
    reencoding: int | None = None
