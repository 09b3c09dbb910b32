"""One consistent state of an index: what is found, described and ranked in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.gallery import Gallery
from camp_sdk.index.approximate import ApproximateCache
from camp_sdk.index.arrivals import file_of
from camp_sdk.index.columns import ColumnCache
from camp_sdk.index.database import Database
from camp_sdk.index.inverted_file import ENDING
from camp_sdk.index.items import IndexItem
from camp_sdk.index.layout import Layout, empty_layout, layout_of
from camp_sdk.index.metadata import read_metadata
from camp_sdk.index.schema import State, read_state
from camp_sdk.index.stored import Store, StoredImages, StoredTexts
from camp_sdk.index.where import Condition
from camp_sdk.model import Model
from camp_sdk.ranking import Candidates, Described
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

Places = NDArray[np.intp]

NUMBER = "SELECT number FROM items WHERE key = ?"
ITEM = "SELECT key, file, text, metadata FROM items WHERE number = ?"
MAX_TRIES = 1000  # to begin with a state that no other thread has gone past


@dataclass(frozen=True)
class Snapshot:
    """One state, for as long as its transaction is open.

    Args:
        store: Reads it.
        folder: The folder of the index, from which the paths of pictures begin.
    """

    store: Store
    folder: Path

    @property
    def state(self) -> State:
        """The state."""
        return self.store.state

    def chosen(self, condition: Condition | None) -> Places:
        """Where the items that meet a condition stand in the columns; None for all items."""
        with self.store.lock:
            return self.store.columns.chosen(self.store.connection, condition)

    def items(self, places: Places) -> Iterator[IndexItem]:
        """The items at some places."""
        for number in self.store.columns.numbers[places].tolist():
            with self.store.lock:
                row = self.store.connection.execute(ITEM, (number,)).fetchone()
            if row is None:
                raise BundleError(f"the index is damaged: item {number} has a vector, but no key; make the index again")
            yield item_of(row, self.folder)

    def candidates(self, model: Model, condition: Condition | None) -> Candidates:
        """The items that meet a condition, to be ranked.

        Args:
            model: The network that ranks them.
            condition: The condition; None for all items.
        """
        places = self.chosen(condition)
        return Candidates(self.encoded(model, places), partial(self._described, places))

    def encoded(self, model: Model, places: Places) -> EncodedImages | EncodedTexts:
        """The items at some places, which are read when they are scored.

        Args:
            model: The network that reads them.
            places: Where they stand in the columns, ascending.
        """
        if self.state.kind == "image":
            return model.readable(StoredImages(self.store, places), self.state.precision)
        return StoredTexts(self.store, places)

    def gallery(self, model: Model, keys: Sequence[str]) -> Gallery:
        """Items with their tensors, read into memory.

        Args:
            model: The network that has encoded them.
            keys: The keys of the items; at least one.

        Raises:
            InputError: There is no item with one of the keys.
        """
        known, places = self.store.columns.by_number
        places = places[np.searchsorted(known, [self._number(key) for key in keys])]
        if self.state.kind == "text":
            texts = [item.document for item in self.items(places)]
            return Gallery(self.store.texts(places), texts, model.bundle)
        encoded = EncodedImages(self.store.read(places))
        return Gallery(encoded, list(keys), model.bundle, self.state.precision)

    def _number(self, key: str) -> int:
        with self.store.lock:
            row = self.store.connection.execute(NUMBER, (key,)).fetchone()
        if row is None:
            raise InputError(f"the index has no item with the key {brief(key)}: expected one that it has")
        return int(row[0])

    def _described(self, places: Places, numbers: NDArray[np.intp]) -> list[Described]:
        chosen = places[numbers]
        positions = np.searchsorted(self.store.columns.places, chosen).tolist()
        items = zip(positions, self.items(chosen), strict=True)
        return [Described(position, item.document, item.key, item.metadata) for position, item in items]


class Snapshots:
    """Opens snapshots of an index; threads share it.

    Args:
        database: The file of the index.
        ann: Whether shortlists are chosen with the approximate search, where there is one.
    """

    def __init__(self, database: Database, ann: bool = False) -> None:
        self._database = database
        self._columns = ColumnCache(database)
        self._approximate = ApproximateCache(database.beside(ENDING)) if ann else None

    @contextmanager
    def open(self, model: Model | None) -> Iterator[Snapshot]:
        """A snapshot of the latest state.

        Args:
            model: The network whose bundle must have encoded the index; None to read no tensors.

        Raises:
            BundleError: Another bundle has, or the index is damaged.
        """
        path = self._database.path
        for _ in range(MAX_TRIES):
            with self._database.reading() as connection:
                store = self._store(connection, model)
                if store is not None:
                    yield Snapshot(store, path.parent)
                    return
        raise BundleError(f"{path} changes faster than it can be read: try again")

    def state(self) -> State:
        """The latest state."""
        with self._database.reading() as connection:
            return read_state(connection, str(self._database.path))

    def _store(self, connection: sqlite3.Connection, model: Model | None) -> Store | None:
        path = self._database.path
        state = read_state(connection, str(path))
        if model is None:
            layout = Layout((), None, _width(connection, state))
        else:
            check_bundle(state, model, path)
            manifest = model.bundle.manifest
            layout = layout_of(state, manifest) or empty_layout(state.kind, manifest)
        columns = self._columns.at(connection, state, layout.width)
        if columns is None:
            return None
        approximate = None if self._approximate is None else self._approximate.at(state, layout.width)
        return Store(connection, state, columns, layout, threading.Lock(), approximate)


def _width(connection: sqlite3.Connection, state: State) -> int:
    """The size of a global vector, as the first one has it."""
    first = "SELECT length(CAST(vector AS BLOB)) FROM vectors WHERE row BETWEEN ? AND ? LIMIT 1"
    found = connection.execute(first, state.rows()).fetchone()
    return int(found[0]) // 4 if found else 0


def check_bundle(state: State, model: Model, path: Path) -> None:
    """Check that a bundle has encoded an index.

    Raises:
        BundleError: Another one has.
    """
    if state.bundle != model.bundle.fingerprint:
        raise BundleError(
            f"{path} was made by another bundle ({state.bundle[:12]}, this one is {model.bundle.fingerprint[:12]}); "
            "open it with that bundle, and move it to this one with `reencode`, or make it again"
        )


def item_of(row: tuple[Any, ...], folder: Path) -> IndexItem:
    """An item of its row in the table: key, file, text, metadata.

    Raises:
        BundleError: The row is damaged.
    """
    key, file, text, metadata = row
    if not isinstance(key, str) or not isinstance(text, (str, type(None))):
        raise BundleError(f"the index is damaged: an item has the key {brief(key)}; make the index again")
    return IndexItem(key, text if text is not None else file_of(file, folder), read_metadata(metadata, brief(key)))
