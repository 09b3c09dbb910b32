"""A bundle's network, opened: what `Retriever` and `Index` share. It encodes images and texts, and scores pairs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from camp_sdk.arguments import Advance, is_several
from camp_sdk.encoding import Encoded, checked_images, encode_batches
from camp_sdk.features import FeatureBatch, FeatureReader
from camp_sdk.gallery import Gallery
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.results import FloatArray
from camp_sdk.runtime import scoring
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec, image_columns
from camp_sdk.runtime.encode import FeatureEncoder, encode_texts
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS, EncodedImages, EncodedTexts, narrow
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.open_engines import OpenEngines
from camp_sdk.runtime.tokenizer import Tokenizer

ImageBatches = Generator[tuple[FeatureBatch, Arrays | None], None, None]


@dataclass(frozen=True, eq=False)
class Model:
    """The network of a bundle with its engines.

    Args:
        bundle: The bundle.
        engines: Its engines, opened when they are first needed.
        tokenizer: Its tokenizer.
        precision: The precision of the graphs.
        threads: The number of threads that decode pictures; None for one per core.
        memory_budget_bytes: The most memory that a call may use, as `Retriever` takes it.
    """

    bundle: Bundle
    engines: OpenEngines
    tokenizer: Tokenizer
    precision: str
    threads: int | None = None
    memory_budget_bytes: int | None = None

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        """The graphs in this precision."""
        return self.bundle.manifest.graphs_in(self.precision)

    def scorer(self, precision: str | None = None) -> scoring.PairScorer:
        """Scores pairs with the scorer's engine.

        Args:
            precision: The precision of the scorer; None for that of the other graphs.
        """
        precision = precision or self.precision
        inputs = self.bundle.manifest.graphs_in(precision)["scorer"].inputs
        return scoring.PairScorer(self.engines.opened("scorer", precision), inputs, self.memory_budget_bytes)

    def activate(self, logits: FloatArray) -> FloatArray:
        """Scores of logits.

        Raises:
            InputError: A logit is NaN or infinite.
        """
        scoring.check_finite(logits)
        return scoring.activate(logits, self.bundle.manifest.activation)

    def stored_precision(self, precision: str | None) -> str:
        """The precision in which encoded images are stored, by default that of the graphs if it is a narrow one.

        Raises:
            InputError: There is no such precision.
        """
        precision = precision or ("float16" if self.precision == "float16" else "float32")
        if precision not in GALLERY_PRECISIONS:
            raise InputError(f"gallery precision {precision!r}: expected one of {', '.join(GALLERY_PRECISIONS)}")
        return precision

    def reader(self, skip_broken: bool = False, max_megapixels: float = MAX_MEGAPIXELS) -> FeatureReader:
        """Reads images into region features; the arguments are those of `Retriever.encode_images`."""
        manifest = self.bundle.manifest
        return FeatureReader(
            manifest.pixels,
            manifest.feature_width,
            lambda pixels: self.engines["vision"].run({"pixels": pixels})["features"],
            self.threads,
            skip_broken,
            max_megapixels,
        )

    def encoder(self, precision: str, total: int | None = None) -> FeatureEncoder:
        """Encodes batches of features.

        Args:
            precision: How their tensors are stored.
            total: The maximum number of images, if it is known.
        """
        keep = partial(narrow, specs=self.bundle.manifest.image_tensors, precision=precision)
        return FeatureEncoder(self.engines["image"], image_columns(self.graphs["image"]), total, keep)

    def encode_images(
        self, images: Any, names: Any, reader: FeatureReader, precision: str, on_progress: Advance
    ) -> Encoded:
        """Encode images for a gallery; the arguments are checked here.

        Args:
            images: As `Retriever.encode_images` takes them.
            names: As `Retriever.encode_images` takes them.
            reader: Reads the images.
            precision: How their tensors are stored.
            on_progress: Receives the number of images in each batch that was encoded.

        Raises:
            InputError: As `Retriever.encode_images` raises it.
        """
        named, total = checked_images(images, names, reader.max_megapixels)
        with closing(reader.batches(images, named)) as batches:
            found = encode_batches(batches, lambda: self.encoder(precision, total), on_progress)
        given = len(found.encoded) + len(found.skipped)
        if named is not None and len(named) != given:
            raise InputError(f"{len(named)} names for {given} images: expected one each")
        return found

    def image_batches(
        self, images: Iterable[Any], names: Sequence[str], reader: FeatureReader, precision: str
    ) -> ImageBatches:
        """Encode images batch by batch. Close the generator if you may stop early.

        Args:
            images: As `Retriever.encode_images` takes them.
            names: The name of each image in messages; each is read after its image.
            reader: Reads the images.
            precision: How their tensors are stored.

        Yields:
            Each batch and its tensors, or None if all of its pictures were left out.
        """
        encoder: FeatureEncoder | None = None
        with closing(reader.batches(images, names)) as batches:
            for batch in batches:
                if batch.features is None:
                    yield batch, None
                    continue
                encoder = encoder or self.encoder(precision)
                yield batch, encoder.encode(batch.features)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode texts.

        Raises:
            InputError: A text is empty or too long.
        """
        return encode_texts(self.engines["text"], self.bundle, self.tokenizer.encode(texts))

    def image_gallery(self, images: Any) -> Gallery:
        """A gallery of images, with the defaults of `Retriever.encode_images`."""
        precision = self.stored_precision(None)
        from_encoded = self.encode_images(images, None, self.reader(), precision, lambda done: None)
        return gallery_of(from_encoded, self.bundle, precision)

    def text_gallery(self, texts: Any) -> Gallery:
        """A gallery of texts, as `Retriever.encode_texts` makes it."""
        listed = list(texts) if is_several(texts) and not isinstance(texts, str) else []
        if not listed:
            raise InputError(f"texts is {texts!r}: expected a list of at least one string")
        return Gallery(self.encode_texts(listed), listed, self.bundle)

    def as_gallery(self, corpus: Any, kind: str) -> Gallery:
        """A gallery of one kind: the caller's, if it fits this bundle, or one made of what the caller passed.

        Raises:
            InputError: It is of the other kind or of another bundle, or it cannot be made.
        """
        if not isinstance(corpus, Gallery):
            return self.image_gallery(corpus) if kind == "image" else self.text_gallery(corpus)
        if corpus.kind != kind:
            raise InputError(f"this is a gallery of {corpus.kind}s: expected {kind}s here")
        if corpus.fingerprint != self.bundle.fingerprint:
            raise InputError("this gallery was made by another bundle: encode it again with this retriever")
        return corpus

    def images_of(self, gallery: Gallery) -> EncodedImages:
        """The images of a gallery, in the form that the graphs read."""
        if not isinstance(gallery.encoded, EncodedImages):
            raise InputError("this is a gallery of texts: expected images here")
        return self.readable(gallery.encoded, gallery.precision)

    def readable(self, images: EncodedImages, stored: str) -> EncodedImages:
        """Images in the form that the graphs read: graphs in float16 read what is stored so, unchanged."""
        return images.halves if stored == self.precision == "float16" else images


def gallery_of(found: Encoded, bundle: Bundle, precision: str) -> Gallery:
    """The gallery of encoded images."""
    return Gallery(found.encoded, found.documents, bundle, precision, found.skipped, found.files)
