"""A bundle on disk: a folder that holds a trained model, ready for deployment, and the contract of its graphs.

Opening a bundle runs no code, unpickles nothing and follows no path out of its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import HeldFile, opened_whole
from camp_sdk.runtime.manifest import EXPORT_AGAIN, MANIFEST_FILE, FileEntry, Manifest, read_manifest


class Bundle:
    """A bundle on disk, checked when opened: schema version, contract, and size and SHA-256 of every listed file.

    Every file is held open, so this object stays the same bundle even if another one takes the folder's place.

    Args:
        folder: the bundle's folder.

    Attributes:
        folder: its absolute path, with links resolved.
        manifest: the content of manifest.json.
        fingerprint: a hash of all other files, by which galleries recognise the bundle that made them.

    Raises:
        BundleError: a check failed; the message names the file, what was found, what was expected and what to do.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _resolved(Path(folder))
        # If another process puts a new bundle in place between two reads, its files do not fit the old manifest.
        self.manifest, self._files = opened_whole(self.folder / MANIFEST_FILE, lambda: _open(self.folder))
        # Galleries record the model that made them by this hash of the graphs and the tokenizer.
        listed = json.dumps(sorted((name, entry.sha256) for name, entry in self.manifest.files.items()))
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, variant={self.manifest.variant!r})"

    def __reduce__(self) -> tuple[Callable[[Path, str], Bundle], tuple[Path, str]]:
        return reopened, (self.folder, self.fingerprint)

    def file(self, name: str) -> HeldFile:
        """A file of the bundle.

        Args:
            name: the file's path relative to the bundle.

        Raises:
            BundleError: the manifest does not list the file.
        """
        if name not in self._files:
            raise BundleError(f"{self.folder}: {name!r} is not listed in manifest.json; {EXPORT_AGAIN}")
        return self._files[name]


def reopened(folder: Path, fingerprint: str) -> Bundle:
    """Open the bundle that another process had open, as unpickling does.

    Args:
        folder: the bundle's folder.
        fingerprint: the fingerprint of the bundle.

    Raises:
        BundleError: the bundle cannot be opened, or there is another bundle in the folder by now.
    """
    bundle = Bundle(folder)
    if bundle.fingerprint != fingerprint:
        raise BundleError(
            f"{folder} holds another bundle ({bundle.fingerprint[:12]}) than when it was pickled ({fingerprint[:12]}); "
            "pickle a retriever of the new bundle"
        )
    return bundle


def _resolved(folder: Path) -> Path:
    try:
        (folder / MANIFEST_FILE).is_file()
        return folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that is too long
        raise BundleError(f"{str(folder)[:200]!r} cannot be the path of a bundle: {error}") from None


def _open(folder: Path) -> tuple[Manifest, dict[str, HeldFile]]:
    manifest_file = folder / MANIFEST_FILE
    try:
        if manifest_file.is_file():
            _check_inside(manifest_file, folder)
        manifest = read_manifest(manifest_file)
        return manifest, {name: _checked(folder / name, folder, entry) for name, entry in manifest.files.items()}
    except OSError as error:  # not readable, or gone since it was looked for
        raise BundleError(f"{folder} cannot be read: {error}") from None


def _checked(path: Path, folder: Path, entry: FileEntry) -> HeldFile:
    try:
        missing = not path.is_file()
    except OSError as error:  # a name that is too long, for example
        raise BundleError(f"manifest.json lists a file that cannot exist ({error}); {EXPORT_AGAIN}") from None
    if missing:
        raise BundleError(f"{path} is missing though manifest.json lists it; {EXPORT_AGAIN}")
    _check_inside(path, folder)
    file = HeldFile(path)
    if file.nbytes != entry.bytes:
        raise BundleError(f"{path} has {file.nbytes} bytes, manifest.json says {entry.bytes}; {EXPORT_AGAIN}")
    if file.sha256 != entry.sha256:
        raise BundleError(
            f"{path} was altered: SHA-256 {file.sha256}, manifest.json says {entry.sha256}; {EXPORT_AGAIN}"
        )
    return file


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder):
        raise BundleError(f"{path} leads out of the bundle to {path.resolve()}; a bundle must hold its own files")
