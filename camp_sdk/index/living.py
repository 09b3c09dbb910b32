"""`Index`: pictures, or texts, that are added, changed, removed and filtered while they are searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from camp_sdk.arguments import Advance, check_offset, checked_count, silent
from camp_sdk.gallery import Gallery
from camp_sdk.index.adding import Adding
from camp_sdk.index.arrivals import arrivals, checked_key, checked_keys, stored_path
from camp_sdk.index.changes import Changes
from camp_sdk.index.database import Database
from camp_sdk.index.description import describe
from camp_sdk.index.items import Added, IndexInfo, IndexItem
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.index.reencoding import Reencoding, Sources
from camp_sdk.index.schema import read_state
from camp_sdk.index.snapshot import Snapshots, check_bundle, item_of
from camp_sdk.index.where import compile_where
from camp_sdk.model import Model
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.ranking import Candidates
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import absolute
from camp_sdk.runtime.messages import brief

HOLDS = "SELECT 1 FROM items WHERE file = ? LIMIT 1"
CHANGED_AT_ONCE = 1000  # items, in one transaction


class HasModel(Protocol):
    """A `Retriever`."""

    model: Model


class Index:
    """Encoded pictures or texts in one file, each with a key and metadata.

    `Retriever.open_index` opens and makes indexes, and `Retriever.rank` ranks them. Any number of threads and processes
    may read an index while one writes it: a ranking, and every other call, sees one consistent state from beginning to
    end. Changes are durable when the call that makes them returns. Use the index as a context manager, or call `close`.

    Iteration yields every `IndexItem`, in the order in which they were added; ``len(index)`` is their number, and
    ``key in index`` says whether there is one with this key.

    Args:
        path: The file.
        model: The network that encodes the items; None for what needs none, such as removing them.
        timeout_s: How long a change waits for another writer to finish, in seconds.
    """

    def __init__(self, path: Path, model: Model | None, timeout_s: float) -> None:
        self.path = path
        self._model = model
        self._database = Database(path, timeout_s)
        self._snapshots = Snapshots(self._database)
        try:
            state = self._snapshots.state()
            if model is not None:
                check_bundle(state, model, path)
        except BaseException:
            self._database.close()
            raise

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r})"

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._snapshots.state().items

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __iter__(self) -> Iterator[IndexItem]:
        return self.where({})

    @property
    def kind(self) -> str:
        """What the index holds: "image" or "text"."""
        return self._snapshots.state().kind

    @property
    def precision(self) -> str:
        """How its tensors are stored: "float32", "float16" or "int8"."""
        return self._snapshots.state().precision

    def close(self) -> None:
        """Close the file. Calls in other threads end first."""
        self._database.close()

    def add(
        self,
        items: Iterable[Any],
        keys: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        on_progress: Advance = silent,
        skip_broken: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> Added:
        """Encode items and add them; an item whose key is there already takes the other's place, at the end.

        Items are committed in batches while others are encoded, so that memory does not grow with their number. If the
        process is killed, the batches committed so far are kept, and the same call goes on where it was: content that
        the index holds under the same key is not encoded again. A file counts as the same if its size and modification
        time are, or else its hash.

        Args:
            items: Images as `Retriever.encode_images` takes them, or texts; they may come from a generator.
            keys: A key for each item. Default: for a path, the path, relative to the folder of the index if the file
                lies below that; for a text, the text; for bytes and arrays, a hash of the content. Other pictures need
                keys.
            metadata: A dict for each item, of what JSON has. None keeps the metadata of a key that is there already.
            on_progress: Receives the number of items in each batch that was committed.
            skip_broken: Leave out pictures that cannot be read, instead of raising.
            max_megapixels: Pictures with more megapixels are not decoded; they count as pictures that cannot be read.

        Returns:
            How many items were added, replaced, unchanged and left out.

        Raises:
            InputError: An item cannot be encoded, or has other shapes than those of the index; the message names it.
                What was committed before stays.
            BundleError: The index was moved to another bundle.
            BusyError: Another one has been writing all the time.
            OSError: The disk is full, or the file cannot be written; the index is as after the last batch.
        """
        state = self._snapshots.state()
        model = self._model
        if model is None:
            raise InputError("this index was opened without a bundle: open it with Retriever.open_index to add items")
        check_bundle(state, model, self.path)
        found = arrivals(state.kind, items, keys, metadata, self.path.parent)
        adding = Adding(self._database, model, state, on_progress)
        if state.kind == "text":
            return adding.texts(found)
        return adding.images(found, model.reader(skip_broken, max_megapixels))

    def remove(self, keys: Iterable[str]) -> int:
        """Remove items; keys that are not there are passed over.

        Args:
            keys: The keys of the items.

        Returns:
            The number of items removed.

        Raises:
            InputError: ``keys`` is not a list of keys.
            BusyError: Another one has been writing all the time.
        """
        listed, removed = checked_keys(keys), 0
        for start in range(0, len(listed), CHANGED_AT_ONCE):
            with self._changing() as changes:
                removed += sum([changes.remove(key) for key in listed[start : start + CHANGED_AT_ONCE]])
        return removed

    def update(self, key: str, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of an item; nothing is encoded.

        Args:
            key: The key of the item.
            metadata: Its new metadata: a dict of what JSON has.

        Raises:
            InputError: There is no such item, or the metadata are not what JSON has.
            BusyError: Another one has been writing all the time.
        """
        text = checked_metadata(metadata, brief(checked_key(key)))
        with self._changing() as changes:
            if not changes.set_metadata(key, text):
                raise InputError(f"the index has no item with the key {brief(key)}: add it first")

    def update_many(self, metadata: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Replace the metadata of many items, in batches that are committed together.

        Args:
            metadata: The new metadata of each item by its key.

        Returns:
            The keys that the index does not have.

        Raises:
            InputError: Metadata are not what JSON has; the batches before stay.
            BusyError: Another one has been writing all the time.
        """
        unknown, rows = [], iter(metadata.items())
        while batch := list(itertools.islice(rows, CHANGED_AT_ONCE)):
            texts = [(checked_key(key), checked_metadata(fields, brief(key))) for key, fields in batch]
            with self._changing() as changes:
                unknown += [key for key, text in texts if not changes.set_metadata(key, text)]
        return unknown

    def get(self, key: str) -> IndexItem | None:
        """The item with a key; None if there is none.

        Args:
            key: The key.
        """
        key = checked_key(key)
        with self._database.reading() as connection:
            row = connection.execute("SELECT key, file, text, metadata FROM items WHERE key = ?", (key,)).fetchone()
        return None if row is None else item_of(row, self.path.parent)

    def keys(self) -> Iterator[str]:
        """Every key, in the order in which items were added."""
        with self._database.reading() as connection:
            for row in connection.execute("SELECT key FROM items ORDER BY position"):
                yield row[0]

    def gallery(self, keys: Iterable[str]) -> Gallery:
        """Some items as a gallery in memory, for calls that take no index.

        Args:
            keys: The keys of the items, at least one; the gallery has their order.

        Returns:
            The gallery; its documents are keys, or the texts.

        Raises:
            InputError: There is no item with one of the keys.
            BundleError: The index was moved to another bundle.
        """
        listed = checked_keys(keys)
        if self._model is None or not listed:
            raise InputError("a gallery takes at least one key, of an index that was opened with a bundle")
        with self._snapshots.open(self._model) as snapshot:
            return snapshot.gallery(self._model, listed)

    def holds(self, path: str | Path) -> bool:
        """Whether an item is the picture at a path. This looks through all items.

        Args:
            path: The path of a file.
        """
        stored = stored_path(absolute(path), self.path.parent)
        with self._database.reading() as connection:
            return connection.execute(HOLDS, (stored,)).fetchone() is not None

    def where(self, conditions: Mapping[str, Any], offset: int = 0, limit: int | None = None) -> Iterator[IndexItem]:
        """Find items by their metadata.

        A condition names a field and its value, ``{"album": "2024"}``, or operators: ``{"year": {"gte": 2020, "lt":
        2024}}``. The operators are ``equal``, ``in`` (a list of values), ``gt``, ``gte``, ``lt`` and ``lte`` (numbers,
        or text), ``contains`` (a list that holds the value, or a text that holds the text) and ``exists`` (True or
        False). A field of an object is named with a dot, ``"camera.maker"``. All conditions of a dict must be met;
        ``{"or": [{...}, {...}]}``, ``{"and": [...]}`` and ``{"not": {...}}`` combine dicts.

        Args:
            conditions: The conditions; {} for every item.
            offset: How many of the items to leave out at the beginning.
            limit: The most items; None for all.

        Yields:
            The items, in the order in which they were added.

        Raises:
            InputError: A condition is not understood, or a number is negative.
        """
        condition = compile_where(conditions)  # here, not when the first item is read
        check_offset(offset)
        end = None if limit is None else offset + (checked_count("limit", limit) or 0)

        def found() -> Iterator[IndexItem]:
            with self._snapshots.open(self._model) as snapshot:
                yield from snapshot.items(snapshot.chosen(condition)[offset:end])

        return found()

    def info(self) -> IndexInfo:
        """Describe the index: what it holds, and what it takes."""
        with self._snapshots.open(self._model) as snapshot:
            return describe(snapshot, self.path)

    def compact(self) -> None:
        """Write the file anew without what is free in it; this needs as much space again for as long as it takes.

        Raises:
            BusyError: Another one has been writing all the time.
            OSError: There is not enough space; the index is as before.
        """
        with self._changing() as changes:
            changes.forget_removed()
        self._database.run_alone("VACUUM")

    def reencode(
        self,
        retriever: HasModel,
        sources: Sources | None = None,
        precision: str | None = None,
        on_progress: Advance = silent,
        skip_broken: bool = False,
    ) -> None:
        """Encode every item with another bundle, and then move the index to it in one step.

        Meanwhile the index is read and written as before, by other threads and processes: what they add is encoded too.
        After the step, those who use the old bundle are refused, and this object uses the new one. If the process is
        killed, another call goes on where it was.

        Args:
            retriever: A retriever of the new bundle.
            sources: Maps the key of an item to its picture, or its features, where the index does not know a file:
                a mapping or a function. Pictures added as paths are read again, and texts are in the index.
            precision: How tensors are stored; None for as they are.
            on_progress: Receives the number of items in each batch that was committed.
            skip_broken: Remove items that cannot be read, instead of raising.

        Raises:
            InputError: An item has no source, or cannot be read; what was encoded is kept for another call.
            BusyError: Another one has been writing all the time.
            OSError: The disk is full.
        """
        model = retriever.model
        if not isinstance(model, Model):
            raise InputError(f"retriever is {brief(retriever)}: expected a Retriever of the new bundle")
        Reencoding(self._database, model, sources, on_progress, skip_broken).run(precision)
        self._model = model

    @contextmanager
    def candidates(self, model: Model, where: Mapping[str, Any] | None) -> Iterator[Candidates]:
        """The items to rank, of one consistent state, for as long as the context is open.

        Args:
            model: The network that ranks them.
            where: As `where` takes it; None for all items.

        Raises:
            InputError: A condition is not understood.
            BundleError: Another bundle made the index.
        """
        condition = None if where is None else compile_where(where)
        with self._snapshots.open(model) as snapshot:
            yield snapshot.candidates(model, condition)

    @contextmanager
    def _changing(self) -> Iterator[Changes]:
        with self._database.writing() as connection:
            state = read_state(connection, str(self.path))
            changes = Changes(connection, state)
            yield changes
            changes.finish()
