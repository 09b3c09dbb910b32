"""A bundle on disk: a folder that holds a trained model, ready for deployment, and the contract of its graphs.

Opening a bundle runs no code, unpickles nothing and follows no path out of its folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import sha256_of
from camp_sdk.runtime.manifest import EXPORT_AGAIN, MANIFEST_FILE, FileEntry, read_manifest


class Bundle:
    """A bundle on disk, checked when opened: schema version, contract, and size and SHA-256 of every listed file.

    Args:
        folder: the bundle's folder.

    Raises:
        BundleError: a check failed; the message names the file, what was found, what was expected and what to do.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest_file = self.folder / MANIFEST_FILE
        if manifest_file.is_file():
            _check_inside(manifest_file, self.folder)
        self.manifest = read_manifest(manifest_file)
        for name, entry in self.manifest.files.items():
            self._check_file(name, entry)
        # Galleries record the model that made them by this hash of the graphs and the tokenizer.
        listed = json.dumps(sorted((name, entry.sha256) for name, entry in self.manifest.files.items()))
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, variant={self.manifest.variant!r})"

    def path(self, name: str) -> Path:
        """The path of a file of the bundle.

        Args:
            name: the file's path relative to the bundle.

        Raises:
            BundleError: the manifest does not list the file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: {name!r} is not listed in manifest.json; {EXPORT_AGAIN}")
        return self.folder / name

    def _check_file(self, name: str, entry: FileEntry) -> None:
        path = self.folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing though manifest.json lists it; {EXPORT_AGAIN}")
        _check_inside(path, self.folder)
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{path} has {size} bytes, manifest.json says {entry.bytes}; {EXPORT_AGAIN}")
        found = sha256_of(path)
        if found != entry.sha256:
            raise BundleError(f"{path} was altered: SHA-256 {found}, manifest.json says {entry.sha256}; {EXPORT_AGAIN}")


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} leads out of the bundle to {path.resolve()}; a bundle must hold its own files")
