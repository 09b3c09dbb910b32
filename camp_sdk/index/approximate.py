"""An approximate first stage, from a compressed copy of the global vectors, for where memory is short.

The copy, an `Inverted`, finds twice as many candidates as a shortlist takes; their exact vectors, which are read from
the file of vectors, decide.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.index.columns import Columns
from camp_sdk.index.inverted_file import Inverted, read_inverted
from camp_sdk.index.schema import State
from camp_sdk.index.vector_file import Ints, Vectors
from camp_sdk.runtime.forks import watch_forks

Places = NDArray[np.intp]

PROBES = 128  # lists searched for a query, if all items may be found
WIDER = 2  # candidates for each item of a shortlist
FEW_ITEMS = 10_000  # that meet a condition: they are searched exactly, in milliseconds
MANY_QUERIES = 16  # at once, for which one pass over all vectors costs less


class Approximate:
    """The inverted file of an index.

    Args:
        inverted: The inverted file.
    """

    def __init__(self, inverted: Inverted) -> None:
        self._faiss, self._lists, self._positions = inverted.faiss, inverted.lists, inverted.positions
        self._fitted: _Fitted | None = None

    def near(self, queries: Vectors, count: int, columns: Columns, places: Places) -> Places | None:
        """Choose candidates for shortlists.

        Args:
            queries: Query vectors [Q, d].
            count: The number of items that each shortlist takes.
            columns: The items of the index.
            places: Where those that may be chosen stand in the columns, ascending.

        Returns:
            Places of candidates for all queries, ascending; None if all of ``places`` should be compared.
        """
        if len(places) <= max(FEW_ITEMS, WIDER * count) or len(queries) > MANY_QUERIES:
            return None
        fitted = self._fit(columns)
        allowed = fitted.allowed(places)  # [n]
        share = np.count_nonzero(allowed) / len(allowed)
        found = [fitted.newer(places)]
        for query in queries:
            some = self._search(query, WIDER * count, allowed, share)
            if len(some) < count:  # these lists hold too few that may be chosen
                return None
            found.append(fitted.places[some])
        return np.unique(np.concatenate(found))

    def _search(self, query: Vectors, count: int, allowed: NDArray[np.bool_], share: float) -> NDArray[np.int64]:
        faiss = self._faiss
        bits = np.packbits(allowed, bitorder="little")
        selector = None if share == 1 else faiss.IDSelectorBitmap(bits)
        probes = min(self._lists.nlist, int(np.ceil(PROBES / max(share, 1e-6))))
        options = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        # One query at a time: faiss then starts no threads, which a fork would lose.
        _, found = self._lists.search(np.ascontiguousarray(query[None]), count, params=options)
        some = found[0]
        return np.asarray(some[some >= 0])

    def _fit(self, columns: Columns) -> _Fitted:
        fitted = self._fitted
        if fitted is None or fitted.columns is not columns:
            fitted = self._fitted = _fit(self._positions, columns)
        return fitted


class ApproximateCache:
    """Keeps the inverted file of an index; threads share it.

    Args:
        path: The file, which another process may replace at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._read: tuple[tuple[Any, ...], Approximate | None] | None = None
        watch_forks(self)

    def at(self, state: State, width: int) -> Approximate | None:
        """The inverted file that fits a state; None if there is none.

        Args:
            state: The state.
            width: The size of a global vector.
        """
        with self._lock:
            source = (*_stamp(self._path), state.name, state.generation)
            if self._read is None or self._read[0] != source:
                inverted = read_inverted(self._path, state, width)
                self._read = source, None if inverted is None else Approximate(inverted)
            return self._read[1]

    def forked(self) -> None:
        """Begin with a lock of this process."""
        self._lock = threading.Lock()


def _stamp(path: Path) -> tuple[int, ...]:
    """What distinguishes a file from the one that takes its place."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class _Fitted:
    """Where the items of an inverted file stand in the columns of one state.

    Args:
        columns: The columns.
        places: The place of each item [n]; any for those removed.
        there: Which items are in the columns [n].
        end: The first place of the items that are newer than the inverted file.
    """

    columns: Columns
    places: Places
    there: NDArray[np.bool_]
    end: int

    def allowed(self, places: Places) -> NDArray[np.bool_]:
        """Which items of the inverted file are among these."""
        chosen = np.zeros(len(self.columns.positions), np.bool_)
        chosen[places] = True
        found: NDArray[np.bool_] = chosen[self.places] & self.there
        return found

    def newer(self, places: Places) -> Places:
        """Those of some places that the inverted file does not have."""
        return places[np.searchsorted(places, self.end) :]


def _fit(positions: Ints, columns: Columns) -> _Fitted:
    own = columns.positions
    end = int(np.searchsorted(own, positions[-1], "right"))
    if end == len(positions) and (own[:end] == positions).all():
        return _Fitted(columns, np.arange(end), np.ones(end, np.bool_), end)
    places = np.searchsorted(own, positions).clip(max=max(0, len(own) - 1))
    there = own[places] == positions if len(own) else np.zeros(len(positions), np.bool_)
    return _Fitted(columns, places, there, end)
