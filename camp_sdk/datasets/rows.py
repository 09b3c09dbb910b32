"""Writes .npy files row by row, when nobody knows beforehand how many rows there will be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128


class RowWriter:
    """A .npy file of float32 that grows by rows. It is whole once it is closed.

    Args:
        path: The file.
        row: The shape of a row.

    Attributes:
        count: The number of rows so far.
    """

    def __init__(self, path: Path, row: tuple[int, ...]) -> None:
        self._row, self.count = row, 0
        self._file = path.open("wb")
        self._file.write(self._header())

    def append(self, row: NDArray[np.floating[Any]]) -> None:
        """Write one row, of the shape that all rows have."""
        assert row.shape == self._row
        self._file.write(row.astype("<f4").tobytes())
        self.count += 1

    def close(self) -> None:
        """Write the number of rows into the header."""
        with self._file:
            self._file.seek(0)
            self._file.write(self._header())

    def _header(self) -> bytes:
        shape = (self.count, *self._row)
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
        return start + text.ljust(HEADER_BYTES - len(start) - 1) + b"\n"
