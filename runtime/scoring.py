"""Encode each side once, then score the cross product in blocks: I images against T texts at a time.

Nothing here knows what the tensors mean: names, dtypes and shapes come from the bundle's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, words_axis
from camp_sdk.runtime.engines import Arrays, Engine
from camp_sdk.runtime.tokenizer import Tokens

Logits = NDArray[np.float32]

# The scorer makes a few intermediates as large as the pairs' own vectors; blocks of about this many bytes of those stay near
# the processor's caches. A rule of thumb: not yet measured with ONNX Runtime.
BLOCK_BYTES = 8 << 20
BLOCK_TEXTS = 32
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
    return EncodedTexts({name: np.concatenate(slots) for name, slots in rows.items()}, tokens.lengths, per_word)


def encode_features(
    engine: Engine, batches_of_features: Iterable[NDArray[np.float32]], total: int | None
) -> EncodedImages:
    """Run the image graph over batches of features [b, R, D]; ``total`` images are allocated once if it is known."""
    parts: dict[str, list[NDArray[np.generic]]] = {}
    whole: Arrays = {}
    done = 0
    for features in batches_of_features:
        out = engine.run({"features": features})
        if total is None:
            for name, array in out.items():
                parts.setdefault(name, []).append(array)
        else:
            whole = whole or {name: np.empty((total, *array.shape[1:]), array.dtype) for name, array in out.items()}
            for name, array in out.items():
                whole[name][done : done + len(array)] = array
        done += len(features)
    return EncodedImages(whole or {name: np.concatenate(arrays) for name, arrays in parts.items()})


def iter_logits(
    scorer: Engine, inputs: Sequence[str], images: EncodedImages, texts: EncodedTexts
) -> Iterator[tuple[slice, NDArray[np.intp], Logits]]:
    """Score all images against all texts, block by block: (image slice, text indices, logits [i, t]) at a time.

    Texts are taken in order of length, so that little of a block is padding; working memory depends on the block, not on
    how many images or texts there are. ``inputs`` are the names of the tensors the scorer reads.
    """
    block_images, block_texts = block_shape(images, texts)
    for chosen in batches(np.argsort(texts.lengths, kind="stable"), block_texts):
        text_tensors = texts.take(chosen)
        for start in range(0, len(images), block_images):
            part = slice(start, min(start + block_images, len(images)))
            yield part, chosen, _run_scorer(scorer, inputs, images.take(part) | text_tensors)


def logit_matrix(
    scorer: Engine,
    inputs: Sequence[str],
    images: EncodedImages,
    texts: EncodedTexts,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> Logits:
    """Logits [I, T] of all images against all texts; ``on_block`` hears how many pairs each block scored."""
    logits = np.empty((len(images), len(texts)), np.float32)
    for part, chosen, block in iter_logits(scorer, inputs, images, texts):
        logits[part, chosen] = block
        on_block(block.size)
    return logits


def pair_logits(
    scorer: Engine, inputs: Sequence[str], images: EncodedImages, texts: EncodedTexts, pairs: NDArray[np.intp]
) -> Logits:
    """Logits [P] of chosen pairs, rows (image index, text index) of ``pairs`` [P, 2]; each text meets its images at once."""
    logits = np.empty(len(pairs), np.float32)
    limit = block_shape(images, texts)[0]
    for text in np.unique(pairs[:, 1]):
        text_tensors = texts.take([int(text)])
        for where in batches(np.flatnonzero(pairs[:, 1] == text), limit):
            block = _run_scorer(scorer, inputs, images.take(pairs[where, 0]) | text_tensors)
            logits[where] = block[:, 0]
    return logits


def activate(logits: Logits, activation: str) -> Logits:
    """Scores from logits, in float32: sigmoid (0..1), or the logits themselves; higher means a better match."""
    if activation == "none":
        return logits
    with np.errstate(over="ignore"):  # exp overflows to infinity where the score is 0 to the last bit
        return np.float32(1) / (np.float32(1) + np.exp(-logits))


def block_shape(images: EncodedImages, texts: EncodedTexts) -> tuple[int, int]:
    """How many images and texts to score in one call of the scorer."""
    pairs = max(1, BLOCK_BYTES // (images.item_bytes + texts.item_bytes))
    block_texts = min(BLOCK_TEXTS, len(texts), pairs)
    return max(1, pairs // block_texts), block_texts


def batches(indices: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Consecutive parts of at most ``size`` indices."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _run_scorer(scorer: Engine, inputs: Sequence[str], tensors: Arrays) -> Logits:
    return scorer.run({name: tensors[name] for name in inputs})["logits"]
