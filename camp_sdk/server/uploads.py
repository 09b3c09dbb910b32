"""Changes of an index that clients ask for, and the pictures that are kept of them. Called in the writer's thread."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.index.items import Added
from camp_sdk.index.living import Index
from camp_sdk.picture_files import open_picture
from camp_sdk.pictures import PictureError, check_picture, upright_size
from camp_sdk.results import Skipped
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import write_aside
from camp_sdk.server.corpus import no_item

ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # of formats whose ending is not their name
KEPT = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,8}")
NO_PATH = ("", ".", "..")  # keys that cannot be written in a path


@dataclass(frozen=True)
class Upload:
    """An item that a client adds.

    Args:
        key: Its key.
        content: The bytes of its picture, or its text.
        metadata: Its metadata; None keeps those that the key has.
    """

    key: str
    content: bytes | str
    metadata: Mapping[str, Any] | None = None


class Uploads:
    """Changes an index.

    Args:
        index: The index.
        folder: The folder that keeps pictures; None keeps only what was encoded.
        max_megapixels: Larger pictures are not decoded.
    """

    def __init__(self, index: Index, folder: Path | None, max_megapixels: float) -> None:
        self._index, self._folder, self._max_megapixels = index, folder, max_megapixels

    def add(self, uploads: Sequence[Upload], skip_broken: bool) -> Added:
        """Add items, or replace those with their keys.

        Args:
            uploads: The items.
            skip_broken: Leave out pictures that cannot be read, instead of raising.

        Raises:
            InputError: An item cannot be encoded.
            BusyError: Another process is writing all the time.
            OSError: The disk is full.
        """
        skipped: list[Skipped] = []
        fit = []
        for number, upload in enumerate(uploads):
            try:
                self._check(upload)
                fit.append(upload)
            except PictureError as error:
                if not skip_broken:
                    raise
                skipped.append(Skipped(number, upload.key, str(error).removeprefix(f"{upload.key} ")))
        before = [self._file(upload.key) for upload in fit]
        kept = [self._keep(upload) for upload in fit]
        keys, metadata = ([getattr(upload, name) for upload in fit] for name in ("key", "metadata"))
        try:
            added = self._index.add(kept, keys, metadata, skip_broken=skip_broken, max_megapixels=self._max_megapixels)
        except BaseException:
            self._forget(kept)
            raise
        self._forget([*before, *(kept[one.index] for one in added.skipped)])
        return Added(added.added, added.replaced, added.unchanged, (*skipped, *_named(added, fit)))

    def remove(self, key: str) -> None:
        """Remove an item.

        Raises:
            Problem: There is none.
        """
        file = self._file(key)
        if not self._index.remove([key]):
            raise no_item(key)
        self._forget([file])

    def update(self, key: str, patch: Mapping[str, Any]) -> None:
        """Change metadata by a JSON merge patch.

        Raises:
            Problem: There is no such item.
            InputError: The metadata are not what an index takes.
        """
        item = self._index.get(key)
        if item is None:
            raise no_item(key)
        self._index.update(key, merged(item.metadata, patch))

    def _check(self, upload: Upload) -> None:
        if upload.key in NO_PATH:
            raise InputError(f"the key {upload.key!r} cannot be written in a path: expected another one")
        if (self._index.kind == "text") != isinstance(upload.content, str):
            raise InputError(f"this is an index of {self._index.kind}s: expected {self._index.kind}s")
        if isinstance(upload.content, bytes):
            check_picture(upload.content, upload.key)
            upright_size(upload.content, upload.key, self._max_megapixels)

    def _file(self, key: str) -> Path | None:
        """The picture of an item that is kept here."""
        item = self._index.get(key)
        if self._folder is None or item is None or item.document is None:
            return None
        path = Path(item.document)
        return path if path.parent == self._folder.absolute() and KEPT.fullmatch(path.name) else None

    def _keep(self, upload: Upload) -> bytes | str | Path:
        """What is added: the file that keeps a picture, if there is one."""
        if self._folder is None or isinstance(upload.content, str):
            return upload.content
        name = f"{hashlib.sha256(upload.content).hexdigest()}{_ending(upload.content)}"
        path = self._folder.absolute() / name
        if not path.is_file():
            with write_aside(path) as aside:
                aside.write_bytes(upload.content)
        return path

    def _forget(self, files: Sequence[Any]) -> None:
        """Delete those of some files that no item has any more."""
        for file in dict.fromkeys(files):
            if isinstance(file, Path) and not self._index.holds(file):
                with suppress(OSError):
                    file.unlink(missing_ok=True)


def merged(metadata: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata changed by a JSON merge patch (RFC 7396).

    Args:
        metadata: The metadata.
        patch: The fields that change; None removes one.
    """
    found = {name: value for name, value in metadata.items() if patch.get(name, value) is not None or name not in patch}
    for name, value in patch.items():
        if isinstance(value, Mapping):
            held = found.get(name)
            found[name] = merged(held if isinstance(held, Mapping) else {}, value)
        elif value is not None:
            found[name] = value
    return found


def _ending(picture: bytes) -> str:
    with open_picture(picture) as opened:
        form = opened.format or "bin"
    return ENDINGS.get(form, f".{form.lower()}")


def _named(added: Added, uploads: Sequence[Upload]) -> list[Skipped]:
    return [Skipped(one.index, uploads[one.index].key, one.reason) for one in added.skipped]
