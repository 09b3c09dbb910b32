"""The networks and inputs of the benchmarks of pair scoring, and the exact logits that scores are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import is_current
from reference import reference_logits

from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.checkpoint import KEY, Origin, load_checkpoint
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.terminal import progress

WIDTH, REGIONS = 1024, 36
IMAGES, TEXTS = 128, 64
EXACT_PAIRS = (100, TEXTS)  # for the errors; with few texts, one differing image would change the top 10 a lot
RANKED = (1000, 8)  # images and texts of a ranking in two passes
TOP = 10


@dataclass(frozen=True)
class Inputs:
    """The input of every scoring method.

    Args:
        features: random features, float32 [I, R, 2048].
        captions: random captions.
        words: mean number of words per caption, start and end markers included.
    """

    features: np.ndarray
    captions: list[str]
    words: float


def make_inputs() -> tuple[Inputs, str]:
    """Random features and captions, and the JSON text of a tokenizer that knows their words."""
    rng = np.random.default_rng(0)
    words = [f"word{k}" for k in range(2000)]
    lengths = np.clip(np.round(8 + rng.gamma(2.0, 3.0, TEXTS)), 8, 30).astype(int)
    captions = [" ".join(rng.choice(words, length - 2)) for length in lengths]
    features = np.maximum(rng.standard_normal((IMAGES, REGIONS, 2048), dtype=np.float32), 0)
    return Inputs(features, captions, float(lengths.mean())), build_tokenizer([" ".join(words)], 1).to_str()


def many_features() -> np.ndarray:
    """Random features of as many images as a ranking in two passes has, float32 [I, R, 2048]."""
    features = np.random.default_rng(1).standard_normal((RANKED[0], REGIONS, 2048), dtype=np.float32)
    return np.maximum(features, 0)


def make_bundle(
    folder: Path, variant: str, inputs: Inputs, tokenizer: str, precisions: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    """Write a checkpoint of random weights and export it; reuses those of an earlier run that are still current.

    Args:
        folder: folder for both.
        variant: the network's variant.
        inputs: give the examples of the export.
        tokenizer: the tokenizer as JSON text.
        precisions: lower precisions to export beside float32.

    Returns:
        The paths of the checkpoint and of the bundle.
    """
    checkpoint, bundle = folder / f"{variant}.ckpt", folder / variant
    if not is_current(bundle, precisions):
        torch.manual_seed(0)
        config = ModelConfig(len(json.loads(tokenizer)["model"]["vocab"]), variant, WIDTH)
        model, examples = Camp(config), torch.from_numpy(inputs.features[:12])
        spread_weights(model)
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        origin = Origin(config, None, tokenizer, examples, inputs.captions[:24], {"note": "random weights"})
        torch.save({"state_dict": weights, KEY: origin.as_dict()}, checkpoint)
        export_bundle(checkpoint, bundle, precisions)
    return checkpoint, bundle


@torch.no_grad()
def spread_weights(model: Camp) -> None:
    """Scale random weights so that attention is not uniform and logits differ by about one, as in a trained network."""
    for name, weight in model.named_parameters():
        if "global" not in name and weight.ndim == 2 and "rnn" not in name:
            weight.mul_(2)
    last = [
        module for module in model.scorer.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1
    ][-1]
    last.weight.mul_(8)


@torch.no_grad()
def encode_by_torch(
    checkpoint: Path, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Encode both sides with PyTorch; the comparison does not include the encoders.

    Returns:
        V [I, R, d], T [T, N, d], the lengths of the captions [T], and the scorer's weights.
    """
    model, origin = load_checkpoint(checkpoint)
    tokens = origin.open_tokenizer().encode(inputs.captions)
    lengths = torch.from_numpy(tokens.lengths)
    V = model.image_encoder(torch.from_numpy(inputs.features))
    return V, model.text_encoder(torch.from_numpy(tokens.ids), lengths), lengths, model.scorer.state_dict()


def exact_logits(
    variant: str, weights: dict[str, torch.Tensor], V: torch.Tensor, T: torch.Tensor, lengths: torch.Tensor
) -> np.ndarray:
    """Logits [I, T] of the reference implementation in float64."""
    double = {name: tensor.double() for name, tensor in weights.items()}
    columns = [
        reference_logits(variant, double, V.double(), T[k : k + 1].double(), lengths[k : k + 1])
        for k in progress(range(len(T)), f"float64, {variant}")
    ]
    return torch.cat(columns, dim=1).numpy()


def differences(logits: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far logits are from float64.

    Args:
        logits: logits to check, [images, texts]. Only the images and texts that ``exact`` has are compared, and of
            errors only those of logits that are not minus infinity, which stands for a pair without one.
        exact: logits in float64, [i, t].

    Returns:
        The largest difference of a score, the share of each text's ten best images that agree, and the standard
        deviation of the exact logits.
    """
    found = logits[: exact.shape[0], : exact.shape[1]].astype(np.float64)
    best = [np.argsort(-matrix, axis=0, kind="stable")[:TOP] for matrix in (found, exact)]
    agreement = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(best[0].T, best[1].T, strict=True)])
    scores = [1 / (1 + np.exp(-matrix)) for matrix in (found, exact)]
    return {
        "max_score_error": float(np.abs(scores[0] - scores[1])[~np.isneginf(found)].max()),
        "top10_agreement": float(agreement),
        "logit_spread": float(exact.std()),
    }
