"""The pictures of a corpus: those of a folder, of a list, or of an object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from camp_sdk.picture_files import SUFFIXES, find_pictures
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.files import absolute
from camp_sdk.runtime.messages import brief

# Of the protocols that fsspec knows, those of storage. Others wrap files of any kind, or run commands.
PROTOCOLS = frozenset({"abfs", "abfss", "az", "file", "gcs", "gs", "hdfs", "http", "https", "s3"})
MAX_PICTURE_BYTES = 64 << 20  # of a picture that is fetched


@dataclass(frozen=True)
class Source:
    """A picture.

    Args:
        key: Its key.
        location: Its path, or its URL.
    """

    key: str
    location: str

    @property
    def is_remote(self) -> bool:
        """Whether it is fetched."""
        return is_url(self.location)

    def fetch(self) -> bytes:
        """The file, of a picture that is fetched.

        Raises:
            OSError: It cannot be fetched, or is too large.
        """
        with import_fsspec().open(checked_url(self.location), "rb") as file:
            found: bytes = file.read(MAX_PICTURE_BYTES + 1)
        if len(found) > MAX_PICTURE_BYTES:
            raise OSError(f"has more than {MAX_PICTURE_BYTES >> 20} MiB")
        return found


def find_sources(given: str) -> list[Source]:
    """List the pictures of a corpus, each with a key.

    Args:
        given: A folder, whose pictures' keys are their paths below it; the URL of a folder, likewise; or a text file of
            paths and URLs, one a line, which are the keys. Relative paths begin at the file's folder.

    Raises:
        InputError: There are no pictures, or a line is neither a path nor a URL that is supported.
        MissingExtraError: fsspec, which reads URLs, is not installed.
        OSError: The file or the folder cannot be read.
    """
    if is_url(given):
        return _below_url(given)
    path = absolute(given)
    if path.is_dir():
        return [Source(found.relative_to(path).as_posix(), str(found)) for found in find_pictures(path, True).paths]
    return _listed(path)


def is_url(location: str) -> bool:
    """Whether a location is a URL."""
    return "://" in location


def checked_url(url: str) -> str:
    """A URL of a storage that is supported.

    Raises:
        InputError: It is of another kind.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS or "::" in url or not rest:
        raise InputError(f"{brief(url)} cannot be read: expected a URL of one of {', '.join(sorted(PROTOCOLS))}")
    return url


def import_fsspec() -> ModuleType:
    """The package fsspec.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError("fsspec", "ray") from None
    found: ModuleType = fsspec
    return found


def _below_url(url: str) -> list[Source]:
    checked_url(url)
    system, root = _file_system(url)
    protocol, base = url.partition("://")[0], root.rstrip("/")
    names = [name for name in system.find(root) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise InputError(f"{url} holds no pictures: expected files such as .jpg and .png")
    return [Source(name[len(base) :].lstrip("/"), f"{protocol}://{name}") for name in sorted(names)]


def _file_system(url: str) -> tuple[Any, str]:
    fsspec = import_fsspec()
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:  # the package of a storage, which fsspec names
        raise InputError(f"{brief(url)} cannot be read: {error}") from None
    return system, str(root)


def _listed(path: Path) -> list[Source]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8: expected a path or a URL a line") from None
    keys = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not keys:
        raise InputError(f"{path} is empty: expected a path or a URL a line")
    return [Source(key, checked_url(key) if is_url(key) else str(path.parent / key)) for key in keys]
