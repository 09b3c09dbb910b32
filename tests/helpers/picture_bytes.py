"""Picture files written byte by byte from known numbers, as the formats' specifications say, without Pillow."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from numpy.typing import NDArray

Numbers = NDArray[Any]  # [H, W, channels]
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed_rows(numbers: Numbers, bits: int, order: str = ">", multiple: int = 1) -> list[bytes]:
    """Each row of numbers as bytes, padded with zeros to a multiple of bytes."""
    rows = []
    for row in numbers.reshape(len(numbers), -1):
        if bits in (1, 2, 4, 12):
            digits = "".join(f"{int(number):0{bits}b}" for number in row)
            digits += "0" * (-len(digits) % 8)
            data = int(digits, 2).to_bytes(len(digits) // 8, "big")
        else:
            data = row.astype(f"{order}{row.dtype.kind}{bits // 8}").tobytes()
        rows.append(data + bytes(-len(data) % multiple))
    return rows


def png(
    numbers: Numbers, bits: int, colour_type: int, before: bytes = b"", after: bytes = b"", interlaced: bool = False
) -> bytes:
    """A PNG without filters, with other chunks before and after its pixels."""
    height, width, _ = numbers.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    reduced = [numbers[top::down, left::across] for left, top, across, down in passes]
    rows = [b"\0" + row for part in reduced if part.size for row in packed_rows(part, bits)]
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


# Left, top, and the distances of columns and rows, of each pass.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def tiff(
    numbers: Numbers,
    bits: int,
    photometric: int,
    order: str = "<",
    tags: dict[int, tuple[int, ...]] | None = None,
    deflated: bool = False,
) -> bytes:
    """A TIFF of one strip; further tags hold numbers of 16 bits."""
    height, width, channels = numbers.shape
    strip = b"".join(packed_rows(numbers, bits, order))
    strip = zlib.compress(strip) if deflated else strip
    entries = {
        256: (width,),
        257: (height,),
        258: (bits,) * channels,
        259: (8 if deflated else 1,),
        262: (photometric,),
        273: (8,),
        277: (channels,),
        278: (height,),
        279: (len(strip),),
    } | (tags or {})
    at = 8 + len(strip) + len(strip) % 2
    directory, beyond = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        kind = "I" if tag in (256, 257, 273, 278, 279) else "H"
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > 4:
            place = at + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += data
            data = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, 4 if kind == "I" else 3, len(values)) + data.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at)
    return start + strip.ljust(at - 8, b"\0") + directory + bytes(4) + beyond


def bmp(numbers: Numbers, bits: int, palette: Numbers | None = None, masks: tuple[int, ...] = ()) -> bytes:
    """A BMP, which stores the last row first, and blue before green before red."""
    height, width, _ = numbers.shape
    colours = b"" if palette is None else b"".join(bytes([*colour[::-1], 0]) for colour in palette.tolist())
    table = struct.pack(f"<{len(masks)}I", *masks) + colours
    rows = packed_rows(numbers[::-1], 8 if bits >= 24 else bits, "<", 4)
    body = b"".join(rows)
    start = 14 + 40 + len(table)
    used = 0 if palette is None else len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 3 if masks else 0, len(body), 0, 0, used, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + table + body
