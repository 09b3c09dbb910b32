"""Training runs of a few seconds: tiny options and features, runs that are killed, what a checkpoint file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camp_sdk.export.training.batches import NeighbourSampler
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.module import CampTraining
from camp_sdk.export.training.run import run_training

COLOURS, SIZES = ("red", "blue", "green", "pink"), ("small", "large", "tall", "flat")


def tiny_config(data: Path, output: Path, **options: Any) -> TrainConfig:
    """A run of two epochs with a network of width 8 on one device."""
    sizes = {"width": 8, "word_width": 8, "epochs": 2, "batch_size": 4, "devices": "1"}
    sizes |= {} if options.get("start") else {"min_count": 1}
    return TrainConfig(data, output, **{**sizes, **options})


def write_features(folder: Path) -> Path:
    """Write features of 16 images with three regions of width six, five captions each, as train and dev."""
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        np.save(folder / f"{split}_ims.npy", rng.standard_normal((16, 3, 6), dtype=np.float32))
        captions = [f"a {size} {colour} thing, no. {k}" for size in SIZES for colour in COLOURS for k in range(5)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


def run_until_killed(config: TrainConfig, cache: Path, folder: Path, step: int) -> None:
    """A run that dies before a step of the stage that writes into ``folder``."""
    real = CampTraining.training_step

    def die(self: CampTraining, batch: Any) -> torch.Tensor:
        if (self.config.output, self.global_step) == (folder, step):
            raise ConnectionAbortedError("killed")
        return real(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CampTraining, "training_step", die)
        with pytest.raises(ConnectionAbortedError, match="killed"):
            run_training(config, cache)


def saved(checkpoint: Path) -> dict[str, Any]:
    """Everything that a checkpoint file holds."""
    loaded: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return loaded


class Owners:
    """What the sampler asks of a data set: whose each caption is."""

    def __init__(self, captions_per_image: list[int]) -> None:
        self.owner = np.repeat(np.arange(len(captions_per_image)), captions_per_image)

    def __len__(self) -> int:
        return len(self.owner)


def drawn_by(sampler: NeighbourSampler, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The captions of an epoch in a sampler's order, and the images that they belong to."""
    sampler.set_epoch(epoch)
    captions = np.array(list(sampler))
    assert len(captions) == len(sampler)
    return captions, sampler.owner[captions]
