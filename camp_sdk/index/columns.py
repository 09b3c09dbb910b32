"""What an open index keeps of all items: positions, numbers, lengths and global vectors, of one state at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from camp_sdk.index.database import Database
from camp_sdk.index.schema import MAX_NUMBER, State
from camp_sdk.index.vector_file import Ints, Mapped, Origin, Rows, Vectors, read_vectors, write_vectors
from camp_sdk.index.where import Condition, Lookup, Mask, numbers_of
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.forks import watch_forks

READ_ROWS = 4096  # at a time
FILE_ROWS = 4096  # fewer are read from the index itself, quickly
STALE = 8  # the file is written again once more than an eighth of its rows have been added since
NEW = (
    "SELECT position, number, length, CASE WHEN typeof(vector) = 'blob' AND length(vector) = ? THEN vector END "
    "FROM items JOIN vectors ON vectors.row = items.number | ? WHERE position > ? ORDER BY position"
)
KEPT_MASKS = 16  # of a byte for each item
REPAIR = "run `compact`, or make the index again"


@dataclass(frozen=True)
class Columns:
    """Every item of an index in one state, in the order in which items were added.

    Args:
        state: The state.
        positions: The position of each item [n], ascending, with those of items removed since the file was written.
        numbers: The number of each item [n]; that of an item removed may be another's by now.
        lengths: The number of words of each item [n]; 0 for images.
        parts: Their global vectors [n_k, d], one part after another; the first may be memory-mapped.
        alive: Which of the items are in the index [n].
        whole: The number of items when the columns were last read as a whole.
    """

    state: State
    positions: Ints
    numbers: Ints
    lengths: Ints
    parts: tuple[Vectors, ...]
    alive: Mask
    whole: int

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Where the items of the index stand in the columns."""
        return np.flatnonzero(self.alive)

    @cached_property
    def by_number(self) -> tuple[Ints, NDArray[np.intp]]:
        """The numbers of the items of the index, ascending, and where these items stand in the columns."""
        numbers = self.numbers[self.places]
        order = np.argsort(numbers, kind="stable")  # the fast one here: most numbers ascend already
        return numbers[order], self.places[order]

    def mask(self, numbers: Ints) -> Mask:
        """Which items have one of these numbers."""
        found = np.zeros(len(self.positions), np.bool_)
        known, places = self.by_number
        if len(known):
            at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
            found[places[at[known[at] == numbers]]] = True
        return found

    def chosen(self, connection: sqlite3.Connection, condition: Condition | None) -> NDArray[np.intp]:
        """Where the items that meet a condition stand in the columns.

        Args:
            connection: The transaction of this state.
            condition: The condition; None for all items.
        """
        if condition is None:
            return self.places

        def select(lookup: Lookup) -> Mask:
            mask = self._masks.get(lookup)
            if mask is None:
                mask = self.mask(numbers_of(connection, lookup))
                if len(self._masks) >= KEPT_MASKS:
                    self._masks.clear()
                self._masks[lookup] = mask
            return mask

        return np.flatnonzero(condition.mask(select) & self.alive)

    @cached_property
    def _masks(self) -> dict[Lookup, Mask]:
        """The items that lookups found before in this state: those of a page's condition, for the next page."""
        return {}

    def without(self, positions: Ints) -> Columns:
        """The columns without the items at some positions."""
        alive = self.alive.copy()
        if len(alive):
            places = np.searchsorted(self.positions, positions).clip(max=len(alive) - 1)
            alive[places[self.positions[places] == positions]] = False
        return replace(self, alive=alive)

    def extended(self, more: Columns) -> Columns:
        """The columns with new items at the end."""
        parts = [*self.parts, *more.parts]
        # Parts in memory double in size, so that each vector is copied few times, and there are few parts.
        while len(parts) > 2 and len(parts[-1]) * 2 > len(parts[-2]):
            parts[-2:] = [np.concatenate(parts[-2:])]
        return replace(
            self,
            positions=np.concatenate([self.positions, more.positions]),
            numbers=np.concatenate([self.numbers, more.numbers]),
            lengths=np.concatenate([self.lengths, more.lengths]),
            parts=tuple(parts),
            alive=np.concatenate([self.alive, more.alive]),
        )

    @property
    def room(self) -> int:
        """How many more items may follow those of the file, before it is worth writing it again."""
        return max(FILE_ROWS, self.whole // STALE) - (len(self.positions) - self.whole)

    @property
    def due(self) -> bool:
        """Whether most items are no longer in the index."""
        return len(self.positions) - len(self.places) > max(FILE_ROWS, len(self.positions) // 2)


class ColumnCache:
    """Keeps the columns of the latest state; threads share it.

    Args:
        database: The index.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._latest: Columns | None = None
        watch_forks(self)

    def at(self, connection: sqlite3.Connection, state: State, width: int) -> Columns | None:
        """The columns of a state; None if another thread has gone on to a later one.

        Args:
            connection: The transaction of this state.
            state: The state.
            width: The size of a global vector.

        Raises:
            BundleError: The index is damaged.
        """
        with self._lock:
            latest = self._latest
            if latest is not None and _same_epoch(latest.state, state):
                if latest.state.version > state.version:
                    return None
            elif latest is not None and latest.state.epoch > state.epoch:
                return None
            else:
                latest = None
            self._latest = self._advanced(connection, state, width, latest)
            return self._latest

    def forked(self) -> None:
        """Begin with a lock of this process."""
        self._lock = threading.Lock()

    def _advanced(self, connection: sqlite3.Connection, state: State, width: int, latest: Columns | None) -> Columns:
        if latest is not None and latest.state.version == state.version:
            return latest
        found = None if latest is None else _caught_up(connection, state, width, latest)
        if not _whole(found, state):
            filed = self._from_file(state, width)
            found = None if filed is None else _caught_up(connection, state, width, filed)
        if found is None or not _whole(found, state):
            found = self._rebuilt(connection, state, width)
        if len(found.places) != state.items:
            raise BundleError(f"{self._database.path} holds {len(found.places)} of {state.items} vectors: {REPAIR}")
        return found

    def _from_file(self, state: State, width: int) -> Columns | None:
        mapped = read_vectors(self._database.beside("vectors"))
        if mapped is None or not _is_earlier(mapped.origin, state, width):
            return None
        return _of_file(mapped, state)

    def _rebuilt(self, connection: sqlite3.Connection, state: State, width: int) -> Columns:
        """The columns as the index has them. They are mapped from a new file, if one is worth it and can be written."""
        path = self._database.beside("vectors")
        if state.items > FILE_ROWS:
            origin = _origin(state, width)
            try:
                write_vectors(path, origin, _rows(connection, state, width, 0))
                mapped = read_vectors(path)
            except OSError:  # nothing can be written here, or the disk is full
                mapped = None
            except ValueError as error:
                raise BundleError(f"{self._database.path} holds other vectors than items ({error}): {REPAIR}") from None
            if mapped is not None and mapped.origin == origin:
                return _of_file(mapped, state)
        return _joined(state, width, list(_rows(connection, state, width, 0)))


def _whole(columns: Columns | None, state: State) -> bool:
    return columns is not None and not columns.due and len(columns.places) == state.items


def _caught_up(connection: sqlite3.Connection, state: State, width: int, earlier: Columns) -> Columns | None:
    """The columns of a state, from those of an earlier one; None if there are many new items."""
    since = (earlier.state.version, state.version)
    removed = connection.execute("SELECT position FROM removed WHERE version > ? AND version <= ?", since)
    found = earlier.without(np.fromiter((row[0] for row in removed if isinstance(row[0], int)), np.int64))
    last = int(earlier.positions[-1]) if len(earlier.positions) else 0
    limit = max(0, earlier.room) + 1
    counted = "SELECT count(*) FROM (SELECT 1 FROM items WHERE position > ? LIMIT ?)"
    if connection.execute(counted, (last, limit)).fetchone()[0] == limit:
        return None
    new = list(_rows(connection, state, width, last))
    if new:
        found = found.extended(_joined(state, width, new))
    return replace(found, state=state)


def _rows(connection: sqlite3.Connection, state: State, width: int, after: int) -> Iterator[Rows]:
    """The items at positions above ``after``, in parts."""
    cursor = connection.execute(NEW, (4 * width, state.first_row, after))
    while rows := cursor.fetchmany(READ_ROWS):
        *columns, vectors = zip(*rows, strict=True)
        whole = all(isinstance(n, int) and 0 <= n < MAX_NUMBER for column in columns for n in column)
        if None in vectors or not whole:
            raise BundleError(f"the index is damaged: vectors of items {rows[0][0]} and on are broken; {REPAIR}")
        positions, numbers, lengths = (np.array(column, np.int64) for column in columns)
        yield positions, numbers, lengths, np.frombuffer(b"".join(vectors), np.float32).reshape(len(rows), width)


def _joined(state: State, width: int, rows: list[Rows]) -> Columns:
    none = np.empty(0, np.int64)
    parts = zip((none, none, none, np.empty((0, width), np.float32)), *rows, strict=True)
    positions, numbers, lengths, vectors = (np.concatenate(arrays) for arrays in parts)
    alive = np.ones(len(positions), np.bool_)
    return Columns(state, positions, numbers, lengths, (vectors,), alive, len(positions))


def _of_file(mapped: Mapped, state: State) -> Columns:
    origin, alive = mapped.origin, np.ones(len(mapped.positions), np.bool_)
    then = replace(state, version=origin.version)
    columns = mapped.positions, mapped.numbers, mapped.lengths
    return Columns(then, *columns, (mapped.vectors,), alive, origin.count)


def _origin(state: State, width: int) -> Origin:
    return Origin(state.name.encode()[:32], state.generation, state.epoch, state.version, state.items, width)


def _is_earlier(origin: Origin, state: State, width: int) -> bool:
    now = _origin(state, width)
    same = (origin.name, origin.generation, origin.epoch, origin.width)
    return same == (now.name, now.generation, now.epoch, now.width) and origin.version <= now.version


def _same_epoch(one: State, other: State) -> bool:
    return (one.generation, one.epoch) == (other.generation, other.epoch)
