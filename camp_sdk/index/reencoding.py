"""Move an index to another bundle: a new generation is filled beside the one that is read, and takes its place."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.arguments import Advance
from camp_sdk.index.adding import encoded_rows
from camp_sdk.index.arrivals import file_of
from camp_sdk.index.changes import Changes, EncodedRow, delete_encoded, put_encoded
from camp_sdk.index.database import Database
from camp_sdk.index.layout import Layout, as_json, check_shapes, make_layout, shapes_in
from camp_sdk.index.schema import MAX_GENERATION, NUMBER_BITS, State, read_state
from camp_sdk.model import Model
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

Sources = Mapping[str, Any] | Callable[[str], Any]

READ_ITEMS = 512  # at a time; each time, what others have removed meanwhile is noticed
NOT_YET = (
    "SELECT number, position, key, file, text FROM items WHERE number > ? "
    "AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.row = items.number | ?) ORDER BY number LIMIT ?"
)
SAME = "SELECT 1 FROM items WHERE number = ? AND position = ?"  # not another that took its number meanwhile
WITHOUT_SOURCE = "SELECT count(*), min(key) FROM items WHERE file IS NULL AND text IS NULL"


@dataclass(frozen=True)
class _Item:
    number: int
    position: int
    key: str
    source: Any


class Reencoding:
    """One call of `Index.reencode`.

    Args:
        database: The index.
        model: The network of the new bundle.
        sources: Gives the picture of a key where the index knows no file.
        on_progress: Receives the number of items in each batch that was committed.
        skip_broken: Remove items that cannot be read.
    """

    def __init__(
        self, database: Database, model: Model, sources: Sources | None, on_progress: Advance, skip_broken: bool
    ) -> None:
        self._database, self._model, self._sources = database, model, sources
        self._on_progress, self._skip_broken = on_progress, skip_broken
        self._layout: Layout | None = None
        self._shapes: str | None = None
        self._generation = 0
        self._precision = ""
        self._left_out: set[int] = set()  # positions of items that cannot be read

    def run(self, precision: str | None) -> None:
        """Encode what is not encoded yet, and switch.

        Args:
            precision: How tensors are stored; None for as they are.
        """
        with self._database.reading() as connection:
            state = self._state(connection)
            if self._sources is None:
                self._check_sources(connection)
        same = precision in (None, state.precision) and state.bundle == self._model.bundle.fingerprint
        if same:
            return
        self._precision = precision or state.precision
        if state.kind == "image":
            self._model.stored_precision(self._precision)
        elif self._precision != "float32":
            raise InputError(f"precision is {brief(precision)}: an index of texts stores float32")
        self._begin(state)
        while not self._switched():
            self._encode_all(state.kind)
        self._clear()

    def _state(self, connection: sqlite3.Connection) -> State:
        return read_state(connection, str(self._database.path))

    def _check_sources(self, connection: sqlite3.Connection) -> None:
        count, key = connection.execute(WITHOUT_SOURCE).fetchone()
        if count:
            raise InputError(
                f"{count} items, such as {brief(key)}, were not added as paths: pass `sources`, which maps keys to "
                "pictures"
            )

    def _begin(self, state: State) -> None:
        """Find the generation that an earlier call began, or begin one; others that were begun are given up."""
        wanted = (self._model.bundle.fingerprint, self._precision)
        with self._database.writing() as connection:
            rows = connection.execute(
                "SELECT generation, bundle, precision, shapes FROM generations WHERE generation > ?",
                (state.generation,),
            ).fetchall()
            kept = [row for row in rows if row[1:3] == wanted]
            for row in rows:
                if row not in kept[:1]:
                    connection.execute("DELETE FROM generations WHERE generation = ?", row[:1])
            if kept:
                self._generation, self._shapes = kept[0][0], kept[0][3]
                return
            self._generation = 1 + max([state.generation, *(row[0] for row in rows)])
            if self._generation > MAX_GENERATION:
                raise InputError("this index was moved too often: make it again")
            connection.execute("INSERT INTO generations VALUES (?, ?, ?, NULL)", (self._generation, *wanted))

    def _encode_all(self, kind: str) -> None:
        last = 0
        while items := self._next(last):
            last = items[-1].number
            for chosen, rows in self._encoded(kind, items):
                self._store(chosen, rows)

    def _next(self, last: int) -> list[_Item]:
        prefix = self._generation << NUMBER_BITS
        with self._database.reading() as connection:
            rows = connection.execute(NOT_YET, (last, prefix, READ_ITEMS)).fetchall()
        return [
            _Item(number, position, key, self._source(key, file, text)) for number, position, key, file, text in rows
        ]

    def _source(self, key: str, file: Any, text: Any) -> Any:
        if text is not None:
            return text
        path = file_of(file, self._database.path.parent)
        given = self._sources(key) if callable(self._sources) else (self._sources or {}).get(key)
        if given is None and path is None:
            raise InputError(f"there is no source for the item {brief(key)}: add it to `sources`")
        return Path(path) if given is None and path is not None else given

    def _encoded(self, kind: str, items: list[_Item]) -> Iterator[tuple[list[_Item], list[EncodedRow]]]:
        if kind == "text":
            texts = self._model.encode_texts([item.source for item in items])
            yield items, self._rows(kind, texts.tensors, texts.lengths)
            return
        reader, names = self._model.reader(self._skip_broken), [item.key for item in items]
        pictures, done = (item.source for item in items), 0
        with closing(self._model.image_batches(pictures, names, reader, self._precision)) as batches:
            for batch, tensors in batches:
                broken = {one.index for one in batch.skipped}
                taken = items[done : done + len(batch)]
                self._left_out |= {item.position for place, item in enumerate(taken, start=done) if place in broken}
                good = [item for place, item in enumerate(taken, start=done) if place not in broken]
                done += len(batch)
                if tensors is not None:
                    yield good, self._rows(kind, tensors, np.zeros(len(good), np.int64))

    def _rows(self, kind: str, tensors: Arrays, lengths: Any) -> list[EncodedRow]:
        manifest = self._model.bundle.manifest
        if self._layout is None:
            shapes = shapes_in(kind, manifest, self._precision, tensors)
            self._layout = make_layout(kind, manifest, self._precision, shapes)
            self._shapes = as_json(shapes)
        check_shapes(self._layout, tensors)
        return list(encoded_rows(self._layout, tensors, lengths))

    def _store(self, items: Iterable[_Item], rows: Iterable[EncodedRow]) -> None:
        done = 0
        with self._database.writing() as connection:
            self._check_begun(connection)
            connection.execute(
                "UPDATE generations SET shapes = ? WHERE generation = ?", (self._shapes, self._generation)
            )
            for item, row in zip(items, rows, strict=True):
                done += 1
                if connection.execute(SAME, (item.number, item.position)).fetchone():
                    put_encoded(connection, self._generation, item.number, row)
        self._on_progress(done)

    def _switched(self) -> bool:
        """Make the new generation the one that is read, if every item is in it."""
        with self._database.writing() as connection:
            self._check_begun(connection)
            changes = Changes(connection, self._state(connection))
            for position in self._left_out:
                changes.remove_at(position)
            if connection.execute(NOT_YET, (0, self._generation << NUMBER_BITS, 1)).fetchone():
                if self._left_out:
                    changes.finish()
                return False
            changes.switch(self._generation)
            changes.finish()
        return True

    def _check_begun(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT 1 FROM generations WHERE generation = ?", (self._generation,)).fetchone()
        if not found or self._state(connection).generation >= self._generation:
            raise InputError(f"{self._database.path} was moved to another bundle by another call of reencode meanwhile")

    def _clear(self) -> None:
        """Delete all generations but the one that is read, a part at a time, so that others can write in between."""
        with self._database.reading() as connection:
            highest = self._state(connection).generation
        for generation in range(highest):
            while True:
                with self._database.writing() as connection:
                    more = delete_encoded(connection, generation)
                    connection.execute("DELETE FROM generations WHERE generation = ?", (generation,))
                if not more:
                    break
