"""Score pairs of images and texts in blocks: I images against T texts at a time.

The code does not depend on what the tensors mean: names, dtypes and shapes come from the bundle's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.blocks import batches, plan_blocks
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, widen
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import forget_pages
from camp_sdk.runtime.residency import resident_parts
from camp_sdk.runtime.threads import map_ahead

Logits = NDArray[np.float32]
Indices = NDArray[np.intp]
Key = TypeVar("Key")
Part = TypeVar("Part", slice, Indices)
Block = tuple[Key, Mapping[str, Any] | Callable[[], Mapping[str, Any]], Mapping[str, Any]]

MERGE_IMAGES = 1 << 14
READ_AHEAD = 2  # blocks of images, from a store


@dataclass(frozen=True)
class PairScorer:
    """Scores pairs with the scorer's engine.

    Args:
        engine: the scorer's engine.
        inputs: the tensors that the scorer reads.
        memory_budget_bytes: the most memory a call may use beside the encoded images and texts; None for no limit but
            the size of a block.
    """

    engine: Engine
    inputs: tuple[TensorSpec, ...]
    memory_budget_bytes: int | None = None

    def run(self, images: Mapping[str, Any], text: Mapping[str, Any]) -> Logits:
        """Score a block of i images and t texts.

        Args:
            images: image tensors by name, as returned by `widen`.
            text: text tensors by name.

        Returns:
            Logits [i, t], float32.
        """
        return self.engine.run(feeds_of(self.inputs, {**images, **text}))["logits"]

    def run_each(self, blocks: Iterable[Block[Key]], at_once: int) -> Iterator[tuple[Key, Logits]]:
        """Score blocks, several at a time, and yield the results in order.

        Args:
            blocks: (key, image tensors, text tensors) of each block; image tensors may be a function that returns them,
                which is then called in the thread that scores them.
            at_once: the number of blocks in progress.

        Yields:
            (key, logits [i, t]) of each block.
        """
        callers = min(self.engine.callers, at_once)
        if callers == 1:
            yield from map(self._run_block, blocks)
            return
        with closing(map_ahead(self._run_block, blocks, callers, at_once - 1)) as found:
            yield from found

    def _run_block(self, block: Block[Key]) -> tuple[Key, Logits]:
        key, images, text = block
        return key, self.run(images() if callable(images) else images, text)

    def parts(self, images: EncodedImages) -> Iterator[tuple[int, EncodedImages]]:
        """Place images where the engine reads them fastest, in one or more parts (`resident_parts`).

        Narrowed images stay on the host, because they are widened block by block, and so do those that are read from a
        store.
        """
        if images.narrowed or images.streamed:
            return iter([(0, images)])
        names = [spec.name for spec in self.inputs]
        return resident_parts(self.engine, images, names, self.memory_budget_bytes)


def feeds_of(specs: Iterable[TensorSpec], tensors: Mapping[str, Any]) -> Arrays:
    """The tensors that a graph reads, converted to the dtypes that it reads; tensors an engine holds already have them.

    Args:
        specs: the graph's inputs.
        tensors: the tensors by name; others are ignored.
    """
    found = {spec.name: (tensors[spec.name], spec.dtype) for spec in specs}
    return {name: array if array.dtype == dtype else array.astype(dtype) for name, (array, dtype) in found.items()}


def iter_logits(
    scorer: PairScorer, images: EncodedImages, texts: EncodedTexts
) -> Iterator[tuple[slice, Indices, Logits]]:
    """Score all images against all texts, block by block.

    Texts are sorted by length, so that blocks contain little padding, and scored in groups: each group is scored
    against all images, from the first to the last. Working memory depends on the size of the blocks, not on the number
    of images or texts.

    Args:
        scorer: the scorer.
        images: the images to score.
        texts: the texts to score.

    Yields:
        (image slice, text indices, logits [i, t]) of each block.
    """
    engine = scorer.engine
    blocks = plan_blocks(images, texts, engine, scorer.memory_budget_bytes)
    order = np.argsort(texts.lengths, kind="stable")
    for first, there in scorer.parts(images):
        parts = [slice(k, min(k + blocks.images, len(there))) for k in range(0, len(there), blocks.images)]
        for group in batches(order, blocks.group):
            ready = [(chosen, engine.hold(texts.take(chosen))) for chosen in batches(group, blocks.texts)]
            for (part, chosen), logits in scorer.run_each(_blocks(scorer, there, parts, ready), blocks.at_once):
                yield slice(first + part.start, first + part.stop), chosen, logits
                if scorer.memory_budget_bytes is not None:
                    for array in images.tensors.values():
                        forget_pages(array)


def _blocks(
    scorer: PairScorer, images: EncodedImages, parts: list[slice], ready: list[tuple[Indices, Mapping[str, Any]]]
) -> Iterator[Block[tuple[slice, Indices]]]:
    """Combine every part of the images with every batch of a group's texts, in the cheapest order.

    Yields ((image slice, text indices), image tensors, text tensors).
    """
    if not images.narrowed and not images.streamed:
        for chosen, text_tensors in ready:  # blocks of one shape in a row: engines prepare for each change of shape
            for part in parts:
                yield (part, chosen), images.take(part), text_tensors
        return
    if len(ready) == 1 and scorer.engine.callers > 1:
        chosen, text_tensors = ready[0]
        yield from (((part, chosen), partial(_widened, images, part), text_tensors) for part in parts)
        return
    with closing(_widened_ahead(images, parts)) as widened:
        for part, tensors in widened:
            held = scorer.engine.hold(tensors)  # once for all texts of the group
            for chosen, text_tensors in ready:
                yield (part, chosen), held, text_tensors


def _widened(images: EncodedImages, part: slice | Indices) -> Arrays:
    return widen(images.take(part))


def _widened_ahead(images: EncodedImages, parts: Iterable[Part]) -> Generator[tuple[Part, Arrays], None, None]:
    """The float32 tensors of each part; those of a store are read while the part before them is scored."""
    if not images.streamed:
        yield from ((part, _widened(images, part)) for part in parts)
        return
    with closing(map_ahead(lambda part: (part, _widened(images, part)), parts, 1, READ_AHEAD)) as read:
        yield from read


def logit_matrix(
    scorer: PairScorer,
    images: EncodedImages,
    texts: EncodedTexts,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> Logits:
    """Score all images against all texts.

    Args:
        scorer: the scorer.
        images: the images to score.
        texts: the texts to score.
        on_block: receives the number of pairs scored in each block.

    Returns:
        Logits [I, T], float32.
    """
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
    """Find the best images of each text.

    Only the best images so far and a part of the gallery's logits are in memory at a time, whatever the gallery's size.

    Args:
        scorer: the scorer.
        images: the images to score.
        texts: the texts to score.
        top_k: the number of images to return for each text; fewer if there are fewer images.
        on_block: receives the number of pairs scored in each block.

    Returns:
        Image indices and logits, each [T, top_k], best first; equal logits are in gallery order.
    """
    top_k = min(top_k, len(images))
    found, logits = np.empty((len(texts), top_k), np.intp), np.empty((len(texts), top_k), np.float32)
    # For each text of the group: its best images so far, and the logits of later blocks.
    held: dict[int, list[tuple[Indices, Logits]]] = {}
    for part, chosen, block in iter_logits(scorer, images, texts):
        numbers = np.arange(part.start, part.stop)
        for text, column in zip(chosen.tolist(), block.T, strict=True):
            parts = held.setdefault(text, [])
            parts.append((numbers, column))
            if part.stop == len(images):
                found[text], logits[text] = _best_of(held.pop(text), top_k)
            elif len(parts) * len(numbers) > MERGE_IMAGES:
                held[text] = [_best_of(parts, top_k)]
        on_block(block.size)
    return found, logits


def _best_of(parts: list[tuple[Indices, Logits]], top_k: int) -> tuple[Indices, Logits]:
    numbers, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return best(numbers, logits, top_k)


def best(numbers: Indices, logits: Logits, top_k: int) -> tuple[Indices, Logits]:
    """Select the largest logits.

    Args:
        numbers: the number of each logit's image, [M].
        logits: the logits, [M].
        top_k: how many to select.

    Returns:
        The selected numbers and logits, largest logit first; equal logits stay in their order.

    Raises:
        InputError: a logit is NaN or infinite: it has no place in an order.
    """
    check_finite(logits)
    if top_k < len(logits):  # sorting all of them would take ten times as long as finding the smallest one to keep
        last = np.partition(-logits, top_k - 1)[top_k - 1]
        kept = ~(-logits > last)
        numbers, logits = numbers[kept], logits[kept]
    order = np.argsort(-logits, kind="stable")[:top_k]
    return numbers[order], logits[order]


def check_finite(logits: Logits) -> None:
    """Raise InputError if a logit is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise InputError("a logit is NaN or infinite: the features are too large for this precision")


def pair_logits(
    scorer: PairScorer,
    images: EncodedImages,
    texts: EncodedTexts,
    pairs: Indices,
    on_block: Callable[[int], None] = lambda pairs: None,
) -> Logits:
    """Score chosen pairs; each text is scored against all its images together.

    Args:
        scorer: the scorer.
        images: the images that the pairs refer to.
        texts: the texts that the pairs refer to.
        pairs: rows (image index, text index), [P, 2].
        on_block: receives the number of pairs scored in each block.

    Returns:
        Logits [P], float32.
    """
    logits = np.empty(len(pairs), np.float32)
    longest = texts.select([int(texts.lengths.argmax())])
    blocks = plan_blocks(images, longest, scorer.engine, scorer.memory_budget_bytes)
    for where, block in scorer.run_each(_chosen_blocks(scorer, images, texts, pairs, blocks.images), blocks.at_once):
        logits[where] = block[:, 0]
        on_block(block.size)
    return logits


def _chosen_blocks(
    scorer: PairScorer, images: EncodedImages, texts: EncodedTexts, pairs: Indices, max_images: int
) -> Iterator[Block[Indices]]:
    for text in np.unique(pairs[:, 1]):
        text_tensors = texts.take([int(text)])
        chosen = np.flatnonzero(pairs[:, 1] == text)
        parts = list(batches(chosen, min(max_images, -(-len(chosen) // scorer.engine.streams))))
        if scorer.engine.callers > 1:
            yield from ((where, partial(_widened, images, pairs[where, 0]), text_tensors) for where in parts)
            continue
        with closing(_widened_ahead(images, [pairs[where, 0] for where in parts])) as widened:
            for where, (_, tensors) in zip(parts, widened, strict=True):
                yield where, tensors, text_tensors


def activate(logits: Logits, activation: str) -> Logits:
    """Turn logits into scores; a higher score means a better match.

    Args:
        logits: the logits, float32, of any shape.
        activation: "sigmoid", or "none" for the logits themselves.

    Returns:
        Scores, float32, of the same shape; 0..1 for "sigmoid".
    """
    if activation == "none":
        return logits
    with np.errstate(over="ignore"):  # exp overflows to infinity where the score is 0 to the last bit
        return np.float32(1) / (np.float32(1) + np.exp(-logits))
