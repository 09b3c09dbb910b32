"""The five packages of emoji artwork and words: names, versions, checksums, and reading members of their tarballs."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from camp_sdk.runtime.errors import BundleError


@dataclass(frozen=True)
class Package:
    """A package of the npm registry at one version.

    Args:
        name: the package's name.
        version: the pinned version.
        sha256: the checksum of its tarball.
    """

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The tarball's name, as `npm pack` chooses it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FLUENT, NOTO, TWEMOJI, LABELS, KEYWORDS = "fluent", "noto", "twemoji", "labels", "keywords"
STYLES = (FLUENT, NOTO, TWEMOJI)
PACKAGES = {
    FLUENT: Package(
        "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
    ),
    NOTO: Package(
        "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    TWEMOJI: Package(
        "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
    LABELS: Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
    KEYWORDS: Package("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"),
}


def check_sum(tarball: Path, package: Package) -> None:
    """Check a tarball's SHA-256.

    Args:
        tarball: the file to check.
        package: the pinned package.

    Raises:
        BundleError: the file is not the pinned tarball; the message gives both checksums.
    """
    with tarball.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != package.sha256:
        raise BundleError(
            f"{tarball.name} has SHA-256 {digest.hexdigest()}: expected {package.sha256} for {package.name} "
            f"{package.version}"
        )


def read_package(folder: Path, part: str, pattern: str) -> dict[str, bytes]:
    """Read members of a package's tarball. Links and folders are skipped, and no file is written under a member's name.

    Args:
        folder: folder of the fetched tarballs.
        part: a key of `PACKAGES`.
        pattern: regular expression for the members' paths below ``package/``.

    Returns:
        The contents of the matching members, by their path below ``package/``.

    Raises:
        BundleError: the tarball is missing, unreadable, or not the pinned one.
    """
    package = PACKAGES[part]
    tarball = folder / package.file_name
    if not tarball.is_file():
        raise BundleError(f"{tarball} is missing: get it with: python -m examples.emoji_search.fetch --output {folder}")
    check_sum(tarball, package)
    wanted = re.compile(f"package/({pattern})")
    found = {}
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file and (match := wanted.fullmatch(member.name)):
                    found[match[1]] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BundleError(f"{tarball} cannot be read ({error}): remove it and fetch it again") from None
    return found
