"""Encode texts and images separately, each once: texts in batches of similar length, features batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.blocks import batches
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, words_axis
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.tokenizer import Tokens

ENCODE_TEXTS = 64


def encode_texts(engine: Engine, bundle: Bundle, tokens: Tokens) -> EncodedTexts:
    """Run the text graph in batches of texts of similar length.

    Args:
        engine: the engine of the text graph.
        bundle: the bundle that holds the graph.
        tokens: the texts.

    Returns:
        The encoded texts, in the order of ``tokens``.
    """
    specs = bundle.manifest.text_tensors
    per_word = frozenset(spec.name for spec in specs if words_axis(spec))
    rows: dict[str, list[Any]] = {spec.name: [None] * len(tokens.lengths) for spec in specs}  # all filled below
    for batch in batches(np.argsort(tokens.lengths, kind="stable"), ENCODE_TEXTS):
        lengths = tokens.lengths[batch]
        out = engine.run({"tokens": tokens.ids[batch, : lengths.max()], "lengths": lengths})
        for name, slots in rows.items():
            for index, length, row in zip(batch, lengths, out[name], strict=True):
                slots[index] = row[:length] if name in per_word else row[None]
    # Stored in the dtypes of the float32 graph, whichever graph made them: any retriever of the bundle can score them.
    tensors = {spec.name: np.concatenate(rows[spec.name]).astype(spec.dtype, copy=False) for spec in specs}
    return EncodedTexts(tensors, tokens.lengths, per_word)


def image_feeds(features: NDArray[np.float32], columns: Mapping[str, int]) -> Arrays:
    """The inputs of the image graph, which are the columns of an image's features.

    Args:
        features: [I, R, D], float32.
        columns: the width of each input, in order, as `image_columns` returns them.

    Returns:
        Each input [I, R, width] by its name.
    """
    ends = np.cumsum(list(columns.values()))[:-1]
    parts = np.split(features, ends, axis=2)
    return {name: np.ascontiguousarray(part) for name, part in zip(columns, parts, strict=True)}


class FeatureEncoder:
    """Runs the image graph on batches of features and collects its outputs.

    Args:
        engine: the engine of the image graph.
        columns: the graph's inputs, as `image_columns` returns them.
        total: the maximum number of images, so that memory is allocated once; None if it is not known.
        keep: converts the tensors of a batch to those that are kept, for example to fewer bits.
    """

    def __init__(
        self, engine: Engine, columns: Mapping[str, int], total: int | None, keep: Callable[[Arrays], Arrays]
    ) -> None:
        self._engine, self._columns, self._total, self._keep = engine, columns, total, keep
        self._parts: dict[str, list[NDArray[np.generic]]] = {}
        self._whole: Arrays = {}
        self._done = 0

    def add(self, features: NDArray[np.float32]) -> None:
        """Encode the next images.

        Args:
            features: region features [b, R, D], float32.
        """
        for name, array in self.encode(features).items():
            if self._total is None:
                self._parts.setdefault(name, []).append(array)
                continue
            if name not in self._whole:
                self._whole[name] = np.empty((self._total, *array.shape[1:]), array.dtype)
            self._whole[name][self._done : self._done + len(array)] = array
        self._done += len(features)

    def encode(self, features: NDArray[np.float32]) -> Arrays:
        """Encode images without collecting them.

        Args:
            features: region features [b, R, D], float32.

        Returns:
            The tensors to keep, by name.
        """
        return self._keep(self._engine.run(image_feeds(features, self._columns)))

    def encoded(self) -> EncodedImages:
        """All images added so far, in order. Call it once, after the last `add`."""
        if self._whole:
            return EncodedImages({name: array[: self._done] for name, array in self._whole.items()})
        return EncodedImages({name: np.concatenate(arrays) for name, arrays in self._parts.items()})
