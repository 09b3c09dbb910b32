"""A gallery's folder: gallery.json and one .npy file per tensor. Everything read from it is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from camp_sdk.runtime.arrays import map_array
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS, EncodedImages, EncodedTexts, narrow_specs, words_axis
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import BundleError, CampError, InputError
from camp_sdk.runtime.files import absolute, check_writable, followed, is_empty, opened_whole, write_aside
from camp_sdk.runtime.manifest import Manifest
from camp_sdk.runtime.messages import brief

FORMAT_VERSION = 1
METADATA = "gallery.json"
MAX_REASON = 300  # characters: errors may repeat what a file holds
PRECISIONS_OF = {"image": GALLERY_PRECISIONS, "text": ("float32",)}  # by kind


@dataclass(frozen=True)
class GalleryMetadata:
    """The content of gallery.json.

    Args:
        kind: "image" or "text".
        precision: How the tensors are stored.
        bundle: The fingerprint of the bundle that encoded the gallery.
        documents: The name of each item, or None.
        files: The path of each picture whose name is its path, otherwise None. In the file, it is relative to the
            folder around the gallery if the picture lies below that; in memory, it is absolute.
    """

    kind: str
    precision: str
    bundle: str
    documents: Sequence[str | None]
    files: Sequence[str | None]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GalleryMetadata:
        """Read the metadata from a JSON document.

        Raises:
            KeyError: A key is missing.
            TypeError: A value has the wrong type.
            ValueError: The format, kind or precision is unknown.
        """
        documents = raw["documents"]
        files = raw.get("files", [None] * len(documents))  # older galleries have none
        metadata = cls(raw["kind"], raw["precision"], raw["bundle"], documents, files)
        if raw["format"] != FORMAT_VERSION or metadata.precision not in PRECISIONS_OF.get(metadata.kind, ()):
            raise ValueError(f"expected format {FORMAT_VERSION} of kind image or text")
        if not isinstance(metadata.bundle, str):
            raise TypeError(f"bundle is {brief(metadata.bundle)}, expected a string")
        for key, names in (("documents", documents), ("files", files)):
            if not isinstance(names, list):
                raise TypeError(f"{key} is {brief(names)}, expected a list")
            if odd := [name for name in names if not (name is None or isinstance(name, str))]:
                raise TypeError(f"{key} holds {brief(odd[0])}, expected strings or null")
        if len(files) != len(documents):
            raise ValueError(f"it has {len(files)} files for {len(documents)} documents")
        return metadata

    def as_dict(self) -> dict[str, Any]:
        """The metadata as a JSON document."""
        fields = {"kind": self.kind, "precision": self.precision, "bundle": self.bundle}
        files = {"files": list(self.files)} if any(self.files) else {}
        return {"format": FORMAT_VERSION, **fields, "documents": list(self.documents), **files}

    def beside(self, folder: Path) -> GalleryMetadata:
        """The metadata as the file of a gallery in this folder holds them."""
        base = _around(folder)
        return replace(self, files=[file and _below(file, base) for file in self.files])

    def from_file(self, folder: Path) -> GalleryMetadata:
        """The metadata of the file of a gallery in this folder, as they are in memory."""
        base = _around(folder)
        # Only text: a gallery may come from anywhere, so nothing here opens what it names.
        return replace(self, files=[file and os.path.normpath(base / file) for file in self.files])


def folder_of(folder: Any, error: type[CampError]) -> Path:
    """The path of a gallery's folder, or the error if it is no path at all."""
    try:
        path = Path(folder)
        path.lstat()
    except OSError:  # it may not exist yet
        return path
    except (TypeError, ValueError) as reason:
        raise error(f"the gallery's folder is {brief(folder)} ({reason}): expected a path") from None
    return path


def _around(folder: Path) -> Path:
    return absolute(followed(folder)).parent


def _below(file: str, base: Path) -> str:
    path = PurePath(file)
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else file


def write_gallery(folder: Path, metadata: GalleryMetadata, encoded: EncodedImages | EncodedTexts) -> None:
    """Write a gallery's folder, completely or not at all.

    Args:
        folder: The folder to write. An older gallery there is replaced; a link is followed.
        metadata: The content of gallery.json.
        encoded: The tensors.

    Raises:
        InputError: The folder exists and is not a gallery, or it also holds other files.
    """
    check_output(folder)
    with write_aside(followed(folder)) as aside:
        aside.mkdir()
        arrays = dict(encoded.tensors)
        if isinstance(encoded, EncodedTexts):
            arrays["lengths"] = encoded.lengths
        for name, array in arrays.items():
            np.save(_file(aside, name), array, allow_pickle=False)
        (aside / METADATA).write_text(json.dumps(metadata.beside(folder).as_dict()), encoding="utf-8")


def open_gallery_files(folder: Path, bundle: Bundle) -> tuple[GalleryMetadata, EncodedImages | EncodedTexts]:
    """Open a gallery: its metadata and its tensors, memory-mapped.

    Args:
        folder: The gallery's folder.
        bundle: The bundle that encoded it.

    Raises:
        BundleError: The folder is not a gallery, it was made by another bundle, or a file does not fit the bundle's
            manifest.
    """
    # Another process may replace the gallery while it is read: do not mix old names with new tensors.
    return opened_whole(folder / METADATA, lambda: _open(folder, bundle))


def _open(folder: Path, bundle: Bundle) -> tuple[GalleryMetadata, EncodedImages | EncodedTexts]:
    metadata = _read_metadata(folder / METADATA)
    if metadata.bundle != bundle.fingerprint:
        raise BundleError(
            f"{folder} was made by another bundle ({metadata.bundle[:12]}, this one is {bundle.fingerprint[:12]}); "
            "encode it again with this bundle"
        )
    encoded: EncodedImages | EncodedTexts
    if metadata.kind == "image":
        encoded = _map_images(folder, bundle.manifest, metadata.precision)
    else:
        encoded = _map_texts(folder, bundle.manifest)
    if not len(encoded):
        raise BundleError(f"{folder} holds no items, expected at least one; encode it again")
    if len(encoded) != len(metadata.documents):
        raise BundleError(f"{folder}: {len(encoded)} items but {len(metadata.documents)} names; encode it again")
    return metadata.from_file(folder), encoded


def check_output(folder: Path) -> None:
    """Check before long work that a gallery can be written to a folder.

    Raises:
        InputError: The folder exists and is not a gallery, or it also holds other files.
        OSError: Nothing can be written there.
    """
    target = followed(folder)
    if target.exists() and not is_empty(target) and not _is_gallery(target):
        raise InputError(f"{target} exists and is not a gallery, or holds other files too: name another folder")
    check_writable(target)


def _is_gallery(folder: Path) -> bool:
    try:
        _read_metadata(folder / METADATA)
    except BundleError:
        return False
    return all((path.name == METADATA or path.suffix == ".npy") and not path.is_dir() for path in folder.iterdir())


def _read_metadata(path: Path) -> GalleryMetadata:
    try:
        if not path.is_file():
            raise BundleError(f"{path} not found: expected a folder written by Gallery.save")
        return GalleryMetadata.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:  # such as a name longer than the system allows
        raise BundleError(f"{path} cannot be read ({error.strerror}): expected a gallery's folder") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:MAX_REASON]}"
        raise BundleError(f"{path} is broken ({reason}); encode the gallery again") from None


def _file(folder: Path, name: str) -> Path:
    """The file of a tensor, whose name comes from a bundle that may come from anywhere."""
    if set(name) & set("/\\:\0"):
        raise BundleError(f"the bundle's tensor {brief(name)} cannot be the name of a file; export the bundle again")
    return folder / f"{name}.npy"


def _map(path: Path, name: str, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    file = _file(path, name)
    array = map_array(file, "encode the gallery again")
    fits = array.ndim == len(shape) and all(
        isinstance(s, str) or s == n for s, n in zip(shape, array.shape, strict=False)
    )
    if array.dtype != dtype or not fits:
        raise BundleError(f"{file} is {array.dtype} {array.shape}, expected {dtype} {shape}; encode the gallery again")
    if 0 in array.shape[1:]:
        raise BundleError(f"{file} is {array.shape}: expected 1 or more along every axis; encode the gallery again")
    return array


def _map_all(path: Path, specs: Sequence[TensorSpec]) -> Arrays:
    return {spec.name: _map(path, spec.name, spec.dtype, spec.shape) for spec in specs}


def _map_images(path: Path, manifest: Manifest, precision: str) -> EncodedImages:
    specs = narrow_specs(manifest.image_tensors, precision)
    arrays = _map_all(path, specs)
    regions = {n for s in specs for n, letter in zip(arrays[s.name].shape, s.shape, strict=True) if letter == "R"}
    if len({len(array) for array in arrays.values()}) != 1 or len(regions) > 1:
        raise BundleError(f"{path}: its tensors disagree on the number of images or regions; encode it again")
    return EncodedImages(arrays)


def _map_texts(path: Path, manifest: Manifest) -> EncodedTexts:
    # Per-word tensors are stored without padding: [words of all texts, ...] instead of the manifest's [T, N, ...].
    stored = [TensorSpec(s.name, s.dtype, s.shape[1:] if words_axis(s) else s.shape) for s in manifest.text_tensors]
    per_word = frozenset(spec.name for spec in manifest.text_tensors if words_axis(spec))
    arrays = _map_all(path, stored)
    lengths = np.array(_map(path, "lengths", "int64", ("T",)))
    total = int(lengths.sum(dtype=np.float64))  # exact for every file, and huge lengths cannot overflow
    if (lengths < 1).any() or any(len(a) != (total if n in per_word else len(lengths)) for n, a in arrays.items()):
        raise BundleError(f"{path}: its tensors disagree on the number of texts or words; encode it again")
    return EncodedTexts(arrays, lengths, per_word)
