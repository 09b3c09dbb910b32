"""The inverted file beside an index: a compressed copy of its global vectors, made and searched by faiss (IVF, SQ8).

A vector takes a byte for each of its numbers. The file is an .npz of arrays, from which faiss's structures are built:
faiss's own files are not made for reading what may come from anywhere.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.index.columns import Columns
from camp_sdk.index.schema import State
from camp_sdk.index.vector_file import Ints
from camp_sdk.runtime.arrays import read_member
from camp_sdk.runtime.blocks import batches
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.nearest import rows_of

ENDING = "ann"  # of the file's name
MIN_ITEMS = 1000
TRAINED = 40  # vectors for each list, one more than faiss asks for
ADDED_ROWS = 1 << 15  # at a time
MEMBER_BYTES = 64 << 20  # of codes, in one array of the file


@dataclass(frozen=True)
class Inverted:
    """An inverted file.

    Args:
        faiss: The module.
        lists: The `IndexIVFScalarQuantizer`; the number of an item is its place in ``positions``.
        positions: The positions of its items [n], ascending.
    """

    faiss: Any
    lists: Any
    positions: Ints


def write_inverted(path: Path, columns: Columns, on_progress: Advance) -> None:
    """Make the inverted file of an index.

    Args:
        path: The file to write, completely or not at all.
        columns: The items.
        on_progress: Receives the number of items in each part that was compressed.

    Raises:
        InputError: The index has too few items, or no global vectors.
        OSError: The file cannot be written.
    """
    places = columns.places
    width = columns.parts[0].shape[1]
    if len(places) < MIN_ITEMS or not width:
        raise InputError(
            f"the index has {len(places)} items with vectors of {width} numbers: an approximate search is for "
            f"{MIN_ITEMS} items or more, with global vectors"
        )
    faiss = import_faiss()
    count = _number_of_lists(len(places))
    lists = _empty(faiss, width, count)
    sample = np.random.default_rng(0).choice(len(places), min(len(places), TRAINED * count), replace=False)
    lists.train(rows_of(columns.parts, places[np.sort(sample)]))
    for numbers in batches(np.arange(len(places)), ADDED_ROWS):
        lists.add_with_ids(rows_of(columns.parts, places[numbers]), numbers)
        on_progress(len(numbers))
    _write(faiss, path, lists, columns)


def read_inverted(path: Path, state: State, width: int) -> Inverted | None:
    """Read the inverted file of an index; None if there is none, or it is damaged or of another state.

    Args:
        path: The file.
        state: The state of the index.
        width: The size of a global vector.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    faiss = import_faiss()
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                return None
            return _read(faiss, archive, _origin(state, width), os.fstat(file.fileno()).st_size)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return None  # RuntimeError: an encrypted member


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", "ann") from None
    return faiss


def _number_of_lists(items: int) -> int:
    """About four times the square root of the number of items, but no more than can be trained: a power of two."""
    return 1 << int(np.log2(max(1, min(4 * np.sqrt(items) * np.sqrt(2), items / TRAINED))))


def _empty(faiss: Any, width: int, count: int) -> Any:
    quantizer = faiss.IndexFlatIP(width)
    kind = faiss.ScalarQuantizer.QT_8bit
    return faiss.IndexIVFScalarQuantizer(quantizer, width, count, kind, faiss.METRIC_INNER_PRODUCT)


def _origin(state: State, width: int) -> NDArray[np.uint8]:
    return np.frombuffer(f"camp-sdk ann 1 {state.name} {state.generation} {width}".encode(), np.uint8)


def _write(faiss: Any, path: Path, lists: Any, columns: Columns) -> None:
    sizes = [lists.invlists.list_size(number) for number in range(lists.nlist)]
    arrays = {
        "origin": _origin(columns.state, lists.d),
        "positions": columns.positions[columns.places],
        "centres": lists.quantizer.reconstruct_n(0, lists.nlist),
        "ranges": faiss.vector_to_array(lists.sq.trained),
        "sizes": np.array(sizes, np.int64),
    }
    with write_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, array in (*arrays.items(), *_members(faiss, lists, sizes)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _members(faiss: Any, lists: Any, sizes: list[int]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The numbers and codes of all lists, several lists in an array."""
    inverted, width = lists.invlists, lists.code_size
    for part, chosen in enumerate(_parts(sizes, width)):
        ids = [faiss.rev_swig_ptr(inverted.get_ids(n), sizes[n]) for n in chosen if sizes[n]]
        codes = [faiss.rev_swig_ptr(inverted.get_codes(n), sizes[n] * width) for n in chosen if sizes[n]]
        yield f"numbers{part}", np.concatenate(ids)
        yield f"codes{part}", np.concatenate(codes).reshape(-1, width)


def _parts(sizes: list[int], width: int) -> Iterator[list[int]]:
    """The lists whose codes share an array, of lists that are not all empty."""
    chosen: list[int] = []
    taken = 0
    for number, size in enumerate(sizes):
        if taken and (taken + size) * width > MEMBER_BYTES:
            yield chosen
            chosen, taken = [], 0
        chosen.append(number)
        taken += size
    if taken:
        yield chosen


def _read(faiss: Any, archive: zipfile.ZipFile, origin: NDArray[np.uint8], limit: int) -> Inverted | None:
    def member(name: str, dtype: str, *shape: int) -> NDArray[Any]:
        array = read_member(archive, name, limit)
        if array.dtype != np.dtype(dtype) or (shape and array.shape != shape) or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        return array

    if not np.array_equal(member("origin", "u1"), origin):
        return None
    positions, centres, sizes = member("positions", "<i8"), member("centres", "<f4"), member("sizes", "<i8")
    if positions.ndim != 1 or centres.ndim != 2 or sizes.shape != centres.shape[:1]:
        raise ValueError("its arrays do not fit together")
    if not (np.diff(positions) > 0).all() or sizes.min() < 0 or sum(sizes.tolist()) != len(positions):
        raise ValueError("its lists do not hold its items")
    width = centres.shape[1]
    lists = _empty(faiss, width, len(centres))
    lists.quantizer.add(centres)
    faiss.copy_array_to_vector(member("ranges", "<f4", 2 * width), lists.sq.trained)
    lists.is_trained = True
    for part, chosen in enumerate(_parts(sizes.tolist(), lists.code_size)):
        total = sum(sizes[chosen].tolist())
        numbers, codes = member(f"numbers{part}", "<i8", total), member(f"codes{part}", "u1", total, width)
        if numbers.min() < 0 or numbers.max() >= len(positions):
            raise ValueError("its lists hold items that there are not")
        _fill(faiss, lists, chosen, sizes, numbers, codes)
    lists.ntotal = len(positions)
    return Inverted(faiss, lists, positions)


def _fill(faiss: Any, lists: Any, chosen: list[int], sizes: Ints, numbers: Ints, codes: NDArray[np.uint8]) -> None:
    start = 0
    for number in chosen:
        rows = slice(start, start + int(sizes[number]))
        ids, values = np.ascontiguousarray(numbers[rows]), np.ascontiguousarray(codes[rows])
        if len(ids):
            lists.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(values))
        start = rows.stop
