"""Changes of an index within one transaction of its writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from camp_sdk.index.metadata import field_rows, read_metadata
from camp_sdk.index.schema import MAX_NUMBER, NUMBER_BITS, State, row_range
from camp_sdk.runtime.errors import BundleError, InputError

INSERT = (
    "INSERT INTO items (number, position, key, file, text, size, mtime_ns, digest, metadata) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
FIND = "SELECT number, position, metadata FROM items"
DELETED_ROWS = 1000  # in one transaction


class _Found(NamedTuple):
    number: int
    position: int
    metadata: str


@dataclass(frozen=True)
class Entry:
    """An item as the table has it.

    Args:
        key: Its key.
        file: The path of its file, as `os.fsencode` gives it; relative to the folder of the index if it lies below
            that. None for an item that is not a file.
        text: The text, for an item of an index of texts.
        size: The size of the file, in bytes.
        mtime_ns: The modification time of the file.
        digest: A hash of the content, by which the same item is recognised; None for what has none.
        metadata: Its metadata in JSON; None keeps those that the key has.
    """

    key: str
    file: bytes | None = None
    text: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    digest: bytes | None = None
    metadata: str | None = None


@dataclass(frozen=True)
class EncodedRow:
    """What an item was encoded to.

    Args:
        length: The number of words of a text; 0 for an image.
        vector: Its global vector, float32; empty if there is none.
        tensors: Its other tensors, by its `Layout`.
    """

    length: int
    vector: bytes
    tensors: bytes

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self.vector) + len(self.tensors)


class Changes:
    """Changes items; `finish` counts them as one change of the index.

    Args:
        connection: The writer's transaction.
        state: The state in which it begins.
    """

    def __init__(self, connection: sqlite3.Connection, state: State) -> None:
        self._connection, self.state = connection, state
        self._version = state.version + 1

    def put(self, entry: Entry, encoded: EncodedRow) -> bool:
        """Add an item at the end; one of the same key is replaced.

        Returns:
            Whether there was one.
        """
        old = self._find(entry.key)
        metadata = entry.metadata or (old.metadata if old else "{}")
        if old:
            self._delete(*old)
        position = self.state.next_position
        if position > MAX_NUMBER:
            raise InputError(f"an index takes {MAX_NUMBER} items in its life: copy this one to a new index")
        number = self._free_number()
        self.state = replace(self.state, next_position=position + 1, items=self.state.items + 1)
        details = entry.key, entry.file, entry.text, entry.size, entry.mtime_ns, entry.digest, metadata
        self._connection.execute(INSERT, (number, position, *details))
        self._insert_fields(number, metadata)
        put_encoded(self._connection, self.state.generation, number, encoded)
        return bool(old)

    def touch(self, entry: Entry) -> bool:
        """Note the details of an item whose content is the same, and its metadata if there are new ones.

        Returns:
            Whether there is such an item.
        """
        old = self._find(entry.key)
        if not old:
            return False
        self._connection.execute(
            "UPDATE items SET file = ?, size = ?, mtime_ns = ? WHERE number = ?",
            (entry.file, entry.size, entry.mtime_ns, old.number),
        )
        if entry.metadata is not None and entry.metadata != old.metadata:
            self._set_metadata(old, entry.metadata)
        return True

    def set_metadata(self, key: str, metadata: str) -> bool:
        """Replace the metadata of an item.

        Returns:
            Whether there is such an item.
        """
        old = self._find(key)
        if old:
            self._set_metadata(old, metadata)
        return bool(old)

    def remove(self, key: str) -> bool:
        """Remove an item.

        Returns:
            Whether there was one.
        """
        old = self._find(key)
        if old:
            self._delete(*old)
        return bool(old)

    def remove_at(self, position: int) -> None:
        """Remove the item at a position, if it is still there."""
        found = self._connection.execute(f"{FIND} WHERE position = ?", (position,)).fetchone()
        if found:
            self._delete(*found)

    def set_shapes(self, shapes: str) -> None:
        """Note the shapes of the first item's tensors."""
        self._connection.execute(
            "UPDATE generations SET shapes = ? WHERE generation = ?", (shapes, self.state.generation)
        )
        self.state = replace(self.state, shapes=shapes)

    def switch(self, generation: int) -> None:
        """Make another generation the one that is read."""
        self.state = replace(self.state, generation=generation, epoch=self.state.epoch + 1)

    def forget_removed(self) -> None:
        """Forget which items were removed; readers then read all columns again."""
        self._connection.execute("DELETE FROM removed")
        self.state = replace(self.state, epoch=self.state.epoch + 1)

    def finish(self) -> None:
        """Write the new state."""
        state = self.state
        self._connection.execute(
            "UPDATE state SET generation = ?, version = ?, epoch = ?, next_position = ?, items = ?",
            (state.generation, self._version, state.epoch, state.next_position, state.items),
        )

    def _find(self, key: str) -> _Found | None:
        row = self._connection.execute(f"{FIND} WHERE key = ?", (key,)).fetchone()
        return None if row is None else _Found(*row)

    def _free_number(self) -> int:
        """The number that an item removed has left, or the first that none had."""
        row = self._connection.execute("SELECT min(number) FROM free").fetchone()
        if row[0] is None:
            return self.state.items + 1  # all up to this one are in use
        self._connection.execute("DELETE FROM free WHERE number = ?", row)
        return int(row[0])

    def _delete(self, number: int, position: int, metadata: str) -> None:
        self._delete_fields(number, metadata)
        self._connection.execute("DELETE FROM items WHERE number = ?", (number,))
        self._connection.execute("INSERT INTO free VALUES (?)", (number,))
        self._connection.execute("INSERT INTO removed VALUES (?, ?)", (self._version, position))
        generations = self._connection.execute("SELECT generation FROM generations").fetchall()
        rows = [((generation << NUMBER_BITS) | number,) for (generation,) in generations]
        self._connection.executemany("DELETE FROM vectors WHERE row = ?", rows)
        self._connection.executemany("DELETE FROM tensors WHERE row = ?", rows)
        self.state = replace(self.state, items=self.state.items - 1)

    def _set_metadata(self, old: _Found, new: str) -> None:
        number = old.number
        self._delete_fields(number, old.metadata)
        self._connection.execute("UPDATE items SET metadata = ? WHERE number = ?", (new, number))
        self._insert_fields(number, new)

    def _insert_fields(self, number: int, metadata: str) -> None:
        if metadata != "{}":
            self._connection.executemany("INSERT INTO fields VALUES (?, ?, ?, ?)", _fields(number, metadata))

    def _delete_fields(self, number: int, metadata: str) -> None:
        if metadata == "{}":
            return
        try:
            rows = _fields(number, metadata)
        except BundleError:  # damaged: look through all fields, so that the item can be removed
            self._connection.execute("DELETE FROM fields WHERE number = ?", (number,))
            return
        statement = "DELETE FROM fields WHERE field = ? AND kind = ? AND value = ? AND number = ?"
        self._connection.executemany(statement, rows)


def put_encoded(connection: sqlite3.Connection, generation: int, number: int, encoded: EncodedRow) -> None:
    """Store what an item was encoded to in a generation, in place of what it had there.

    Args:
        connection: The writer's transaction.
        generation: The generation.
        number: The item's number.
        encoded: What it was encoded to.
    """
    row = (generation << NUMBER_BITS) | number
    connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", (row, encoded.length, encoded.vector))
    connection.execute("INSERT OR REPLACE INTO tensors VALUES (?, ?)", (row, encoded.tensors))


def delete_encoded(connection: sqlite3.Connection, generation: int) -> bool:
    """Delete a part of a generation that is no longer read.

    Returns:
        Whether there may be more of it.
    """
    found = []
    for table in ("vectors", "tensors"):
        chosen = f"SELECT row FROM {table} WHERE row BETWEEN ? AND ? LIMIT ?"  # noqa: S608 - fixed names
        statement = f"DELETE FROM {table} WHERE row IN ({chosen})"  # noqa: S608 - likewise
        found.append(connection.execute(statement, (*row_range(generation), DELETED_ROWS)).rowcount)
    return max(found) == DELETED_ROWS


def _fields(number: int, metadata: str) -> Sequence[tuple[Any, ...]]:
    return [(*row, number) for row in field_rows(read_metadata(metadata, f"item {number}"))]
