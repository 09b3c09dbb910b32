"""The derived file beside an index: what is kept of all items, memory-mapped. It can be made again at any time.

It holds a header of 4096 bytes (what it was made of, and check sums), the positions of the items, ascending, their
numbers, and their lengths, int64 [n] each, and the global vectors, float32 [n, d].
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.files import forget_pages, write_aside

MAGIC = b"camp-sdk vectors"
HEADER = struct.Struct("<16sI32sQQQQQIIII")  # and the check sum of these, 4 bytes
HEADER_BYTES = 4096
FORMAT_VERSION = 1
CHECK_ROWS = 4096  # read at a time
REMAINS_S = 3600  # far longer than writing a file takes

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
Rows = tuple[Ints, Ints, Ints, Vectors]  # positions, numbers, lengths, vectors


@dataclass(frozen=True)
class Origin:
    """What a file was made of.

    Args:
        name: The random name of the index.
        generation: Its generation.
        epoch: Its epoch.
        version: Its version.
        count: The number of items n.
        width: The size d of a vector.
    """

    name: bytes
    generation: int
    epoch: int
    version: int
    count: int
    width: int


@dataclass(frozen=True)
class Mapped:
    """The content of a file."""

    origin: Origin
    positions: Ints
    numbers: Ints
    lengths: Ints
    vectors: Vectors


def write_vectors(path: Path, origin: Origin, rows: Iterable[Rows]) -> None:
    """Write a file, completely or not at all.

    Args:
        path: The file.
        origin: What it is made of.
        rows: The items, in parts.

    Raises:
        OSError: It cannot be written.
        ValueError: There are not as many rows as the origin says.
    """
    _clear_remains(path)
    places = _places(origin)
    sums, done = [0, 0, 0, 0], 0
    with write_aside(path) as aside, aside.open("wb") as file:
        for part in rows:
            for k, array in enumerate(part):
                content = np.ascontiguousarray(array).tobytes()
                sums[k] = zlib.crc32(content, sums[k])
                file.seek(places[k] + done * (len(content) // max(1, len(part[0]))))
                file.write(content)
            done += len(part[0])
        if done != origin.count:
            raise ValueError(f"{done} rows, expected {origin.count}")
        file.truncate(places[4])
        file.seek(0)
        file.write(_header(origin, sums))


def _clear_remains(path: Path) -> None:
    """Delete what processes that were killed long ago left of this file."""
    for folder in path.parent.glob(f"{glob.escape(f'.{path.name}.')}????????"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > REMAINS_S:
                shutil.rmtree(folder)


def read_vectors(path: Path) -> Mapped | None:
    """Map a file into memory; None if there is none, or it is damaged.

    Args:
        path: The file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return _read(file)
    except (OSError, ValueError):
        return None


def _read(file: IO[bytes]) -> Mapped | None:
    header = file.read(HEADER.size + 4)
    if len(header) < HEADER.size + 4 or zlib.crc32(header[:-4]) != int.from_bytes(header[-4:], "little"):
        return None
    magic, version, *fields = HEADER.unpack(header[:-4])
    origin, sums = Origin(*fields[:6]), fields[6:]
    places = _places(origin)
    if magic != MAGIC or version != FORMAT_VERSION or os.fstat(file.fileno()).st_size != places[4] or not origin.count:
        return None
    columns = [np.memmap(file, "<i8", "r", place, (origin.count,)) for place in places[:3]]
    vectors = _map_vectors(file, places[3], origin)
    for array, expected in zip((*columns, vectors), sums, strict=True):
        if _sum_of(array) != expected:
            return None
    positions, numbers, lengths = map(np.array, columns)
    whole = (np.diff(positions) > 0).all() and positions[0] > 0 and 0 < numbers.min() <= numbers.max() <= positions[-1]
    return Mapped(origin, positions, numbers, lengths, vectors) if whole and lengths.min() >= 0 else None


def _map_vectors(file: IO[bytes], place: int, origin: Origin) -> Vectors:
    shape = (origin.count, origin.width)
    return np.memmap(file, "<f4", "r", place, shape) if origin.width else np.empty(shape, np.float32)


def _sum_of(array: NDArray[Any]) -> int:
    found = 0
    for start in range(0, len(array), CHECK_ROWS):
        found = zlib.crc32(np.ascontiguousarray(array[start : start + CHECK_ROWS]).data.cast("B"), found)
    forget_pages(array)
    return found


def _header(origin: Origin, sums: list[int]) -> bytes:
    packed = HEADER.pack(MAGIC, FORMAT_VERSION, *astuple(origin), *sums)
    return packed + zlib.crc32(packed).to_bytes(4, "little")


def _places(origin: Origin) -> tuple[int, ...]:
    """Where positions, numbers, lengths and vectors begin, and where the file ends."""
    first, n = HEADER_BYTES, origin.count
    return first, first + 8 * n, first + 16 * n, first + 24 * n, first + 24 * n + 4 * n * origin.width
