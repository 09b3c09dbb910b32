"""How large the blocks are in which pairs are scored: what fits the engine's caches and the caller's memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import InputError

# Of the shapes of a block that fit the bytes of `Engine.block_bytes`, these were the best or near it
# (benchmarks/results/pairs.json).
BLOCK_TEXTS = 4
BLOCK_IMAGES = 16
GROUP_TEXTS = 64
WORKING_COPIES = 12  # arrays of a block's size that engines hold at once, at most


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


def batches(indices: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Consecutive parts of at most ``size`` indices."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
