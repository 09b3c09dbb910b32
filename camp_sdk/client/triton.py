"""A client of Triton Inference Server with a repository of `camp export-triton`: encodes and ranks there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.arguments import is_whole, silent
from camp_sdk.client.triton_server import TritonModel, TritonServer
from camp_sdk.encoding import checked_images, encode_batches
from camp_sdk.features import FeatureReader, Image
from camp_sdk.gallery import Gallery, texts_of
from camp_sdk.model import gallery_of
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.ranking import Described, matches_of
from camp_sdk.results import Ranking
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import image_columns
from camp_sdk.runtime.encode import FeatureEncoder, encode_texts
from camp_sdk.runtime.encoded import narrow, widen
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.tokenizer import open_tokenizer


class TritonRanker:
    """Ranks images by text on a Triton server; texts are split into words and pictures decoded here.

    Use it as a context manager, or call `close`. One thread at a time may use it.

    Args:
        bundle: The bundle that the server's repository was exported from.
        url: The server's host and port, such as "127.0.0.1:8001" for gRPC and "127.0.0.1:8000" for HTTP.
        protocol: "grpc" or "http".
        timeout_s: How long a request may take.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        BundleError: The bundle is broken.
        MissingExtraError: tritonclient is not installed (extra ``triton``).
        BackendError: The server cannot be reached.
    """

    def __init__(
        self, bundle: str | Path | Bundle, url: str = "127.0.0.1:8001", protocol: str = "grpc", timeout_s: float = 60.0
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self._server = TritonServer(url, protocol, timeout_s)
        self._tokenizer = open_tokenizer(self.bundle)

    def __enter__(self) -> TritonRanker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def encode_images(
        self, images: Iterable[Image], names: Iterable[str | Path] | None = None, max_megapixels: float = MAX_MEGAPIXELS
    ) -> Gallery:
        """Encode images on the server, once for any number of rankings.

        Args:
            images: As `Retriever.encode_images` takes them.
            names: The name of each image, for `Match.document`.
            max_megapixels: Pictures with more megapixels are refused.

        Returns:
            The gallery, which a `Retriever` of the same bundle takes as well.

        Raises:
            InputError: As `Retriever.encode_images` raises it.
            BackendError: The server does not answer, or refuses a request.
        """
        manifest = self.bundle.manifest
        named, total = checked_images(images, names, max_megapixels)
        vision = self._engine("vision")
        reader = FeatureReader(
            manifest.pixels,
            manifest.feature_width,
            lambda pixels: vision.run({"pixels": pixels})["features"],
            None,
            False,
            max_megapixels,
        )
        keep = partial(narrow, specs=manifest.image_tensors, precision="float32")
        columns = image_columns(manifest.graphs["image"])
        found = encode_batches(
            reader.batches(images, named), lambda: FeatureEncoder(self._engine("image"), columns, total, keep), silent
        )
        return gallery_of(found, self.bundle, "float32")

    def encode_texts(self, texts: Iterable[str]) -> Gallery:
        """Encode texts on the server.

        Args:
            texts: At least one text, as `Retriever.encode_texts` takes them.

        Raises:
            InputError: A text is empty or too long, or there are no texts.
            BackendError: The server does not answer, or refuses a request.
        """
        listed = [] if isinstance(texts, str) else list(texts)
        if not listed:
            raise InputError(f"texts is {brief(texts)}: expected a list of at least one string")
        return Gallery(
            encode_texts(self._engine("text"), self.bundle, self._tokenizer.encode(listed)), listed, self.bundle
        )

    def rank(self, query: str, images: Gallery, top_k: int = 5) -> Ranking:
        """Find the best images for a text.

        Args:
            query: The text.
            images: What `encode_images` made.
            top_k: The most matches to return, 1 or more.

        Returns:
            The matches, best first, as `Retriever.rank` gives them without a shortlist.

        Raises:
            InputError: The query is refused as `Retriever.rank` refuses it, or an argument is wrong.
            BackendError: The server does not answer, or refuses a request.
        """
        if not is_whole(top_k) or top_k < 1:
            raise InputError(f"`top_k` is {brief(top_k)}: expected a whole number, 1 or more")
        if not isinstance(images, Gallery) or images.kind != "image" or images.fingerprint != self.bundle.fingerprint:
            raise InputError("`images` is not a gallery of images of this bundle: make one with encode_images")
        self._tokenizer.check_queries([query])
        text = texts_of(self.encode_texts([query]))
        feeds = self._feeds(images, text.take(np.array([0]))) | {"top_k": np.array([top_k], np.int64)}
        found = self._server.infer("rank", feeds)
        numbers = found["indices"]
        described = [Described(int(number), images.documents[number]) for number in numbers]
        unknown = self._tokenizer.encode([query]).unknown_words(0)
        return Ranking(matches_of((numbers, found["logits"]), found["scores"], described), unknown)

    def _feeds(self, images: Gallery, text: Mapping[str, Any]) -> Arrays:
        """What the scorer reads of the images and of the text."""
        tensors = widen(images.encoded.tensors) | dict(text)
        return {spec.name: tensors[spec.name] for spec in self.bundle.manifest.graphs["scorer"].inputs}

    def _engine(self, graph: str) -> TritonModel:
        return TritonModel(self._server, graph, self._tokenizer.max_tokens if graph == "text" else None)
