"""Write aside, then rename: nothing half-written is ever left under its final name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(fresh: Path, target: Path, old: Path) -> None:
    if not target.is_dir():
        fresh.replace(target)
        return
    target.rename(old)  # a folder cannot be renamed over a full one
    try:
        fresh.replace(target)
    except OSError:
        old.rename(target)
        raise


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a path in a new folder beside ``target``; rename it to ``target`` on success, drop it on any exception.

    The caller creates a file or a folder at the path it is given. What stood at ``target`` before is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = aside / target.name
        yield fresh
        _replace(fresh, target, aside / "replaced")
    finally:
        _remove(aside)
