"""Bearer keys: read from files, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from camp_sdk.runtime.errors import InputError

LEAST_CHARACTERS = 16
MAX_FILE_BYTES = 1 << 20
SCHEME = b"bearer "


@dataclass(frozen=True)
class Keys:
    """The keys that a server takes, as hashes.

    Args:
        reading: Keys for reading; None if reading needs none.
        writing: Keys for writing, which are keys for reading too; None if nobody can write.
    """

    reading: tuple[bytes, ...] | None
    writing: tuple[bytes, ...] | None

    @classmethod
    def read(cls, keys: Path | None, write_keys: Path | None) -> Keys:
        """The keys of two files.

        Raises:
            InputError: A file holds no key, or one that is too short.
            OSError: A file cannot be read.
        """
        return cls(*(None if path is None else tuple(map(_digest, _lines(path))) for path in (keys, write_keys)))

    def may_read(self, header: bytes | None) -> bool:
        """Whether a header ``Authorization`` allows to read."""
        if self.reading is None:
            return True
        return _among(header, (*self.reading, *(self.writing or ())))

    def may_write(self, header: bytes | None) -> bool:
        """Whether it allows to write."""
        return self.writing is not None and _among(header, self.writing)


def _among(header: bytes | None, digests: Iterable[bytes]) -> bool:
    if header is None or header[: len(SCHEME)].lower() != SCHEME:
        return False
    given = _digest(header[len(SCHEME) :].strip())
    # All of them, whichever it is; of equal length, because they are hashes.
    return sum([hmac.compare_digest(given, digest) for digest in digests]) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _lines(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} holds more than {MAX_FILE_BYTES >> 20} MiB: expected one key a line")
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if len(key) < LEAST_CHARACTERS or not key.isascii() or any(byte <= 32 for byte in key):
            raise InputError(  # which does not show the key
                f"{path}, line {number}: expected a key of at least {LEAST_CHARACTERS} characters of ASCII without "
                "spaces, such as `openssl rand -hex 32` prints"
            )
        found.append(key)
    if not found:
        raise InputError(f"{path} holds no key: expected one a line")
    return found
