"""A gallery: images or texts encoded once, ready to be ranked many times."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.gallery_files import GalleryMetadata, folder_of, open_gallery_files, write_gallery
from camp_sdk.results import Skipped
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, Indices, joined
from camp_sdk.runtime.errors import BundleError, InputError


class Gallery:
    """Encoded images or texts of one bundle, each with its name (a path, a caption) if it has one.

    `Retriever.encode_images` and `Retriever.encode_texts` make galleries. `save` writes a folder of .npy files, which
    `open` maps into memory, so that a gallery may be larger than memory. The arguments are also attributes, except
    ``bundle``.

    Args:
        encoded: The encoded items.
        documents: The name of each item, or None.
        bundle: The bundle that encoded them.
        precision: How the tensors are stored: "float32", "float16" or "int8".
        skipped: The pictures that `Retriever.encode_images` left out. It is not saved, and a selection or a join does
            not keep it.
        files: The absolute path of each picture that was given as a path without a name, otherwise None; () for none.
            A saved gallery keeps them relative to the folder around it, so that pictures may move together with it.
    """

    def __init__(
        self,
        encoded: EncodedImages | EncodedTexts,
        documents: Sequence[str | None],
        bundle: Bundle,
        precision: str = "float32",
        skipped: Sequence[Skipped] = (),
        files: Sequence[str | None] = (),
    ) -> None:
        self.encoded = encoded
        self.documents = tuple(documents)
        self.precision = precision
        self.skipped = tuple(skipped)
        self.files = tuple(files) or (None,) * len(self.documents)
        self._bundle = bundle

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return "image" if isinstance(self.encoded, EncodedImages) else "text"

    @property
    def fingerprint(self) -> str:
        """A hash of the content of the bundle that encoded the gallery."""
        return self._bundle.fingerprint

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes, whether in memory or memory-mapped."""
        return sum(array.nbytes for array in self.encoded.tensors.values())

    def __len__(self) -> int:
        return len(self.encoded)

    def __repr__(self) -> str:
        return f"<Gallery of {len(self)} {self.kind}s, {self.nbytes / 1e6:.1f} MB>"

    def select(self, indices: Indices) -> Gallery:
        """Make a gallery of some of the items; a slice of images copies nothing.

        Args:
            indices: A slice, a list of indices or a mask, as for a numpy array.

        Raises:
            InputError: An index is out of range, or no item is selected.
        """
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
            raise InputError(f"select chose none of {len(self)} items: a gallery holds at least one")
        documents, files = ([names[i] for i in chosen] for names in (self.documents, self.files))
        return Gallery(self.encoded.select(indices), documents, self._bundle, self.precision, files=files)

    @classmethod
    def join(cls, galleries: Iterable[Gallery]) -> Gallery:
        """Join galleries into a new one, to add items to a gallery; the items are copied into memory.

        Args:
            galleries: At least one gallery. The result holds their items in this order.

        Raises:
            InputError: There are no galleries, they differ in bundle, kind, precision or number of regions, or two of
                them hold the same picture: the same file, or, of pictures that are not files, the same name with equal
                tensors. Texts may repeat.
        """
        parts = list(galleries) if isinstance(galleries, Iterable) else []
        if not parts or not all(isinstance(part, Gallery) for part in parts):
            raise InputError("join takes a list of at least one gallery")
        first = parts[0]
        for index, part in enumerate(parts):
            for what in ("kind", "fingerprint", "precision"):
                own, expected = getattr(part, what), getattr(first, what)
                if own != expected:
                    what = "bundle" if what == "fingerprint" else what
                    raise InputError(f"gallery {index} has the {what} {own[:12]}, the first has {expected[:12]}")
            for name, array in part.encoded.tensors.items():
                if array.shape[1:] != (shape := first.encoded.tensors[name].shape[1:]):
                    raise InputError(f"gallery {index} has {name} {array.shape[1:]} per item, the first has {shape}")
        if first.kind == "image":
            _check_distinct(parts)
        documents, files = ([name for part in parts for name in getattr(part, of)] for of in ("documents", "files"))
        return cls(joined([part.encoded for part in parts]), documents, first._bundle, first.precision, files=files)

    def save(self, folder: str | Path) -> None:
        """Write the gallery as a folder, completely or not at all.

        Args:
            folder: The folder to write. An older gallery there is replaced; a link is followed.

        Raises:
            InputError: The folder exists and is not a gallery, or it also holds other files.
        """
        metadata = GalleryMetadata(self.kind, self.precision, self.fingerprint, self.documents, self.files)
        write_gallery(folder_of(folder, InputError), metadata, self.encoded)

    @classmethod
    def open(cls, folder: str | Path, bundle: Bundle) -> Gallery:
        """Open a saved gallery, memory-mapped; `Retriever.open_gallery` does this for its own bundle.

        The name of a picture that was given as a path is its absolute path, so that it opens from any folder. If the
        picture lies below the folder around the gallery, it is looked for there even after that folder has moved.

        Args:
            folder: The folder that `save` wrote.
            bundle: The bundle that encoded the gallery.

        Raises:
            BundleError: The folder is not a gallery, it was made by another bundle, or a file does not fit the bundle's
                manifest.
        """
        metadata, encoded = open_gallery_files(folder_of(folder, BundleError), bundle)
        documents = [file or name for file, name in zip(metadata.files, metadata.documents, strict=True)]
        return cls(encoded, documents, bundle, metadata.precision, files=metadata.files)


def _check_distinct(parts: Sequence[Gallery]) -> None:
    """Raise InputError if two galleries of pictures hold the same one: it would take two places of every ranking."""
    holds = Counter(file or name for part in parts for file, name in zip(part.files, part.documents, strict=True))
    seen: dict[tuple[str, bytes], int] = {}  # gallery by file or name, and what distinguishes pictures of one name
    files: dict[str, int] = {}  # gallery by file
    for number, part in enumerate(parts):
        for item, (file, name) in enumerate(zip(part.files, part.documents, strict=True)):
            if (key := file or name) is None or holds[key] < 2:
                continue
            before = {seen.setdefault((key, _digest(part, item)), number)}
            if file is not None:
                before.add(files.setdefault(key, number))
            if others := before - {number}:
                raise InputError(f"galleries {min(others)} and {number} both hold {key}: leave it out of one of them")


def _digest(gallery: Gallery, item: int) -> bytes:
    """A hash of the tensors of an item, equal for equal numbers."""
    digest = hashlib.sha256()
    for name, array in sorted(gallery.encoded.tensors.items()):
        digest.update(f"{name} {array.dtype.str} ".encode())
        digest.update((array[item] + array.dtype.type(0)).tobytes())  # -0.0 equals 0.0
    return digest.digest()


def texts_of_query(query: Any, kind: str | None) -> list[str] | None:
    """The texts of a query that ranks images; None for a query that is an image.

    Args:
        query: The query.
        kind: What the query ranks, "image" or "text"; None if the type of the query decides it.

    Raises:
        InputError: The query holds no text, or it is not text and the corpus holds images.
    """
    if kind == "text":
        return None
    array = isinstance(query, np.ndarray) and query.dtype.kind in "UO" and query.ndim == 1
    several = array or isinstance(query, (list, tuple))
    if several and not len(query):
        raise InputError(f"query is {query!r}: expected a string, or a list of at least one string")
    texts = list(query) if several else [query]
    if all(isinstance(text, str) for text in texts):
        return [str(text) for text in texts]
    if several or kind == "image":
        raise InputError(f"the query is a {type(query).__name__}: expected a string, or a list of strings")
    return None


def texts_of(gallery: Gallery) -> EncodedTexts:
    """The encoded texts of a gallery.

    Raises:
        InputError: It is a gallery of images.
    """
    if not isinstance(gallery.encoded, EncodedTexts):
        raise InputError("this is a gallery of images: expected texts here")
    return gallery.encoded
