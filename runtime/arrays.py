"""Reads .npy files, and .npy members of zip files, that may come from anywhere.

numpy's own reader evaluates the header as a Python expression, which a damaged header makes fail in a dozen ways. This
one accepts only what numpy writes for arrays of numbers: anything else is one error, before any memory is taken.
"""

from __future__ import annotations

import math
import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # by format version
HEADER_LIMIT = 64 << 10
MAX_AXES = 32  # more than numpy 1 has
Order = Literal["C", "F"]
BYTES_LIMIT = 1 << 62  # sizes of arrays fit in the machine's integers
DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}
NAMES = {f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)} | {
    "bool",
    "float16",
    "float32",
    "float64",
}
_NUMBER = r"(?:0|[1-9]\d{0,18})L?"  # Python 2 wrote an L
# No two runs of white space touch, so that a long one is not matched in quadratically many ways.
_ENTRY = re.compile(
    r"""u?(?P<quote>['"])(?P<key>\w{1,20})(?P=quote)\s*:\s*"""
    r"""(?:(?P<order>True|False)|u?(?P<mark>['"])(?P<descr>[<>|=]?\w{1,8})(?P=mark)"""
    rf"""|\(\s*(?P<shape>(?:{_NUMBER}\s*,\s*)*(?:{_NUMBER}\s*)?)\))\s*(?:,\s*)?""",
    re.ASCII,
)
_VALUE_OF = {"descr": "descr", "fortran_order": "order", "shape": "shape"}


@dataclass(frozen=True)
class Header:
    """The checked header of a .npy file.

    Args:
        dtype: Booleans, whole numbers or floats, in either byte order.
        shape: The size of each axis, 0 or more.
        order: "C", or "F" if the first axis varies fastest.
        offset: Where the numbers begin in the file, in bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Order
    offset: int

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def map_array(path: Path, advice: str) -> np.memmap[Any, np.dtype[Any]]:
    """Open a .npy file, memory-mapped and read-only.

    Args:
        path: The file.
        advice: What to do about a broken file, for the message.

    Raises:
        BundleError: The file is missing, truncated, longer than its header says, or not a .npy file of numbers.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe could wait for ever
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            header = read_header(file)
            _check_size(header, found.st_size)
            return np.memmap(file, header.dtype, "r", header.offset, header.shape, header.order)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BundleError(f"{path} cannot be opened as a .npy file ({reason}); {advice}") from None


def read_member(archive: zipfile.ZipFile, name: str, bytes_limit: int) -> NDArray[Any]:
    """Read an array of an .npz file, whose size is checked before it is unpacked.

    Args:
        archive: The open .npz file.
        name: The name of the array.
        bytes_limit: The largest array to read, in bytes.

    Raises:
        ValueError: The array does not have 1 to ``bytes_limit`` bytes of numbers, or not as many as its header says. A
            broken zip file also raises the errors of `zipfile`.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        try:
            header = read_header(file)
            if 0 < header.nbytes <= bytes_limit:
                _check_size(header, member.file_size)
        except ValueError as error:
            raise ValueError(f"{name} is no array of numbers: {error}") from None
        if not 0 < header.nbytes <= bytes_limit:
            raise ValueError(f"{name} has the shape {header.shape}: expected 1 to {bytes_limit} bytes")
        content = file.read(header.nbytes)
    if len(content) != header.nbytes:
        raise ValueError(f"{name} holds {len(content)} bytes of numbers, its header says {header.nbytes}")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order=header.order)


def read_header(file: IO[bytes]) -> Header:
    """Read and check the header of a .npy file; the file is then positioned at its numbers.

    Args:
        file: The file, at its beginning.

    Raises:
        ValueError: This is not the header of an array of numbers.
    """
    start = file.read(len(MAGIC) + 2)
    width = LENGTH_BYTES.get(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or width is None:
        raise ValueError(f"it begins with {start!r}, expected {MAGIC!r} and the version 1.0, 2.0 or 3.0")
    length = int.from_bytes(file.read(width), "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header takes {length} bytes, expected at most {HEADER_LIMIT}")
    header = file.read(length)
    if len(header) != length:
        raise ValueError(f"it ends in its header, after {len(header)} of {length} bytes")
    dtype, shape, order = _parse(header.decode("latin-1"))
    return Header(dtype, shape, order, len(start) + width + length)


def _parse(text: str) -> tuple[np.dtype[Any], tuple[int, ...], Order]:
    whole = text.lstrip(" ").rstrip(" \t\r\n")
    values = _values(whole)
    if values is None:
        raise ValueError(f"its header is {brief(whole)}, expected descr, fortran_order, and a shape of whole numbers")
    descr, sizes = values["descr"], [size.strip().rstrip("L") for size in values["shape"].split(",")]
    order, kind = (descr[0], descr[1:]) if descr[0] in "<>|=" else ("", descr)
    named = not order and kind in NAMES
    if not named and (kind not in DTYPES or (order == "|" and not kind.endswith("1"))):
        raise ValueError(f"it holds data of type {descr!r}, expected numbers")
    shape = tuple(int(size) for size in sizes if size)
    if len(shape) > MAX_AXES or math.prod(max(size, 1) for size in shape) * 8 > BYTES_LIMIT:
        raise ValueError(f"it has the shape {brief(shape)}, which no file can hold")
    return np.dtype(descr), shape, "F" if values["fortran_order"] == "True" else "C"


def _values(text: str) -> dict[str, str] | None:
    """The text of each value of a header; None if it is anything but a dict of the three keys."""
    values: dict[str, str] = {}
    position = 1 + len(text[1:]) - len(text[1:].lstrip(" \t\r\n"))
    while position < len(text) - 1 and (entry := _ENTRY.match(text, position)):
        kind = _VALUE_OF.get(entry["key"])
        if kind is None or entry[kind] is None or entry["key"] in values:
            return None
        values[entry["key"]] = entry[kind]
        position = entry.end()
    whole = text[:1] == "{" and text[-1:] == "}" and position == len(text) - 1
    tuples = values.get("shape", "").strip() == "" or "," in values["shape"]  # (3) is no tuple
    return values if whole and tuples and values.keys() == _VALUE_OF.keys() else None


def _check_size(header: Header, size: int) -> None:
    if header.offset + header.nbytes != size:
        raise ValueError(
            f"{header.dtype} {header.shape} takes {header.nbytes} bytes, the file holds {size - header.offset}"
        )
