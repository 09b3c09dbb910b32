"""Add items to an index: encoded in batches, and committed as they are encoded."""

from __future__ import annotations

import itertools
import sqlite3
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.features import FeatureBatch, FeatureReader
from camp_sdk.index.arrivals import Arrival
from camp_sdk.index.changes import Changes, EncodedRow, Entry
from camp_sdk.index.database import Database
from camp_sdk.index.items import Added
from camp_sdk.index.layout import Layout, as_json, check_shapes, layout_of, make_layout, shapes_in
from camp_sdk.index.schema import State, read_state
from camp_sdk.model import Model
from camp_sdk.results import Skipped
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import BundleError, InputError

ENCODE_TEXTS = 512
# A commit waits for the disk: it is made when this much is waiting, whichever comes first.
COMMIT_ITEMS, COMMIT_BYTES, COMMIT_S = 512, 16 << 20, 1.0
KNOWN = "SELECT size, mtime_ns, digest, file, metadata FROM items WHERE key = ?"


@dataclass
class _Counts:
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)


class Adding:
    """One call of `Index.add`.

    Args:
        database: The index.
        model: Encodes the items.
        state: The state in which the call begins.
        on_progress: Receives the number of items in each commit.
    """

    def __init__(self, database: Database, model: Model, state: State, on_progress: Advance) -> None:
        self._database, self._model, self._state, self._on_progress = database, model, state, on_progress
        self._rows: list[tuple[Entry, EncodedRow | None]] = []  # without a row: the content is the same
        self._layout, self._shapes = layout_of(state, model.bundle.manifest), state.shapes
        self._bytes, self._since = 0, time.monotonic()
        self._taken = self._done = 0  # images taken from the encoder, and those left out since the last commit
        self._counts = _Counts()
        self._on_the_way: Counter[str] = Counter()  # keys of items that are encoded, but not committed yet

    def images(self, found: Iterable[Arrival], reader: FeatureReader) -> Added:
        """Add images.

        Args:
            found: The images.
            reader: Reads them.
        """
        waiting: deque[Arrival] = deque()
        encoded = self._model.image_batches(self._new(found, waiting), _Names(waiting), reader, self._state.precision)
        with closing(encoded) as batches:
            for batch, tensors in batches:
                taken = [waiting.popleft() for _ in range(len(batch))]
                self._take_images(taken, batch, tensors)
        return self._added()

    def texts(self, found: Iterable[Arrival]) -> Added:
        """Add texts."""
        new = self._new(found, deque())
        while texts := list(itertools.islice(new, ENCODE_TEXTS)):
            self._take_texts(texts)
        return self._added()

    def _new(self, found: Iterable[Arrival], waiting: deque[Arrival]) -> Iterator[Any]:
        """The items whose content the index does not hold yet; the images themselves, or the arrivals of texts."""
        for arrival in found:
            # A key that is on its way already will have other content than the index says: the last one counts.
            known, same = (None, False) if self._on_the_way[arrival.entry.key] else self._known(arrival)
            if same:  # down to its metadata: nothing is written
                self._counts.unchanged += 1
                self._done += 1
                if self._done >= COMMIT_ITEMS:
                    self._commit()
                continue
            if known is not None:
                self._keep(known.entry, None)
                continue
            arrival = arrival if arrival.entry.digest else arrival.hashed()
            waiting.append(arrival)
            self._on_the_way[arrival.entry.key] += 1
            yield arrival if self._state.kind == "text" else arrival.item

    def _known(self, arrival: Arrival) -> tuple[Arrival | None, bool]:
        """The arrival, if the index holds its content under its key; and whether all that it holds is the same."""
        entry = arrival.entry
        with self._database.reading() as connection:
            found = connection.execute(KNOWN, (entry.key,)).fetchone()
        if found is None or found[2] is None:
            return None, False
        *details, digest, file, metadata = found
        same_file = [*details, file] == [entry.size, entry.mtime_ns, entry.file]
        same = same_file and entry.metadata in (None, metadata)
        if arrival.path and same_file:
            return arrival, same
        hashed = arrival if entry.digest else arrival.hashed()
        return (hashed, same) if hashed.entry.digest == digest else (None, False)

    def _take_images(self, taken: Sequence[Arrival], batch: FeatureBatch, tensors: Arrays | None) -> None:
        places = {one.index - self._taken: one for one in batch.skipped}
        self._taken += len(taken)
        for place, one in places.items():
            self._counts.skipped.append(replace(one, index=taken[place].index))
            self._done += 1
        good = [arrival for place, arrival in enumerate(taken) if place not in places]
        if tensors is not None:
            self._take(good, tensors, np.zeros(len(good), np.int64))

    def _take_texts(self, taken: Sequence[Arrival]) -> None:
        encoded = self._model.encode_texts([arrival.item for arrival in taken])
        self._take(taken, encoded.tensors, encoded.lengths)

    def _take(self, taken: Sequence[Arrival], tensors: Arrays, lengths: NDArray[np.int64]) -> None:
        state, manifest = self._state, self._model.bundle.manifest
        if self._layout is None:
            shapes = shapes_in(state.kind, manifest, state.precision, tensors)
            self._layout = make_layout(state.kind, manifest, state.precision, shapes)
            self._shapes = as_json(shapes)
        check_shapes(self._layout, tensors)
        for arrival, row in zip(taken, encoded_rows(self._layout, tensors, lengths), strict=True):
            self._keep(arrival.entry, row)

    def _keep(self, entry: Entry, row: EncodedRow | None) -> None:
        self._rows.append((entry, row))
        self._bytes += row.nbytes if row else 0
        late = time.monotonic() - self._since > COMMIT_S
        if len(self._rows) >= COMMIT_ITEMS or self._bytes >= COMMIT_BYTES or late:
            self._commit()

    def _commit(self) -> None:
        rows, self._rows = self._rows, []
        self._on_the_way -= Counter(entry.key for entry, row in rows if row is not None)
        if rows:
            with self._database.writing() as connection:
                changes = Changes(connection, self._unchanged_state(connection))
                self._write(changes, rows)
                changes.finish()
        self._bytes, self._since = 0, time.monotonic()
        if done := len(rows) + self._done:
            self._done = 0
            self._on_progress(done)

    def _write(self, changes: Changes, rows: Sequence[tuple[Entry, EncodedRow | None]]) -> None:
        counts = replace(self._counts)
        encoded = any(row is not None for _, row in rows)
        if encoded and changes.state.shapes is None and self._shapes is not None:
            changes.set_shapes(self._shapes)
        for entry, row in rows:
            if row is None:
                counts.unchanged += changes.touch(entry)
            elif changes.put(entry, row):
                counts.replaced += 1
            else:
                counts.added += 1
        self._counts = counts

    def _unchanged_state(self, connection: sqlite3.Connection) -> State:
        """The state, if what was encoded still fits it."""
        path = str(self._database.path)
        state = read_state(connection, path)
        if (state.generation, state.bundle) != (self._state.generation, self._state.bundle):
            raise BundleError(f"{path} was moved to another bundle while items were added: open it with that bundle")
        if state.shapes is not None and self._shapes is not None and state.shapes != self._shapes:
            layout = layout_of(state, self._model.bundle.manifest)
            raise InputError(f"{path} has items of other shapes by now, such as {layout and layout.parts[:1]}")
        return state

    def _added(self) -> Added:
        self._commit()
        counts = self._counts
        return Added(counts.added, counts.replaced, counts.unchanged, tuple(counts.skipped))


def encoded_rows(layout: Layout, tensors: Arrays, lengths: NDArray[np.int64]) -> Iterator[EncodedRow]:
    """What each of several items was encoded to.

    Args:
        layout: Their layout.
        tensors: Their tensors, as `EncodedImages` or `EncodedTexts` hold them.
        lengths: The number of words of each; 0 for images.
    """
    ends = np.cumsum(lengths)
    for index, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
        vector = b"" if layout.vector is None else np.ascontiguousarray(tensors[layout.vector][index]).tobytes()
        yield EncodedRow(length, vector, layout.pack(tensors, index, slice(end - length, end)))


class _Names(Sequence[str]):
    """The names of images in messages: each is read right after its image."""

    def __init__(self, waiting: deque[Arrival]) -> None:
        self._waiting = waiting

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: Any) -> Any:
        return self._waiting[-1].name
