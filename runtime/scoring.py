"""Score the cross product in blocks: I images against T texts at a time.

Nothing here knows what the tensors mean: names, dtypes and shapes come from the bundle's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.blocks import GROUP_TEXTS, batches, plan_blocks
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, widen
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.files import forget_pages
from camp_sdk.runtime.manifest import TensorSpec
from camp_sdk.runtime.residency import resident_parts
from camp_sdk.runtime.threads import map_ahead

Logits = NDArray[np.float32]
Indices = NDArray[np.intp]
Key = TypeVar("Key")

MERGE_IMAGES = 1 << 14
NEAREST_BYTES = 64 << 20


@dataclass(frozen=True)
class PairScorer:
    """What scores pairs: the scorer's engine, the tensors it reads, and bounds.

    memory_budget_bytes: what a call may hold beside the encoded images and texts themselves; None is no bound but the block's.
    """

    engine: Engine
    inputs: tuple[TensorSpec, ...]
    memory_budget_bytes: int | None = None

    def run(self, images: Mapping[str, Any], text: Mapping[str, Any]) -> Logits:
        """Logits [i, t] of a block; image tensors as `widen` gives them."""
        return self.engine.run(feeds_of(self.inputs, {**images, **text}))["logits"]

    def run_each(
        self, meetings: Iterable[tuple[Key, Mapping[str, Any], Mapping[str, Any]]], at_once: int
    ) -> Iterator[tuple[Key, Logits]]:
        """`run` of every (key, images, text), in order, each with its key; ``at_once`` of them are on their way."""
        callers = min(self.engine.callers, at_once)
        if callers == 1:
            yield from ((key, self.run(images, text)) for key, images, text in meetings)
            return
        with closing(map_ahead(lambda m: (m[0], self.run(m[1], m[2])), meetings, callers, at_once - 1)) as found:
            yield from found

    def parts(self, images: EncodedImages) -> Iterator[tuple[int, EncodedImages]]:
        """Images where the engine wants them, a part at a time (`resident_parts`); narrowed ones stay and are widened."""
        if images.narrowed:
            return iter([(0, images)])
        names = [spec.name for spec in self.inputs]
        return resident_parts(self.engine, images, names, self.memory_budget_bytes)


def feeds_of(specs: Iterable[TensorSpec], tensors: Mapping[str, Any]) -> Arrays:
    """The tensors a graph reads, in the precision it reads them in. What an engine holds already is."""
    found = {spec.name: (tensors[spec.name], spec.dtype) for spec in specs}
    return {name: array if array.dtype == dtype else array.astype(dtype) for name, (array, dtype) in found.items()}


def iter_logits(
    scorer: PairScorer, images: EncodedImages, texts: EncodedTexts
) -> Iterator[tuple[slice, Indices, Logits]]:
    """Score all images against all texts, block by block: (image slice, text indices, logits [i, t]) at a time.

    Texts are taken in order of length, so that little of a block is padding, a group at a time: each group meets all images
    from the first to the last. Working memory depends on the blocks, not on how many images or texts there are.
    """
    engine = scorer.engine
    blocks = plan_blocks(images, texts, engine, scorer.memory_budget_bytes)
    order = np.argsort(texts.lengths, kind="stable")
    for first, there in scorer.parts(images):
        parts = [slice(k, min(k + blocks.images, len(there))) for k in range(0, len(there), blocks.images)]
        for group in batches(order, blocks.group):
            ready = [(chosen, engine.hold(texts.take(chosen))) for chosen in batches(group, blocks.texts)]
            for (part, chosen), logits in scorer.run_each(_meetings(scorer, there, parts, ready), blocks.at_once):
                yield slice(first + part.start, first + part.stop), chosen, logits
                if scorer.memory_budget_bytes is not None:
                    for array in images.tensors.values():
                        forget_pages(array)


def _meetings(
    scorer: PairScorer, images: EncodedImages, parts: list[slice], ready: list[tuple[Indices, Mapping[str, Any]]]
) -> Iterator[tuple[tuple[slice, Indices], Mapping[str, Any], Mapping[str, Any]]]:
    """Every part of the images with every batch of a group's texts, in the order that costs least: which, and tensors."""
    if not images.narrowed:
        for chosen, text_tensors in ready:  # block after block of one shape: engines prepare anew for another
            for part in parts:
                yield (part, chosen), images.take(part), text_tensors
        return
    for part in parts:
        tensors = scorer.engine.hold(widen(images.take(part)))  # once for all texts of the group
        for chosen, text_tensors in ready:
            yield (part, chosen), tensors, text_tensors


def logit_matrix(
    scorer: PairScorer,
    images: EncodedImages,
    texts: EncodedTexts,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> Logits:
    """Logits [I, T] of all images against all texts; ``on_block`` hears how many pairs each block scored."""
    logits = np.empty((len(images), len(texts)), np.float32)
    for part, chosen, block in iter_logits(scorer, images, texts):
        logits[part, chosen] = block
        on_block(block.size)
    return logits


def best_images(
    scorer: PairScorer,
    images: EncodedImages,
    texts: EncodedTexts,
    top_k: int,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> tuple[Indices, Logits]:
    """The ``top_k`` best images of each text, best first: indices and logits, [T, top_k]; equal logits in gallery order.
    ``on_block`` hears how many pairs each block scored.

    No more than the best so far and a part of the gallery's logits are held at a time, whatever the gallery's size.
    """
    top_k = min(top_k, len(images))
    found, logits = np.empty((len(texts), top_k), np.intp), np.empty((len(texts), top_k), np.float32)
    held: dict[
        int, list[tuple[Indices, Logits]]
    ] = {}  # of each text of the group: its best so far, and what came since
    for part, chosen, block in iter_logits(scorer, images, texts):
        numbers = np.arange(part.start, part.stop)
        for text, column in zip(chosen.tolist(), block.T, strict=True):
            mine = held.setdefault(text, [])
            mine.append((numbers, column))
            if part.stop == len(images):
                found[text], logits[text] = _best_of(held.pop(text), top_k)
            elif len(mine) * len(numbers) > MERGE_IMAGES:
                held[text] = [_best_of(mine, top_k)]
        on_block(block.size)
    return found, logits


def _best_of(parts: list[tuple[Indices, Logits]], top_k: int) -> tuple[Indices, Logits]:
    numbers, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return best(numbers, logits, top_k)


def best(numbers: Indices, logits: Logits, top_k: int) -> tuple[Indices, Logits]:
    """The ``top_k`` largest logits, best first, and their numbers; what came first stands first among equals."""
    if top_k < len(logits):  # sorting them all would take ten times as long as finding the last to keep
        last = np.partition(-logits, top_k - 1)[top_k - 1]
        kept = ~(-logits > last)
        numbers, logits = numbers[kept], logits[kept]
    order = np.argsort(-logits, kind="stable")[:top_k]
    return numbers[order], logits[order]


def nearest(queries: Logits, items: Logits, count: int, memory_budget_bytes: int | None = None) -> Indices:
    """The ``count`` items whose vectors have the largest dot products with each query's, [Q, count], in the items' order.

    queries [Q, d], items [M, d]; products are made for so many queries at a time as fit the budget, and for one at least:
    16 bytes an item.
    """
    at_once = min(memory_budget_bytes or NEAREST_BYTES, NEAREST_BYTES) // (16 * len(items))
    rows = [
        np.argpartition(-(queries[part] @ items.T), count - 1, axis=1)[:, :count]
        for part in batches(np.arange(len(queries)), min(max(1, at_once), GROUP_TEXTS))
    ]
    return np.sort(np.concatenate(rows), axis=1)


def pair_logits(
    scorer: PairScorer,
    images: EncodedImages,
    texts: EncodedTexts,
    pairs: Indices,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> Logits:
    """Logits [P] of chosen pairs, rows (image index, text index) of ``pairs`` [P, 2]; each text meets its images at once.
    ``on_block`` hears how many pairs each block scored."""
    logits = np.empty(len(pairs), np.float32)
    longest = texts.select([int(texts.lengths.argmax())])
    blocks = plan_blocks(images, longest, scorer.engine, scorer.memory_budget_bytes)
    for where, block in scorer.run_each(_chosen_meetings(scorer, images, texts, pairs, blocks.images), blocks.at_once):
        logits[where] = block[:, 0]
        on_block(block.size)
    return logits


def _chosen_meetings(
    scorer: PairScorer, images: EncodedImages, texts: EncodedTexts, pairs: Indices, most_images: int
) -> Iterator[tuple[Indices, Mapping[str, Any], Mapping[str, Any]]]:
    for text in np.unique(pairs[:, 1]):
        text_tensors = texts.take([int(text)])
        chosen = np.flatnonzero(pairs[:, 1] == text)
        for where in batches(chosen, min(most_images, -(-len(chosen) // scorer.engine.streams))):
            yield where, widen(images.take(pairs[where, 0])), text_tensors


def activate(logits: Logits, activation: str) -> Logits:
    """Scores from logits, in float32: sigmoid (0..1), or the logits themselves; higher means a better match."""
    if activation == "none":
        return logits
    with np.errstate(over="ignore"):  # exp overflows to infinity where the score is 0 to the last bit
        return np.float32(1) / (np.float32(1) + np.exp(-logits))
