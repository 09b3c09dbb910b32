"""Files on disk: atomic writes, files held open, hashes, memory-mapped reads and the cache folder.

Outputs are written to a temporary folder and then renamed, so that an incomplete file never has its final name.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from camp_sdk.runtime.errors import BundleError

CHUNK_BYTES = 1 << 20
MAX_OPENINGS = 100  # attempts to open a folder that is being replaced
Opened = TypeVar("Opened")
REMAINS = re.compile(r"\..+\.[a-z0-9_]{8}")  # the folders of `write_aside`, as tempfile names them


class HeldFile:
    """A file held open: reads return its content even if another file has taken its name since.

    The file is closed when this object is garbage-collected. A forked process may go on reading.

    Args:
        path: the file; nothing may change it in place.

    Attributes:
        path: where the file was when it was opened.
        nbytes: its size.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor, found = _opened(path)
        self._identity, self.nbytes = (found.st_dev, found.st_ino), found.st_size
        weakref.finalize(self, _close, self._descriptor, self._identity)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content at the first use of this property, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self._chunks(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    def read(self) -> bytes:
        """The content that `sha256` is the hash of.

        Raises:
            BundleError: the content has changed since it was hashed.
        """
        expected, content = self.sha256, b"".join(self._chunks(self.nbytes))
        if hashlib.sha256(content).hexdigest() != expected:
            raise BundleError(f"{self.path} was changed while it was open: write a new file and rename it")
        return content

    def _chunks(self, size: int) -> Iterator[bytes]:
        # pread, because threads and forked processes share the position of a descriptor.
        start = 0
        descriptor = self._descriptor_now()
        while start < self.nbytes and (chunk := os.pread(descriptor, min(size, self.nbytes - start), start)):
            yield chunk
            start += len(chunk)

    def _descriptor_now(self) -> int:
        """The descriptor. The file is opened again if the process closed it: daemons close all files that are open."""
        if not _is_open(self._descriptor, self._identity):
            try:
                self._descriptor, found = _opened(self.path)
            except OSError as error:
                raise BundleError(f"{self.path} was closed by this process, and opening it failed: {error}") from None
            self._identity = found.st_dev, found.st_ino
            weakref.finalize(self, _close, self._descriptor, self._identity)
        return self._descriptor


def _opened(path: Path) -> tuple[int, os.stat_result]:
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor, found


def _is_open(descriptor: int, identity: tuple[int, int]) -> bool:
    """Whether a descriptor is still that of a file, and not closed or given to another one."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity


def _close(descriptor: int, identity: tuple[int, int]) -> None:
    if _is_open(descriptor, identity):
        os.close(descriptor)


def opened_whole(marker: Path, open_folder: Callable[[], Opened]) -> Opened:
    """Open the files of a folder, without mixing two if another process replaces the folder meanwhile.

    Args:
        marker: a file of the folder that is new in every new version of it.
        open_folder: opens the files.

    Returns:
        What ``open_folder`` returned for one version of the folder.

    Raises:
        BundleError: the files cannot be opened, or the folder is replaced again and again.
    """
    for _ in range(MAX_OPENINGS):
        version = _version(marker)
        try:
            opened = open_folder()
        except BundleError:
            if _version(marker) == version:
                raise
        else:
            if _version(marker) == version:
                return opened
    raise BundleError(f"{marker.parent} is being replaced again and again: open it when that has ended")


def _version(marker: Path) -> tuple[int, int] | None:
    try:
        found = marker.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def holds_only(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder holds no files except the named ones, so that replacing it loses nothing else.

    What a killed process left of a file that it was writing does not count.

    Args:
        folder: the folder.
        names: paths relative to the folder.
    """
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    whole = (path.relative_to(folder) for path in found if not any(map(_remains, _between(path, folder))))
    return {path.as_posix() for path in whole} <= set(names)


def _between(path: Path, folder: Path) -> list[Path]:
    """The folders on the way from a folder to a file in it."""
    return [parent for parent in path.parents if folder in parent.parents]


def _remains(path: Path) -> bool:
    """Whether this is a folder of `write_aside`, whose process was killed if nothing is being written now."""
    return bool(REMAINS.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _replace(fresh: Path, target: Path, old: Path) -> None:
    if not target.is_dir() or not fresh.is_dir():
        fresh.replace(target)  # raises IsADirectoryError where a file would replace a folder
        return
    if _exchange(fresh, target):
        return
    try:
        target.rename(old)  # a folder cannot be renamed to the path of a folder that is not empty
        fresh.replace(target)
    except BaseException:  # an interrupt between the two renames must not lose the old folder
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def is_empty(path: Path) -> bool:
    """Whether a path is a folder that an output may replace: empty, but for what a killed process left."""
    return path.is_dir() and all(map(_remains, path.iterdir()))


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two paths in one step, so that neither is ever missing; False where the system cannot do it."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        return False
    here, exchange = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    return bool(libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def followed(target: Path) -> Path:
    """The target of a link that the user named as an output; any other path is returned unchanged.

    Not for paths inside a bundle, where links must not be followed.
    """
    return target.resolve() if target.is_symlink() else target


def absolute(path: str | Path) -> Path:
    """A path that leads to the same file from any folder. Links are kept, except before a "..", which depends on them.

    Args:
        path: the path of a file or folder; it need not exist.
    """
    whole = Path(path).absolute()
    if ".." not in whole.parts:
        return whole
    if whole.name == "..":
        return whole.resolve()
    return whole.parent.resolve() / whole.name


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a path in a new folder beside ``target``; rename it to ``target`` on success, delete it on any exception.

    The caller creates a file or a folder at the yielded path. An existing file or folder at ``target`` is replaced, in
    one step where the system can exchange two folders (Linux). Folders above ``target`` are made where there are none,
    and deleted again on an exception.

    Args:
        target: the final path.

    Raises:
        OSError: the target cannot be written; the error names it.
    """
    target = target.absolute()
    if target.name in ("", ".."):
        target = target.resolve()
    aside: Path | None = None
    made: list[Path] = []
    try:
        made = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fresh = aside / target.name
        yield fresh
        _replace(fresh, target, aside / "replaced")
        made = []
    except OSError as error:  # it may name no path, or the temporary one: the user knows only the target
        if error.errno is None:
            raise OSError(f"{target} cannot be written: {error}") from None
        named = None if error.filename is None else Path(str(error.filename))
        if named is None or any(name.startswith(f".{target.name}.") for name in (named.name, named.parent.name)):
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from None
        raise
    finally:
        if aside is not None:
            _remove(aside)
        for parent in made:  # after an exception; a folder in which something is by now stays
            with suppress(OSError):
                parent.rmdir()


def check_writable(target: Path) -> None:
    """Check that a target can be written, before long work rather than after it.

    Args:
        target: the final path.

    Raises:
        OSError: nothing can be written there; the error names the target.
    """
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))


def forget_pages(array: Any) -> None:
    """Release the pages of a memory-mapped array that have been read; does nothing for other arrays.

    Otherwise reading through a file of 9 GB would count as 9 GB of this process. Pages that are read again come from
    the system's cache.

    Args:
        array: an array, or any other object.
    """
    mapped: Any = getattr(array, "_mmap", None)
    # Only for read-only maps: in a copy-on-write map, this would discard the changes.
    if isinstance(array, np.memmap) and array.mode == "r" and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return HeldFile(path).sha256


def cache_folder() -> Path:
    """The user's folder for files that can be regenerated; not in a bundle, which may come from anywhere.

    Raises:
        OSError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "camp-sdk"
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no folder for caches: {error}") from None
