"""A gallery: images or texts encoded once, ready to be ranked many times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from camp_sdk.results import Skipped
from camp_sdk.runtime.bundle import Bundle, Manifest, TensorSpec
from camp_sdk.runtime.encoded import (
    GALLERY_PRECISIONS,
    EncodedImages,
    EncodedTexts,
    Indices,
    joined,
    narrow_specs,
    words_axis,
)
from camp_sdk.runtime.engine import Arrays
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import check_writable, followed, is_empty, write_aside

FORMAT_VERSION = 1
METADATA = "gallery.json"
OPENINGS = 100


class Gallery:
    """Encoded images or texts of one bundle, with the name of each (a path, a caption) where it has one.

    Made by `Retriever.encode_images` and `Retriever.encode_texts`. `save` writes a folder of .npy files that `open` maps
    into memory, so a gallery may be larger than memory. ``precision`` is what it keeps: float32, float16 or int8.
    ``skipped`` are the pictures that `encode_images` left out; it is told once, so a gallery that was opened or selected has
    none.
    """

    def __init__(
        self,
        encoded: EncodedImages | EncodedTexts,
        documents: Sequence[str | None],
        bundle: Bundle,
        precision: str = "float32",
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.encoded = encoded
        self.documents = tuple(documents)
        self.precision = precision
        self.skipped = tuple(skipped)
        self._bundle = bundle

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return "image" if isinstance(self.encoded, EncodedImages) else "text"

    @property
    def fingerprint(self) -> str:
        """Identifies the bundle that made it, by content."""
        return self._bundle.fingerprint

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, in memory or mapped."""
        return sum(array.nbytes for array in self.encoded.tensors.values())

    def __len__(self) -> int:
        return len(self.encoded)

    def __repr__(self) -> str:
        return f"<Gallery of {len(self)} {self.kind}s, {self.nbytes / 1e6:.1f} MB>"

    def select(self, indices: Indices) -> Gallery:
        """A gallery of some of its items; a slice of images copies nothing. Raises InputError if none is left."""
        indices = list(indices) if isinstance(indices, tuple) else indices
        try:
            chosen = np.arange(len(self))[indices]
        except IndexError as error:
            raise InputError(f"select from {len(self)} items: {error}") from None
        if not chosen.ndim:
            raise InputError(f"select takes a slice or a list of indices: for one item, select([{chosen}])")
        if chosen.ndim > 1:
            raise InputError(f"select takes a slice or a list of indices, not {indices!r}")
        if not len(chosen):
            raise InputError(f"select left none of {len(self)} items: a gallery holds at least one")
        documents = [self.documents[i] for i in chosen]
        return Gallery(self.encoded.select(indices), documents, self._bundle, self.precision)

    @classmethod
    def join(cls, galleries: Iterable[Gallery]) -> Gallery:
        """The items of several galleries in one, in their order, copied into memory: how a gallery grows. None is altered.

        Raises InputError if there is none, or they differ in bundle, kind, precision or number of regions.
        """
        parts = list(galleries)
        if not parts or not all(isinstance(part, Gallery) for part in parts):
            raise InputError("join takes a list of at least one gallery")
        first = parts[0]
        for index, part in enumerate(parts):
            for what in ("kind", "fingerprint", "precision"):
                own, expected = getattr(part, what), getattr(first, what)
                if own != expected:
                    what = "bundle" if what == "fingerprint" else what
                    raise InputError(f"gallery {index} is of {what} {own[:12]}, the first of {expected[:12]}")
            for name, array in part.encoded.tensors.items():
                if array.shape[1:] != (shape := first.encoded.tensors[name].shape[1:]):
                    raise InputError(f"gallery {index} has {name} of {array.shape[1:]} an item, the first of {shape}")
        documents = [document for part in parts for document in part.documents]
        return cls(joined([part.encoded for part in parts]), documents, first._bundle, first.precision)

    def save(self, folder: str | Path) -> None:
        """Write the gallery as a folder, whole or not at all; an older gallery of that name is replaced. A link is followed.

        Raises InputError if the name is taken by something that is not a gallery, or holds other files too.
        """
        check_output(Path(folder))
        with write_aside(followed(Path(folder))) as aside:
            aside.mkdir()
            arrays = dict(self.encoded.tensors)
            if isinstance(self.encoded, EncodedTexts):
                arrays["lengths"] = self.encoded.lengths
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", array, allow_pickle=False)
            about = {
                "format": FORMAT_VERSION,
                "kind": self.kind,
                "precision": self.precision,
                "bundle": self.fingerprint,
                "documents": self.documents,
            }
            (aside / METADATA).write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def open(cls, folder: str | Path, bundle: Bundle) -> Gallery:
        """Open a saved gallery, memory-mapped; `Retriever.open_gallery` does this for its own bundle.

        Raises BundleError if it is no gallery, was made by another bundle, or a file does not fit the contract.
        """
        path = Path(folder)
        # One that is saved meanwhile must not give the names of the older and the tensors of the newer.
        for _ in range(OPENINGS):
            version = _version(path)
            try:
                gallery = cls._opened(path, bundle)
            except BundleError:
                if _version(path) == version:
                    raise
            else:
                if _version(path) == version:
                    return gallery
        raise BundleError(f"{path} is saved again and again: open it when that is done")

    @classmethod
    def _opened(cls, path: Path, bundle: Bundle) -> Gallery:
        about = _read_metadata(path / METADATA)
        if about["bundle"] != bundle.fingerprint:
            raise BundleError(
                f"{path} was made by another bundle ({about['bundle'][:12]}, this one is {bundle.fingerprint[:12]}); "
                "encode it again with this bundle"
            )
        encoded = (
            _map_images(path, bundle.manifest, about) if about["kind"] == "image" else _map_texts(path, bundle.manifest)
        )
        if len(encoded) != len(about["documents"]):
            raise BundleError(f"{path}: {len(encoded)} items but {len(about['documents'])} names; encode it again")
        return cls(encoded, about["documents"], bundle, about["precision"])


def is_text_query(query: Any, corpus: Any) -> bool:
    """Whether a query ranks images: by the corpus if that is a gallery, otherwise by its own type. Raises InputError for what
    can rank no images, and for an empty list."""
    if isinstance(query, list) and not query:
        raise InputError("query is []: expected a string, or a list of at least one string")
    texts = isinstance(query, str) or (isinstance(query, list) and all(isinstance(text, str) for text in query))
    if isinstance(corpus, Gallery) and corpus.kind == "image" and not texts:
        raise InputError(f"the query is a {type(query).__name__}: expected a string, or a list of strings")
    return corpus.kind == "image" if isinstance(corpus, Gallery) else texts


def texts_of(gallery: Gallery) -> EncodedTexts:
    """The encoded texts of a gallery. Raises InputError for one of images."""
    if not isinstance(gallery.encoded, EncodedTexts):
        raise InputError("this is a gallery of images: expected texts here")
    return gallery.encoded


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


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a folder written by Gallery.save")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        valid = about["format"] == FORMAT_VERSION and about["kind"] in ("image", "text")
        valid = valid and about["precision"] in (GALLERY_PRECISIONS if about["kind"] == "image" else ("float32",))
        valid = valid and isinstance(about["bundle"], str) and isinstance(about["documents"], list)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not a gallery's ({type(error).__name__}: {error}); encode it again") from None
    if not valid:
        raise BundleError(f"{path}: expected format {FORMAT_VERSION} of kind image or text; encode it again")
    return dict(about)


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


def _map_images(path: Path, manifest: Manifest, about: dict[str, Any]) -> EncodedImages:
    specs = narrow_specs(manifest.image_tensors, about["precision"])
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
