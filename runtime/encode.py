"""Encode each side once: texts in batches of similar length, features batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.blocks import batches
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, words_axis
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.tokenizer import Tokens

ENCODE_TEXTS = 64


def encode_texts(engine: Engine, bundle: Bundle, tokens: Tokens) -> EncodedTexts:
    """Run the text graph in batches of similar length; the result is in the order given."""
    specs = bundle.manifest.text_tensors
    per_word = frozenset(spec.name for spec in specs if words_axis(spec))
    rows: dict[str, list[NDArray[np.generic]]] = {spec.name: [None] * len(tokens.lengths) for spec in specs}  # type: ignore[list-item]  # every slot is filled below
    for batch in batches(np.argsort(tokens.lengths, kind="stable"), ENCODE_TEXTS):
        lengths = tokens.lengths[batch]
        out = engine.run({"tokens": tokens.ids[batch, : lengths.max()], "lengths": lengths})
        for name, slots in rows.items():
            for index, length, row in zip(batch, lengths, out[name], strict=True):
                slots[index] = row[:length] if name in per_word else row[None]
    # Kept as the float32 graphs make them, whichever made them: any retriever of the bundle can score them.
    tensors = {spec.name: np.concatenate(rows[spec.name]).astype(spec.dtype, copy=False) for spec in specs}
    return EncodedTexts(tensors, tokens.lengths, per_word)


class FeatureEncoder:
    """Runs the image graph over batches of features and collects what it makes.

    Args:
        engine: of the image graph.
        total: how many images there will be at most, so that room is made once; None if that is not known.
        keep: what to keep of a batch's tensors, narrower ones for example.
    """

    def __init__(self, engine: Engine, total: int | None, keep: Callable[[Arrays], Arrays]) -> None:
        self._engine, self._total, self._keep = engine, total, keep
        self._parts: dict[str, list[NDArray[np.generic]]] = {}
        self._whole: Arrays = {}
        self._done = 0

    def add(self, features: NDArray[np.float32]) -> None:
        """Encode the next images, features [b, R, D]."""
        out = self._keep(self._engine.run({"features": features}))
        for name, array in out.items():
            if self._total is None:
                self._parts.setdefault(name, []).append(array)
                continue
            if name not in self._whole:
                self._whole[name] = np.empty((self._total, *array.shape[1:]), array.dtype)
            self._whole[name][self._done : self._done + len(array)] = array
        self._done += len(features)

    def encoded(self) -> EncodedImages:
        """Every image added, in order. The encoder is not used again."""
        if self._whole:
            return EncodedImages({name: array[: self._done] for name, array in self._whole.items()})
        return EncodedImages({name: np.concatenate(arrays) for name, arrays in self._parts.items()})
