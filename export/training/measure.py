"""The evaluation of `camp eval` by PyTorch: training monitors it, and bundles are compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camp_sdk.combination import Combination, choose_weight, combine
from camp_sdk.data import load_split
from camp_sdk.export.network.camp import Tensors
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.model import Camp
from camp_sdk.export.training.batches import CaptionDataset
from camp_sdk.export.training.image_store import decode_pictures
from camp_sdk.export.training.losses import Encoded, score_blocks
from camp_sdk.metrics import Metrics, evaluate_matrix

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 64


def measure_checkpoint(
    checkpoint: Path, data: Path, split: str, on_progress: Callable[[int], None] = lambda pairs: None
) -> tuple[Metrics, Metrics | None]:
    """Apply `measure_network` to a checkpoint and a split on disk, with the preprocessing of the checkpoint.

    Args:
        checkpoint: a checkpoint of training or of the import.
        data: the folder of the data set.
        split: the name of the split.
        on_progress: receives the number of pairs just scored.

    Raises:
        BundleError: the checkpoint or the split is broken.
    """
    model, origin = load_checkpoint(checkpoint)
    loaded = load_split(data, split)
    with tempfile.TemporaryDirectory(prefix="camp-") as cache:
        store: Any = loaded.images
        if origin.pixels:
            store = decode_pictures(loaded, origin.pixels, Path(cache) / f"{split}.npy")
        return measure_network(
            model, CaptionDataset(loaded, store, origin.open_tokenizer(), origin.pixels), on_progress
        )


def measure_network(
    model: Camp, data: CaptionDataset, on_progress: Callable[[int], None] = lambda pairs: None
) -> tuple[Metrics, Metrics | None]:
    """Metrics of the network and of its global vectors alone on a whole split.

    Args:
        model: left in the mode, training or evaluation, that it was in.
        data: the split.
        on_progress: receives the number of pairs of each block scored.

    Returns:
        Metrics of the network, and of its global vectors, or None if it has none.
    """
    logits, products = score_split(model, data, on_progress)
    beside = None if products is None else evaluate_matrix(products, data.owner)
    return evaluate_matrix(logits, data.owner), beside


def measure_stages(
    model: Camp, data: CaptionDataset, on_progress: Callable[[int], None] = lambda pairs: None
) -> tuple[Metrics, Metrics, Combination]:
    """As `measure_network`, for a network with global vectors, and the best combination of both scores.

    Args:
        model: left in the mode, training or evaluation, that it was in.
        data: the split.
        on_progress: receives the number of pairs of each block scored.
    """
    logits, products = score_split(model, data, on_progress)
    assert products is not None
    weight = choose_weight(logits, products, data.owner)
    both = evaluate_matrix(combine(logits, products, weight), data.owner)
    network, vectors = (evaluate_matrix(matrix, data.owner) for matrix in (logits, products))
    return network, vectors, Combination(weight, both)


@torch.no_grad()
def score_split(
    model: Camp, data: CaptionDataset, on_progress: Callable[[int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits [I, T] of a whole split, and the dot products of the global vectors [I, T] if there are any.

    Args:
        model: left in the mode, training or evaluation, that it was in.
        data: the split.
        on_progress: receives the number of pairs of each block scored.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    image = _encode_images(model, data, device)
    first, where = data.tokens.distinct()  # equal captions must tie, whichever block scores them
    order = np.argsort(data.tokens.lengths[first], kind="stable")
    logits = np.empty((len(data.store), len(data)), np.float32)
    vectors = np.empty_like(logits) if model.config.has_vectors else None
    for start in range(0, len(order), TEXTS_AT_ONCE):
        chosen = order[start : start + TEXTS_AT_ONCE]
        lengths = torch.from_numpy(data.tokens.lengths[first[chosen]]).to(device)
        text = _encode_texts(model, data, first[chosen], lengths)
        place = np.full(len(first), -1)
        place[chosen] = np.arange(len(chosen))
        columns = np.flatnonzero(place[where] >= 0)
        copies = place[where[columns]]
        if vectors is not None:
            products = (image["image.global"] @ text.pop("text.global").T).float().cpu().numpy()
            vectors[:, columns] = products[:, copies]
        logits[:, columns] = score_blocks(model.scorer, Encoded(image, text, lengths)).float().cpu().numpy()[:, copies]
        on_progress(logits.shape[0] * len(columns))
    model.train(was_training)
    return logits, vectors


def _encode_images(model: Camp, data: CaptionDataset, device: torch.device) -> Tensors:
    parts = []
    for start in range(0, len(data.store), IMAGES_AT_ONCE):
        rows = np.arange(start, min(start + IMAGES_AT_ONCE, len(data.store)))
        parts.append(model.encode_images(model.region_features(data.image_batch(rows).to(device))))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode_texts(model: Camp, data: CaptionDataset, chosen: np.ndarray, lengths: torch.Tensor) -> Tensors:
    tokens = torch.from_numpy(data.tokens.ids[chosen, : int(lengths.max())])
    return model.encode_texts(tokens.to(lengths.device), lengths)
