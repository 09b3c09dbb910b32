"""The derived file beside an index: ids, lengths and global vectors, memory-mapped. It can be made again at any time.

header, 4096 bytes    what it was made of, and check sums
ids                   int64 [n], ascending
lengths               int64 [n]
vectors               float32 [n, d]
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.files import forget_pages, write_aside

MAGIC = b"camp-sdk vectors"
HEADER = struct.Struct("<16sI32sQQQQQIII")  # and the check sum of these, 4 bytes
HEADER_BYTES = 4096
FORMAT_VERSION = 1
CHECK_ROWS = 4096  # read at a time

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


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
    ids: Ids
    lengths: Ids
    vectors: Vectors


def write_vectors(path: Path, origin: Origin, rows: Iterable[tuple[Ids, Ids, Vectors]]) -> None:
    """Write a file, completely or not at all.

    Args:
        path: The file.
        origin: What it is made of.
        rows: The ids, lengths and vectors of the items, in parts.

    Raises:
        OSError: It cannot be written.
        ValueError: There are not as many rows as the origin says.
    """
    places = _places(origin)
    sums, done = [0, 0, 0], 0
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
        file.truncate(places[3])
        file.seek(0)
        file.write(_header(origin, sums))


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
    if magic != MAGIC or version != FORMAT_VERSION or os.fstat(file.fileno()).st_size != places[3] or not origin.count:
        return None
    shapes: list[tuple[Any, Any]] = [("<i8", (origin.count,)), ("<i8", (origin.count,))]
    ids, lengths = (np.memmap(file, dtype, "r", places[k], shape) for k, (dtype, shape) in enumerate(shapes))
    vectors = _map_vectors(file, places[2], origin)
    for array, expected in zip((ids, lengths, vectors), sums, strict=True):
        if _sum_of(array) != expected:
            return None
    if (np.diff(ids) <= 0).any() or (lengths < 0).any():
        return None
    return Mapped(origin, np.array(ids), np.array(lengths), vectors)


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


def _places(origin: Origin) -> tuple[int, int, int, int]:
    """Where ids, lengths and vectors begin, and where the file ends."""
    first, n = HEADER_BYTES, origin.count
    return first, first + 8 * n, first + 16 * n, first + 16 * n + 4 * n * origin.width
