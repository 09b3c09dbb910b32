"""Encode each side once, then score the cross product in blocks: I images against T texts at a time.

Nothing here knows what the tensors mean: names, dtypes and shapes come from the bundle's contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle, TensorSpec
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, widen, words_axis
from camp_sdk.runtime.engine import Arrays, Engine
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import forget_pages
from camp_sdk.runtime.read_ahead import map_ahead
from camp_sdk.runtime.residency import resident_parts
from camp_sdk.runtime.tokenizer import Tokens

Logits = NDArray[np.float32]
Indices = NDArray[np.intp]
Key = TypeVar("Key")

# Of the shapes of a block that fit the bytes of `Engine.block_bytes`, these were the best or near it
# (benchmarks/results/pairs.json).
BLOCK_TEXTS = 4
BLOCK_IMAGES = 16
GROUP_TEXTS = 64
WORKING_COPIES = 12  # arrays of a block's size that engines hold at once, at most
ENCODE_TEXTS = 64
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


@dataclass(frozen=True)
class Blocks:
    """How many images and texts are scored in one call of the engine, how many texts are kept ready, and how many calls are
    on their way: one more than the engine has streams, so that a stream that is done finds the next; or one alone."""

    images: int
    texts: int
    group: int
    at_once: int


def plan_blocks(
    images: EncodedImages, texts: EncodedTexts, engine: Engine, memory_budget_bytes: int | None = None
) -> Blocks:
    """Blocks that fit the budget and are what the engine likes. Few images are shared among its streams, or the texts of
    fewer.

    Raises InputError if not even one pair fits the budget.
    """
    text_bytes = texts.item_bytes
    pair_bytes = images.item_bytes + text_bytes
    most_images, most_texts = engine.blocks or (BLOCK_IMAGES, BLOCK_TEXTS)
    pairs = most_images * most_texts if engine.blocks else engine.block_bytes // pair_bytes
    group = max(GROUP_TEXTS, most_texts)
    streams = engine.streams
    at_once = 1 if engine.callers == 1 else streams + 1
    if memory_budget_bytes is not None:
        working_bytes = 2 * WORKING_COPIES * pair_bytes
        at_once = max(1, min(at_once, memory_budget_bytes // working_bytes))
        pairs = min(pairs, memory_budget_bytes // (working_bytes * at_once))
        group = min(group, memory_budget_bytes // (4 * len(texts.tensors) * text_bytes))
        if pairs < 1 or group < 1:
            needed = max(working_bytes, 4 * len(texts.tensors) * text_bytes)
            raise InputError(f"memory_budget_bytes is {memory_budget_bytes}: a single pair needs {needed}")
    pairs = max(1, pairs)
    if engine.blocks is None:
        most_texts = max(most_texts, pairs // len(images))  # few images meet more texts at once instead
    share_texts = 1 if len(images) >= streams else streams
    block_texts = min(most_texts, -(-len(texts) // share_texts), group, pairs)
    block_images = min(most_images, max(1, pairs // block_texts), -(-len(images) // streams))
    return Blocks(block_images, block_texts, max(group, block_texts), at_once)


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


def batches(indices: Indices, size: int) -> Iterator[Indices]:
    """Consecutive parts of at most ``size`` indices."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
