"""Items of an index as encoded images and texts, which are read when they are scored."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from camp_sdk.index.approximate import Approximate
from camp_sdk.index.columns import Columns
from camp_sdk.index.layout import Layout, encoded_texts
from camp_sdk.index.schema import State
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, GlobalParts, Indices
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.nearest import rows_of

Places = NDArray[np.intp]

BLOBS = "SELECT row, CASE WHEN typeof(tensors) = 'blob' AND length(tensors) <= ? THEN tensors END FROM tensors"
READ_ROWS = 256  # by one statement, which costs about half of as many statements


@dataclass(frozen=True, eq=False)
class Store:
    """Reads tensors within one transaction.

    Args:
        connection: The transaction.
        state: The state that it sees.
        columns: The columns of that state.
        layout: The layout of the items.
        lock: Held while the connection is used, because tensors are read in several threads.
        approximate: Finds candidates for shortlists; None to compare all vectors.
    """

    connection: sqlite3.Connection
    state: State
    columns: Columns
    layout: Layout
    lock: threading.Lock
    approximate: Approximate | None = None

    def near(self, queries: NDArray[np.float32], count: int, places: Places) -> Places | None:
        """Where candidates for shortlists stand in the columns, among some places; None for all of these.

        Args:
            queries: Query vectors [Q, d].
            count: The number of items that each shortlist takes.
            places: The items to choose from.
        """
        if self.approximate is None:
            return None
        return self.approximate.near(queries, count, self.columns, places)

    def read(self, places: Places) -> Arrays:
        """The tensors of items; those per word are concatenated.

        Args:
            places: Where the items stand in the columns.

        Raises:
            BundleError: The index is damaged.
        """
        lengths = self.columns.lengths[places]
        if self.layout.parts:
            blobs = self._blobs(self.columns.numbers[places], lengths)
            tensors = self.layout.unpack(blobs, lengths)
        else:
            tensors = {}
        if self.layout.vector is not None:
            tensors[self.layout.vector] = rows_of(self.columns.parts, places)
        return tensors

    def texts(self, places: Places) -> EncodedTexts:
        """The tensors of texts."""
        return encoded_texts(self.read(places), self.columns.lengths[places], self.layout)

    def _blobs(self, numbers: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[bytes]:
        rows, sizes = (self.state.first_row + numbers).tolist(), list(map(self.layout.nbytes, lengths.tolist()))
        found: dict[int, bytes | None] = {}
        with self.lock:
            for start in range(0, len(rows), READ_ROWS):
                some = rows[start : start + READ_ROWS]
                statement = f"{BLOBS} WHERE row IN ({','.join('?' * len(some))})"
                found.update(self.connection.execute(statement, (max(sizes), *some)))
        blobs = [found.get(row) or b"" for row in rows]
        for number, blob, size in zip(numbers.tolist(), blobs, sizes, strict=True):
            if len(blob) != size:
                raise BundleError(f"the tensors of item {number} are damaged: remove the item, and add it again")
        return blobs


class StoredImages(EncodedImages):
    """Images of an index.

    Args:
        store: Reads their tensors.
        places: Where they stand in the columns, ascending.
        named: Turns the names of stored tensors into those that the graphs read.
    """

    def __init__(self, store: Store, places: Places, named: Callable[[str], str] = lambda name: name) -> None:
        super().__init__({})
        object.__setattr__(self, "_read", (store, places, named))

    _read: tuple[Store, Places, Callable[[str], str]]

    def __len__(self) -> int:
        return len(self._read[1])

    @property
    def streamed(self) -> bool:
        """True: `take` reads."""
        return True

    @property
    def narrowed(self) -> bool:
        """Whether the tensors must be widened before an engine reads them."""
        store, _, named = self._read
        return any(named(part.name).endswith((".float16", ".int8")) for part in store.layout.parts)

    @property
    def item_bytes(self) -> int:
        """Bytes of one image's largest tensor in float32."""
        return self._read[0].layout.item_bytes(1)

    @cached_property
    def halves(self) -> EncodedImages:
        """The images under the names by which a float16 graph reads them."""
        return StoredImages(*self._read[:2], lambda name: name.removesuffix(".float16"))

    def take(self, indices: Indices) -> Arrays:
        """Read the tensors of the chosen images."""
        store, places, named = self._read
        return {named(name): array for name, array in store.read(places[indices]).items()}

    def select(self, indices: Indices) -> EncodedImages:
        """The chosen images, not read yet."""
        store, places, named = self._read
        return StoredImages(store, places[indices], named)

    def global_parts(self) -> GlobalParts:
        """The vectors for a shortlist, in memory."""
        store, places, _ = self._read
        return list(store.columns.parts), places

    def near(self, queries: NDArray[np.float32], count: int) -> Places | None:
        """Candidates for shortlists; None for all images."""
        store, places, _ = self._read
        return store.near(queries, count, places)


class StoredTexts(EncodedTexts):
    """Texts of an index.

    Args:
        store: Reads their tensors.
        places: Where they stand in the columns, ascending.
    """

    def __init__(self, store: Store, places: Places) -> None:
        per_word = frozenset(part.name for part in store.layout.parts if part.per_word)
        super().__init__({}, store.columns.lengths[places], per_word)
        object.__setattr__(self, "_read", (store, places))

    _read: tuple[Store, Places]

    @property
    def item_bytes(self) -> int:
        """Bytes of the longest text's largest tensor in float32."""
        return self._read[0].layout.item_bytes(int(self.lengths.max()))

    def take(self, indices: Indices) -> Arrays:
        """Read the tensors of the chosen texts, padded to the longest of them."""
        store, places = self._read
        return store.texts(places[indices]).take(slice(None))

    def select(self, indices: Indices) -> EncodedTexts:
        """The chosen texts, not read yet."""
        store, places = self._read
        return StoredTexts(store, places[indices])

    def global_parts(self) -> GlobalParts:
        """The vectors for a shortlist, in memory."""
        store, places = self._read
        return list(store.columns.parts), places

    def near(self, queries: NDArray[np.float32], count: int) -> Places | None:
        """Candidates for shortlists; None for all texts."""
        store, places = self._read
        return store.near(queries, count, places)
