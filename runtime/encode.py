"""Encode each side once: texts in batches of similar length, features batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def encode_features(
    engine: Engine,
    batches_of_features: Iterable[NDArray[np.float32]],
    total: int | None,
    keep: Callable[[Arrays], Arrays] = lambda tensors: tensors,
) -> EncodedImages:
    """Run the image graph over batches of features [b, R, D]; room for ``total`` images is made once if it is known.

    The batches may hold fewer, where pictures were left out. keep: what to keep of a batch's tensors, narrower ones for
    example.
    """
    parts: dict[str, list[NDArray[np.generic]]] = {}
    whole: Arrays = {}
    done = 0
    for features in batches_of_features:
        out = keep(engine.run({"features": features}))
        if total is None:
            for name, array in out.items():
                parts.setdefault(name, []).append(array)
        else:
            whole = whole or {name: np.empty((total, *array.shape[1:]), array.dtype) for name, array in out.items()}
            for name, array in out.items():
                whole[name][done : done + len(array)] = array
        done += len(features)
    if whole:
        return EncodedImages({name: array[:done] for name, array in whole.items()})
    return EncodedImages({name: np.concatenate(arrays) for name, arrays in parts.items()})
