"""The tables of an index, and the check that a file holds exactly these: an index may come from anywhere.

An item has a position, which grows with every item and is never used again, and a number, which the next item takes
when the item is removed: new rows then fill the pages that old ones left, and the file does not grow.

A row of `vectors` and `tensors` belongs to one item in one generation: it is generation << 40 | number. A generation is
the index as one bundle encoded it; `reencode` fills the next one while readers stay on the current one.
"""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import dataclass
from typing import Any

from camp_sdk.runtime.encoded import GALLERY_PRECISIONS
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

APPLICATION_ID = 0x43414D50  # "CAMP"
FORMAT_VERSION = 1
NUMBER_BITS = 40
MAX_NUMBER, MAX_GENERATION = (1 << NUMBER_BITS) - 1, (1 << 20) - 1
MAX_SHAPES = 1 << 16  # characters
KINDS = ("image", "text")
MAKE_AGAIN = "make the index again, or take it from a backup"

TABLES = {
    "state": "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, kind TEXT NOT NULL, "
    "generation INTEGER NOT NULL, version INTEGER NOT NULL, epoch INTEGER NOT NULL, next_position INTEGER NOT NULL, "
    "items INTEGER NOT NULL)",
    "generations": "CREATE TABLE generations (generation INTEGER PRIMARY KEY, bundle TEXT NOT NULL, "
    "precision TEXT NOT NULL, shapes TEXT)",
    "items": "CREATE TABLE items (number INTEGER PRIMARY KEY, position INTEGER NOT NULL UNIQUE, "
    "key TEXT NOT NULL UNIQUE, file BLOB, text TEXT, size INTEGER, mtime_ns INTEGER, digest BLOB, "
    "metadata TEXT NOT NULL)",
    # One row for each value in an item's metadata, by which `where` finds items without reading them.
    "fields": "CREATE TABLE fields (field TEXT NOT NULL, kind INTEGER NOT NULL, value, number INTEGER NOT NULL, "
    "PRIMARY KEY (field, kind, value, number)) WITHOUT ROWID",
    "vectors": "CREATE TABLE vectors (row INTEGER PRIMARY KEY, length INTEGER NOT NULL, vector BLOB NOT NULL)",
    "tensors": "CREATE TABLE tensors (row INTEGER PRIMARY KEY, tensors BLOB NOT NULL)",
    # The items removed since the last `compact`, for readers that remember an older state.
    "removed": "CREATE TABLE removed (version INTEGER NOT NULL, position INTEGER NOT NULL, "
    "PRIMARY KEY (version, position)) WITHOUT ROWID",
    # The numbers that items removed have left.
    "free": "CREATE TABLE free (number INTEGER PRIMARY KEY)",
}
AUTOMATIC = {("index", f"sqlite_autoindex_items_{k}", None) for k in (1, 2)}  # of UNIQUE


@dataclass(frozen=True)
class State:
    """The state of an index at one moment.

    Args:
        name: A random name, which derived files repeat.
        kind: "image" or "text".
        generation: The generation that is read.
        version: Counts the changes.
        epoch: Counts the changes after which nothing remembered of the index holds.
        next_position: The position of the next item.
        items: The number of items.
        bundle: The fingerprint of the bundle that encoded them.
        precision: How their tensors are stored.
        shapes: The shape of each tensor of an item by name, in JSON; None before the first item.
    """

    name: str
    kind: str
    generation: int
    version: int
    epoch: int
    next_position: int
    items: int
    bundle: str
    precision: str
    shapes: str | None

    @property
    def first_row(self) -> int:
        """The number before all rows of this generation."""
        return self.generation << NUMBER_BITS

    def rows(self) -> tuple[int, int]:
        """The first and the last possible row of this generation."""
        return row_range(self.generation)


def row_range(generation: int) -> tuple[int, int]:
    """The first and the last possible row of a generation."""
    return generation << NUMBER_BITS, (generation << NUMBER_BITS) | MAX_NUMBER


def create_tables(connection: sqlite3.Connection, kind: str, bundle: str, precision: str) -> None:
    """Make the tables of an empty index.

    Args:
        connection: An open transaction in a new file.
        kind: "image" or "text".
        bundle: The fingerprint of the bundle.
        precision: How tensors are stored.
    """
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute("INSERT INTO state VALUES (1, ?, ?, 1, 0, 0, 1, 0)", (os.urandom(16).hex(), kind))
    connection.execute("INSERT INTO generations VALUES (1, ?, ?, NULL)", (bundle, precision))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def check_schema(connection: sqlite3.Connection, path: str) -> None:
    """Check that a file is an index: its marks, and no table, index, view or trigger but those of this module.

    Raises:
        BundleError: It is not.
    """
    (application,), (version,) = (
        connection.execute(f"PRAGMA {mark}").fetchone() for mark in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise BundleError(f"{path} is a database, but not an index of camp-sdk: expected a file that open_index made")
    if version != FORMAT_VERSION:
        raise BundleError(f"{path} is an index of format {version}, expected {FORMAT_VERSION}: update camp-sdk")
    expected = {("table", name, sql) for name, sql in TABLES.items()} | AUTOMATIC
    found = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchmany(len(expected) + 1)
    if odd := set(found) ^ expected:
        kind, name, _ = sorted(odd, key=str)[0]
        raise BundleError(f"{path} does not have the tables of an index ({kind} {brief(name)}): {MAKE_AGAIN}")


def read_state(connection: sqlite3.Connection, path: str) -> State:
    """Read the state; in a transaction, this is where it begins to see one state of the index.

    Raises:
        BundleError: A value is not what an index holds.
    """
    found = connection.execute(
        "SELECT name, kind, state.generation, version, epoch, next_position, items, bundle, precision, shapes "
        "FROM state JOIN generations ON generations.generation = state.generation"
    ).fetchall()
    if len(found) != 1 or not _is_state(found[0]):
        raise BundleError(f"{path} has a broken state {brief(found)}: {MAKE_AGAIN}")
    return State(*found[0])


def _is_state(row: tuple[Any, ...]) -> bool:
    name, kind, generation, version, epoch, next_position, items, bundle, precision, shapes = row
    texts, numbers = (name, bundle), (generation, version, epoch, next_position, items)
    return (
        all(isinstance(text, str) and len(text) <= 100 for text in texts)
        and all(isinstance(number, int) and number >= 0 for number in numbers)
        and generation <= MAX_GENERATION
        and items < next_position <= MAX_NUMBER
        and kind in KINDS
        and precision in (GALLERY_PRECISIONS if kind == "image" else ("float32",))
        and (shapes is None or (isinstance(shapes, str) and len(shapes) <= MAX_SHAPES))
    )


def shapes_of(text: str | None) -> dict[str, tuple[int, ...]] | None:
    """The shapes that a generation's row holds.

    Raises:
        ValueError: They are not shapes by name.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
        whole = isinstance(found, dict) and all(
            isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)
            for shape in found.values()
        )
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"its shapes are {brief(text)}, expected a list of sizes for each tensor")
    return {name: tuple(shape) for name, shape in found.items()}
