"""A gallery's folder: gallery.json and a .npy file a tensor, written whole or not at all, read without trusting it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS, EncodedImages, EncodedTexts, narrow_specs, words_axis
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import check_writable, followed, is_empty, write_aside
from camp_sdk.runtime.manifest import Manifest, TensorSpec

FORMAT_VERSION = 1
METADATA = "gallery.json"
OPENINGS = 100
PRECISIONS_OF = {"image": GALLERY_PRECISIONS, "text": ("float32",)}  # by kind


@dataclass(frozen=True)
class GalleryMetadata:
    """What gallery.json says.

    Args:
        kind: "image" or "text".
        precision: what the tensors are kept in.
        bundle: the fingerprint of the bundle that encoded it.
        documents: the name of each item, or None.
    """

    kind: str
    precision: str
    bundle: str
    documents: Sequence[str | None]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GalleryMetadata:
        """The metadata in a JSON document; KeyError, TypeError or ValueError if it holds none."""
        metadata = cls(raw["kind"], raw["precision"], raw["bundle"], raw["documents"])
        if raw["format"] != FORMAT_VERSION or metadata.precision not in PRECISIONS_OF.get(metadata.kind, ()):
            raise ValueError(f"expected format {FORMAT_VERSION} of kind image or text")
        if not isinstance(metadata.bundle, str) or not isinstance(metadata.documents, list):
            raise TypeError("bundle is no string, or documents is no list")
        return metadata

    def as_dict(self) -> dict[str, Any]:
        """The JSON document."""
        fields = {"kind": self.kind, "precision": self.precision, "bundle": self.bundle}
        return {"format": FORMAT_VERSION, **fields, "documents": list(self.documents)}


def write_gallery(folder: Path, metadata: GalleryMetadata, encoded: EncodedImages | EncodedTexts) -> None:
    """Write a gallery's folder, whole or not at all; an older gallery there is replaced. A link is followed.

    Raises:
        InputError: the name is taken by something that is not a gallery, or holds other files too.
    """
    check_output(folder)
    with write_aside(followed(folder)) as aside:
        aside.mkdir()
        arrays = dict(encoded.tensors)
        if isinstance(encoded, EncodedTexts):
            arrays["lengths"] = encoded.lengths
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
        (aside / METADATA).write_text(json.dumps(metadata.as_dict()), encoding="utf-8")


def open_gallery_files(folder: Path, bundle: Bundle) -> tuple[GalleryMetadata, EncodedImages | EncodedTexts]:
    """A gallery's metadata and its tensors, memory-mapped.

    Raises:
        BundleError: the folder is no gallery, was made by another bundle, or a file does not fit the contract.
    """
    # One that is saved meanwhile must not give the names of the older and the tensors of the newer.
    for _ in range(OPENINGS):
        version = _version(folder)
        try:
            opened = _open(folder, bundle)
        except BundleError:
            if _version(folder) == version:
                raise
        else:
            if _version(folder) == version:
                return opened
    raise BundleError(f"{folder} is saved again and again: open it when that is done")


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
    if len(encoded) != len(metadata.documents):
        raise BundleError(f"{folder}: {len(encoded)} items but {len(metadata.documents)} names; encode it again")
    return metadata, encoded


def check_output(folder: Path) -> None:
    """Raise InputError if a folder is taken by something that is not a gallery, or holds other files too, and OSError if
    nothing can be written there: before long work, not after it."""
    target = followed(folder)
    if target.exists() and not is_empty(target) and not _is_gallery(target):
        raise InputError(f"{target} exists and is not a gallery, or holds other files too: name another folder")
    check_writable(target)


def _version(folder: Path) -> tuple[int, int] | None:
    """What tells one saved gallery from another of the same name."""
    try:
        found = (folder / METADATA).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_gallery(folder: Path) -> bool:
    try:
        _read_metadata(folder / METADATA)
    except BundleError:
        return False
    return all((path.name == METADATA or path.suffix == ".npy") and not path.is_dir() for path in folder.iterdir())


def _read_metadata(path: Path) -> GalleryMetadata:
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a folder written by Gallery.save")
    try:
        return GalleryMetadata.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not a gallery's ({type(error).__name__}: {error}); encode it again") from None


def _map(path: Path, name: str, dtype: str, shape: tuple[int | str, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    file = path / f"{name}.npy"
    try:
        array = open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be opened ({error}); encode the gallery again") from None
    fits = array.ndim == len(shape) and all(
        isinstance(s, str) or s == n for s, n in zip(shape, array.shape, strict=False)
    )
    if array.dtype != dtype or not fits:
        raise BundleError(f"{file} is {array.dtype} {array.shape}, expected {dtype} {shape}; encode the gallery again")
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
    # Per-word tensors are stored with the words of all texts in a row: one axis where the contract has [T, N].
    stored = [TensorSpec(s.name, s.dtype, s.shape[1:] if words_axis(s) else s.shape) for s in manifest.text_tensors]
    per_word = frozenset(spec.name for spec in manifest.text_tensors if words_axis(spec))
    arrays = _map_all(path, stored)
    lengths = np.array(_map(path, "lengths", "int64", ("T",)))
    total = int(lengths.sum())
    if (lengths < 1).any() or any(len(a) != (total if n in per_word else len(lengths)) for n, a in arrays.items()):
        raise BundleError(f"{path}: its tensors disagree on the number of texts or words; encode it again")
    return EncodedTexts(arrays, lengths, per_word)
