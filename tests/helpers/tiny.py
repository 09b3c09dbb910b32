"""Tiny models and data sets: built here, in seconds, from fixed seeds; no test needs a file that was made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from camp_sdk.export.network.checkpoint import KEY, Origin
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.runtime.manifest import PixelSpec

CAPTIONS = [
    "a small red circle above a large blue star",
    "a large blue star and a small red circle",
    "a red circle",
    "two dogs run on a wide sandy beach near the sea while a man in a red hat watches them from the pier",
    "star",
    "a small red star, left of a large blue circle!",
]
WIDTH = 16
FEATURE_WIDTH = 12


def tiny_origin(variant: str, pictures: bool) -> Origin:
    """A configuration with a real tokenizer and random examples: pictures 96 x 96, or features [R = 5, D = 12]."""
    tokenizer = build_tokenizer(CAPTIONS, min_count=1)
    rng = np.random.default_rng(7)
    if pictures:
        examples = torch.from_numpy(rng.integers(0, 256, (12, 96, 96, 3), dtype=np.uint8))
    else:
        examples = torch.from_numpy(rng.standard_normal((12, 5, FEATURE_WIDTH), dtype=np.float32))
    return Origin(
        model=ModelConfig(tokenizer.get_vocab_size(), variant, WIDTH, FEATURE_WIDTH, 8, 96 if pictures else 0),
        pixels=PixelSpec(96, 96, (0.5, 0.4, 0.3), (0.25, 0.25, 0.5), (6, 6)) if pictures else None,
        tokenizer=tokenizer.to_str(),
        example_images=examples,
        example_captions=CAPTIONS,
        training={"note": "random weights"},
    )


def tiny_model(variant: str, pictures: bool = False, seed: int = 0) -> Camp:
    """A random network in evaluation mode; weights are spread so that scores differ between pairs."""
    torch.manual_seed(seed)
    model = Camp(tiny_origin(variant, pictures).model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("weight") and weight.ndim == 2:
                weight.mul_(2.5)
    return model.eval()


def save_tiny_checkpoint(path: Path, variant: str, pictures: bool, seed: int = 0) -> Path:
    """What export/train.py would have saved, without the training."""
    weights = {f"model.{name}": tensor for name, tensor in tiny_model(variant, pictures, seed).state_dict().items()}
    torch.save({"state_dict": weights, KEY: tiny_origin(variant, pictures).as_dict()}, path)
    return path


def files_of(folder: Path) -> list[Path]:
    """Every file of a folder and of those in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
