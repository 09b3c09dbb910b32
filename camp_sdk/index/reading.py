"""What reads an index: its items, and what is found and ranked in it, each in one consistent state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from camp_sdk.arguments import check_offset, checked_count
from camp_sdk.gallery import Gallery
from camp_sdk.index.arrivals import checked_key, checked_keys, stored_path
from camp_sdk.index.database import Database
from camp_sdk.index.description import describe
from camp_sdk.index.inverted_file import ENDING
from camp_sdk.index.items import IndexInfo, IndexItem
from camp_sdk.index.snapshot import Snapshot, Snapshots, check_bundle, item_of
from camp_sdk.index.where import compile_where
from camp_sdk.model import Model
from camp_sdk.ranking import Candidates
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import absolute

HOLDS = "SELECT 1 FROM items WHERE file = ? LIMIT 1"
Own = TypeVar("Own", bound="IndexReader")


class IndexReader:
    """The part of an `Index` that reads.

    Args:
        path: The file.
        model: The network that encoded the items; None for what needs none.
        timeout_s: How long a change waits for another writer to finish, in seconds.
        ann: Whether shortlists are chosen with the approximate search that `Index.build_ann` made.
    """

    def __init__(self, path: Path, model: Model | None, timeout_s: float, ann: bool = False) -> None:
        self.path = path
        self._model = model
        self._database = Database(path, timeout_s)
        self._snapshots = Snapshots(self._database, ann)
        try:
            state = self._snapshots.state()
            if model is not None:
                check_bundle(state, model, path)
            if ann:
                self._check_ann()
        except BaseException:
            self._database.close()
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __enter__(self: Own) -> Own:
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
        with self.snapshot(model) as snapshot:
            yield snapshot.candidates(model, condition)

    @contextmanager
    def snapshot(self, model: Model) -> Iterator[Snapshot]:
        """One consistent state, for as long as the context is open.

        Args:
            model: The network that encoded the items.

        Raises:
            BundleError: Another bundle made the index.
        """
        with self._snapshots.open(model) as snapshot:
            yield snapshot

    def _check_ann(self) -> None:
        with self._snapshots.open(self._model) as snapshot:
            if snapshot.store.approximate is None:
                raise BundleError(
                    f"{self._database.beside(ENDING)} is missing, damaged, or of another bundle: make it with "
                    "`camp index ann`, or open the index without `ann`"
                )
