"""Choose the size of the blocks in which pairs are scored, to fit the caches of the engine and the memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import InputError

# Of the block shapes that fit `Engine.block_bytes`, these were the fastest or close to it
# (benchmarks/results/pairs.json).
BLOCK_TEXTS = 4
BLOCK_IMAGES = 16
GROUP_TEXTS = 64
WORKING_COPIES = 12  # the most arrays of a block's size that engines hold at once


@dataclass(frozen=True)
class Blocks:
    """The sizes of the blocks in which pairs are scored.

    Args:
        images: the number of images scored in one call of the engine.
        texts: the number of texts scored in one call of the engine.
        group: the number of texts kept ready to be scored.
        at_once: the number of calls in progress: one more than the engine has streams, so that a free stream finds its
            next call ready; 1 for an engine with a single caller, or if the memory budget allows no more.
    """

    images: int
    texts: int
    group: int
    at_once: int


def plan_blocks(
    images: EncodedImages, texts: EncodedTexts, engine: Engine, memory_budget_bytes: int | None = None
) -> Blocks:
    """Choose blocks that suit the engine and fit the budget.

    The images are shared among the engine's streams; if there are fewer images than streams, the texts are shared as
    well.

    Args:
        images: the images to score.
        texts: the texts to score.
        engine: the scorer's engine.
        memory_budget_bytes: the most memory a call may use beside the encoded images and texts; None for no limit.

    Raises:
        InputError: not even one pair fits the budget.
    """
    text_bytes = texts.item_bytes
    pair_bytes = images.item_bytes + text_bytes
    max_images, max_texts = engine.blocks or (BLOCK_IMAGES, BLOCK_TEXTS)
    pairs = max_images * max_texts if engine.blocks else engine.block_bytes // pair_bytes
    group = max(GROUP_TEXTS, max_texts)
    streams = engine.streams
    at_once = 1 if engine.callers == 1 else streams + 1
    if memory_budget_bytes is not None:
        working_bytes = 2 * WORKING_COPIES * pair_bytes
        at_once = max(1, min(at_once, memory_budget_bytes // working_bytes))
        pairs = min(pairs, memory_budget_bytes // (working_bytes * at_once))
        group = min(group, memory_budget_bytes // (4 * len(texts.tensors) * text_bytes))
        if pairs < 1 or group < 1:
            needed = max(working_bytes, 4 * len(texts.tensors) * text_bytes)
            raise InputError(f"`memory_budget_bytes` is {memory_budget_bytes}: a single pair needs {needed} bytes")
    pairs = max(1, pairs)
    if engine.blocks is None:
        max_texts = max(max_texts, pairs // len(images))  # blocks of few images take more texts instead
    share_texts = 1 if len(images) >= streams else streams
    block_texts = min(max_texts, -(-len(texts) // share_texts), group, pairs)
    block_images = min(max_images, max(1, pairs // block_texts), -(-len(images) // streams))
    return Blocks(block_images, block_texts, max(group, block_texts), at_once)


def batches(indices: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Split indices into consecutive parts of at most ``size``."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
