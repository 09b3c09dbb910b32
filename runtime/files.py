"""Write aside, then rename: nothing half-written is ever left under its final name. Read mapped, and let go."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def holds_only(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder holds none but the named files (paths relative to it): what may be replaced without a loss."""
    found = (
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    return set(found) <= set(names)


def _replace(fresh: Path, target: Path, old: Path) -> None:
    if not target.is_dir() or not fresh.is_dir():
        fresh.replace(target)  # a file does not replace a folder: that is an IsADirectoryError
        return
    try:
        target.rename(old)  # a folder cannot be renamed over a full one
        fresh.replace(target)
    except BaseException:  # an interrupt between the two renames must not lose the old one
        if old.exists() and not target.exists():
            old.rename(target)
        raise


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a path in a new folder beside ``target``; rename it to ``target`` on success, drop it on any exception.

    The caller creates a file or a folder at the path it is given. What stood at ``target`` before is replaced.
    """
    target = target.absolute()
    if target.name in ("", ".."):
        target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = aside / target.name
        yield fresh
        _replace(fresh, target, aside / "replaced")
    finally:
        _remove(aside)


def forget_pages(array: Any) -> None:
    """Tell the system that what was read of a memory-mapped array need not stay: a walk over a file of 9 GB would
    otherwise count as 9 GB of this process. What is read again comes from the system's cache. Other arrays are left alone.
    """
    mapped: Any = getattr(array, "_mmap", None)
    # Only of read-only maps: of a copy-on-write map this would drop the changes.
    if isinstance(array, np.memmap) and array.mode == "r" and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def cache_folder() -> Path:
    """The user's own folder for what can be made again: not in a bundle, which may come from anywhere.

    Raises OSError for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camp-sdk"
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no folder for caches: {error}") from None
