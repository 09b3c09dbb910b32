"""Where the pictures of a data set lie, and which of them a line of its metadata may name.

Without a ``dataset.json``, the pictures of a split lie in the folder of the split, and stay in it when every link is
resolved. With one, they lie below the root that it declares: names stay below the root as they are written, and links
below the root are followed, because whoever declares a root has the pictures there in whatever way they are stored.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

DATASET_FILE = "dataset.json"
VERSION = 1
MAX_BYTES = 64 << 10
EXPECTED = f'expected {{"version": {VERSION}, "root": "the folder of the pictures"}}'


class MissingPictureError(BundleError):
    """A picture that a line names, but that is not there or is not a file."""


class PictureRoot:
    """The folder that the pictures of a split lie in, and the rule for their names.

    A name costs one call of the system, not one for each folder above it.

    Args:
        folder: The folder.
        declared: Whether a ``dataset.json`` declares it, so that links below it are followed wherever they lead.
    """

    def __init__(self, folder: Path, declared: bool = False) -> None:
        self.folder, self._declared = folder, declared
        self._resolved = folder.resolve()
        self._inside: dict[str, bool] = {"": True}  # by folder below this one

    def path_of(self, name: str, where: str) -> Path:
        """The path of a picture.

        Args:
            name: Its path relative to the folder.
            where: The file and line that name it, for messages.

        Raises:
            MissingPictureError: It is not there, or is not a file.
            BundleError: The name leads out of the folder, or cannot be a path.
        """
        path = self.folder / name
        try:
            inside, there = self._look(name, path)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
            raise BundleError(f"{where}: file_name {brief(name)} cannot be a path ({_reason(error)})") from None
        if not inside:
            raise BundleError(f"{where}: file_name {brief(name)} is outside the folder {self.folder}")
        if not there:
            raise MissingPictureError(f"{where}: {path} is missing")
        return path

    def _look(self, name: str, path: Path) -> tuple[bool, bool]:
        """Whether a picture is inside the folder, and whether it is a file."""
        above, own = os.path.split(name)
        if above not in self._inside:
            self._inside[above] = self._is_inside(above)
        if not self._inside[above] or own == os.pardir:
            return False, False
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                inside = self._declared or path.resolve().is_relative_to(self._resolved)
                return inside, inside and stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return True, False
        return True, stat.S_ISREG(mode)

    def _is_inside(self, above: str) -> bool:
        if self._declared:
            return not Path(above).is_absolute() and os.pardir not in Path(above).parts
        return (self.folder / above).resolve().is_relative_to(self._resolved)


def _reason(error: Exception) -> str:
    """Why a path cannot be looked at; not the path again, which may be as long as a file."""
    return str(getattr(error, "strerror", None) or error)


def picture_root(data: Path, split: Path) -> PictureRoot:
    """Where the pictures of a split lie.

    Args:
        data: The folder of the data set, which may hold a ``dataset.json``.
        split: The folder of the split.

    Raises:
        BundleError: The ``dataset.json`` is broken, or the root that it declares is not a folder.
    """
    root = declared_root(data)
    return PictureRoot(split) if root is None else PictureRoot(root, declared=True)


def declared_root(data: Path) -> Path | None:
    """The root that a data set declares, with all links resolved; None without a ``dataset.json``.

    Args:
        data: The folder of the data set.

    Raises:
        BundleError: The ``dataset.json`` is broken, or the root that it declares is not a folder.
    """
    file = data / DATASET_FILE
    if not os.path.lexists(file):
        return None
    declared = _read(file)
    try:
        root = (data / declared).resolve()
        found = root.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{file}: root {brief(declared)} cannot be a path ({_reason(error)})") from None
    if not found:
        raise BundleError(
            f"{file}: root {brief(declared)} is not a folder (it is relative to {data}): move the pictures there, or "
            "write where they are"
        )
    return root


def _read(file: Path) -> str:
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            raise BundleError(f"{file} is not a file of at most {MAX_BYTES} bytes: {EXPECTED}")
        raw: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror or error}): {EXPECTED}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({error}): {EXPECTED}") from None
    if not isinstance(raw, dict) or raw.keys() != {"version", "root"}:
        keys = sorted(raw) if isinstance(raw, dict) else raw
        raise BundleError(f"{file} holds {brief(keys)}: {EXPECTED}")
    if type(raw["version"]) is not int or raw["version"] != VERSION:
        raise BundleError(f"{file} has version {brief(raw['version'])}: {EXPECTED}; a newer one needs a newer camp-sdk")
    if not isinstance(raw["root"], str) or not raw["root"]:
        raise BundleError(f"{file} has root {brief(raw['root'])}: {EXPECTED}")
    return raw["root"]


def write_root(data: Path, root: str) -> None:
    """Write the ``dataset.json`` of a data set.

    Args:
        data: The folder of the data set.
        root: The folder of its pictures, relative to ``data`` or absolute.
    """
    text = json.dumps({"version": VERSION, "root": root}, ensure_ascii=False, indent=2)
    (data / DATASET_FILE).write_text(f"{text}\n", encoding="utf-8")


def root_text(images: Path, output: Path) -> str:
    """How a ``dataset.json`` names the folder of the pictures, given as the caller names it.

    A relative path stays relative, so that the data set and its pictures can move together, and names nothing of the
    machine. An absolute path stays absolute.

    Args:
        images: The folder of the pictures.
        output: The folder of the data set; it need not exist.
    """
    if images.is_absolute():
        return str(images)
    # The parts above are resolved, because the ".." of the text is followed on disk; a link of the last part is kept.
    own = images.resolve() if images.name in ("", os.pardir) else images.parent.resolve() / images.name
    return os.path.relpath(own, output.resolve())
