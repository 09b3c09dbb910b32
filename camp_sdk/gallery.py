"""A gallery: images or texts encoded once, ready to be ranked many times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.gallery_files import GalleryMetadata, open_gallery_files, write_gallery
from camp_sdk.results import Skipped
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, Indices, joined
from camp_sdk.runtime.errors import InputError


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
        metadata = GalleryMetadata(self.kind, self.precision, self.fingerprint, self.documents)
        write_gallery(Path(folder), metadata, self.encoded)

    @classmethod
    def open(cls, folder: str | Path, bundle: Bundle) -> Gallery:
        """Open a saved gallery, memory-mapped; `Retriever.open_gallery` does this for its own bundle.

        Raises BundleError if it is no gallery, was made by another bundle, or a file does not fit the contract.
        """
        metadata, encoded = open_gallery_files(Path(folder), bundle)
        return cls(encoded, metadata.documents, bundle, metadata.precision)


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
