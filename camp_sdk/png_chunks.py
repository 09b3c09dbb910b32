"""PNG files without their metadata: Pillow refuses a picture for the size of its colour profile or its texts."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IEND")  # with IDAT, all that the first picture of a PNG is made of
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION_TEXTS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")  # their names
MAX_NEEDED_BYTES = 768  # a palette of 256 colours
MAX_KEPT_BYTES = 1 << 20  # as much as Pillow unpacks of one text; the orientation takes less than a kilobyte
REFUSED = re.compile("too large|too much memory", re.IGNORECASE)  # the wording depends on Pillow's version


class _Part(NamedTuple):
    file: BinaryIO
    start: int
    length: int


class _Joined(io.RawIOBase):
    """Parts of files, read one after the other as if they were one file."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        length = sum(part.length for part in self._parts)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: length}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        at = self._at
        for file, start, length in self._parts:
            if at < length:
                file.seek(start + at)
                data = file.read(min(len(buffer), length - at))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            at -= length
        return 0


def is_metadata_limit(error: Exception) -> bool:
    """Whether Pillow refused a PNG only because a colour profile or a text in it is large."""
    return type(error) is ValueError and REFUSED.search(str(error)) is not None


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """The same PNG without its colour profile, its texts and its further frames, read from the same file.

    What holds the orientation is kept if it is small. The pixels are not copied, so that this takes no memory to speak
    of, whatever the file says.

    Args:
        file: The PNG, from its start. It is read as long as the result is read.

    Returns:
        The PNG from its start, or None if the file is not a PNG.

    Raises:
        ValueError: A chunk that is needed has a size that it cannot have.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    before, after = bytearray(SIGNATURE), bytearray()
    at, pixels, pixels_end = len(SIGNATURE), 0, 0
    seen: set[bytes] = set()
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        end = at + 12 + length
        if kind == b"IDAT" and (not pixels or at == pixels_end):
            pixels, pixels_end = pixels or at, end
        elif kind in (*NEEDED, *TEXTS, b"eXIf"):
            chunk = _kept(file, kind, length, seen)
            (after if pixels else before).extend(header + chunk if chunk else b"")
        if kind == b"IEND":
            break
        at = file.seek(end)
    parts = [_held(before), _Part(file, pixels, pixels_end - pixels), _held(after)]
    return io.BufferedReader(_Joined(parts), 1 << 16)


def _held(data: bytearray) -> _Part:
    return _Part(io.BytesIO(data), 0, len(data))


def _kept(file: BinaryIO, kind: bytes, length: int, seen: set[bytes]) -> bytes:
    """The body and checksum of a chunk that is kept, otherwise nothing.

    Only the first chunk of each name is kept or unpacked, so that no file can ask for more than a few megabytes.
    """
    if length > (MAX_NEEDED_BYTES if kind in NEEDED else MAX_KEPT_BYTES):
        if kind in NEEDED:
            raise ValueError(f"its chunk {kind.decode()} has {length} bytes: expected at most {MAX_NEEDED_BYTES}")
        return b""
    chunk = file.read(length + 4)
    name = chunk.partition(b"\0")[0] if kind in TEXTS else kind
    if name in seen or (kind in TEXTS and name not in ORIENTATION_TEXTS):
        return b""
    seen.add(name)
    return chunk if kind not in TEXTS or _text_bytes(kind, chunk[:length]) <= _most_unpacked() else b""


def _most_unpacked() -> int:
    from PIL import PngImagePlugin

    return min(MAX_KEPT_BYTES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY // len(ORIENTATION_TEXTS))


def _text_bytes(kind: bytes, body: bytes) -> int:
    """The size of a text when it is unpacked, or more than may be kept."""
    _, _, rest = body.partition(b"\0")
    if kind == b"tEXt":
        return len(rest)
    packed = rest[1:]
    if kind == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1]
        if rest[:1] == b"\0":
            return len(packed)
    unpacker = zlib.decompressobj()
    try:
        size = len(unpacker.decompress(packed, MAX_KEPT_BYTES))
    except zlib.error:
        return MAX_KEPT_BYTES + 1
    return MAX_KEPT_BYTES + 1 if unpacker.unconsumed_tail else size
