"""Pictures of items for clients: scaled down, upright and without metadata, kept in memory up to a limit."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from pathlib import Path

from camp_sdk.pictures import PictureError, read_shrunk
from camp_sdk.server.problems import Problem

SIZES = {"thumbnail": 256, "picture": 2048}  # the most pixels a side
QUALITY = {"thumbnail": 82, "picture": 88}
CACHE_BYTES = 64 << 20
NO_PICTURE = "this item has no picture here"


class Thumbnails:
    """Makes and keeps JPEGs of pictures.

    Args:
        max_megapixels: Larger pictures are not decoded.
        cache_bytes: The most memory that kept ones take.
    """

    def __init__(self, max_megapixels: float, cache_bytes: int = CACHE_BYTES) -> None:
        self._max_megapixels, self._cache_bytes = max_megapixels, cache_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def tag(self, file: Path, form: str) -> str:
        """What distinguishes a picture from others, and from itself when its file has changed: its ``ETag``.

        Args:
            file: The file.
            form: "thumbnail" or "picture".

        Raises:
            Problem: The file is gone: status 404.
        """
        try:
            found = file.stat()
        except OSError:
            raise Problem(404, NO_PICTURE) from None
        known = f"{form} {file} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
        return hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def jpeg(self, file: Path, form: str, tag: str) -> bytes:
        """A picture as a JPEG.

        Args:
            file: The file.
            form: "thumbnail" or "picture".
            tag: Its tag.

        Raises:
            Problem: The file is gone, or no picture: status 404.
        """
        with self._lock:
            kept = self._kept.get(tag)
            if kept is not None:
                self._kept.move_to_end(tag)
                return kept
        made = self._made(file, form)
        self._keep(tag, made)
        return made

    def _made(self, file: Path, form: str) -> bytes:
        from PIL import Image

        try:
            pixels = read_shrunk(file, SIZES[form], "the picture", self._max_megapixels)
        except PictureError:
            raise Problem(404, NO_PICTURE) from None
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY[form], optimize=True)
        return stream.getvalue()

    def _keep(self, tag: str, made: bytes) -> None:
        with self._lock:
            if tag in self._kept or len(made) > self._cache_bytes:
                return
            self._kept[tag] = made
            self._bytes += len(made)
            while self._bytes > self._cache_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])
