"""`Index`: pictures, or texts, that are added, changed, removed and filtered while they are searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from camp_sdk.arguments import Advance, silent
from camp_sdk.index.adding import Adding
from camp_sdk.index.arrivals import arrivals, checked_key, checked_keys
from camp_sdk.index.changes import Changes
from camp_sdk.index.inverted_file import ENDING, write_inverted
from camp_sdk.index.items import Added
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.index.reading import IndexReader
from camp_sdk.index.reencoding import Reencoding, Sources
from camp_sdk.index.schema import read_state
from camp_sdk.index.snapshot import check_bundle
from camp_sdk.model import Model
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

CHANGED_AT_ONCE = 1000  # items, in one transaction


class HasModel(Protocol):
    """A `Retriever`."""

    model: Model


class Index(IndexReader):
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
        ann: Whether shortlists are chosen with the approximate search that `build_ann` made.
    """

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

    def build_ann(self, on_progress: Advance = silent) -> None:
        """Make the approximate search, for where memory is short; `Retriever.open_index(..., ann=True)` uses it.

        It takes a quarter of the memory of all global vectors. What is added later is searched exactly; make it again
        once that is a large part. This takes about a minute for a million items, and needs camp-sdk[ann].

        Args:
            on_progress: Receives the number of items in each part that was compressed.

        Raises:
            InputError: The index has too few items, or no global vectors.
            MissingExtraError: faiss is not installed.
            OSError: The file, whose name is that of the index and ``-ann``, cannot be written.
        """
        with self._snapshots.open(self._model) as snapshot:
            columns = snapshot.store.columns  # these stay as they are when the transaction ends
        write_inverted(self._database.beside(ENDING), columns, on_progress)

    @contextmanager
    def _changing(self) -> Iterator[Changes]:
        with self._database.writing() as connection:
            state = read_state(connection, str(self.path))
            changes = Changes(connection, state)
            yield changes
            changes.finish()
