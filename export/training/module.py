"""CAMP as a Lightning module: its losses, its optimiser, and what it adds to a checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camp_sdk.combination import WEIGHT
from camp_sdk.export.network.backbones import EfficientNetLite, OnnxVision
from camp_sdk.export.network.checkpoint import KEY, Origin
from camp_sdk.export.network.frozen import FrozenNetwork
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.vocabulary import SPECIALS
from camp_sdk.export.training.batches import Batch, CaptionDataset, NeighbourSampler, OneCaptionSampler
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.losses import (
    CLAMP,
    Encoded,
    contrastive_loss,
    drift_loss,
    pair_loss,
    score_blocks,
    softmax_loss,
)
from camp_sdk.export.training.measure import measure_network, measure_stages
from camp_sdk.export.training.recipe import ONE_CYCLE
from camp_sdk.export.training.trainer import MONITOR, bars_of, log_line, progress_of
from camp_sdk.export.training.word_vectors import WordTable
from camp_sdk.runtime.errors import InputError

COMBINED = "combined_rsum"
DRIFT_WEIGHT = 0.1
LOG_INTERVAL_S = 60.0  # between two progress lines in a log file


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run as batches, and the pretrained vision network and word vectors if there are any."""

    train: CaptionDataset
    dev: CaptionDataset
    vision: EfficientNetLite | OnnxVision | FrozenNetwork | None = None
    words: WordTable | None = None


class CampTraining(lightning.LightningModule):
    """CAMP with its losses and its optimiser; its checkpoints hold everything that `load_checkpoint` needs.

    Args:
        origin: configuration, tokenizer, preprocessing and examples, saved with the weights.
        config: the run's options, completed.
        data: the run's splits, and its pretrained vision network.
        fusion_only: train the fusion alone, with encoders and attention frozen.

    Raises:
        InputError: an encoder cannot drop what the options ask it to.
    """

    def __init__(self, origin: Origin, config: TrainConfig, data: TrainingData, fusion_only: bool = False) -> None:
        super().__init__()
        self.model = Camp(origin.model)
        self.pretrained = data.vision is not None
        if data.vision is not None:
            self.model.vision = data.vision.train().requires_grad_(config.tune_vision)
        if self.model.vision is not None:  # convolutions in this layout take two thirds of the time, on CPUs too
            self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not type it
        set_dropout(self.model.image_encoder, "dropout", config.dropout)
        set_dropout(self.model.text_encoder, "word_dropout", config.word_dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=origin.model.global_vectors)
        self.origin, self.config, self.data, self.fusion_only = origin, config, data, fusion_only
        self.logged_at = time.monotonic()
        if fusion_only:
            self.requires_grad_(False)
            for part in self.model.scorer.fusion:
                self.model.scorer.get_submodule(part).requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        """Keep the batch statistics of a vision network that is frozen or pretrained."""
        if self.model.vision is not None and (self.fusion_only or self.pretrained):
            self.model.vision.eval()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends only on seed, epoch and devices, so that resuming does not change a run."""
        config, trainer = self.config, self.trainer
        share = trainer.global_rank, trainer.world_size
        order = OneCaptionSampler if config.captions == "one" else NeighbourSampler
        sampler = order(self.data.train, config.neighbours, config.seed, *share)
        return self.data.train.loader(int(config.batch_size), sampler, config.workers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of a step by step and device, so that a resumed run draws the same ones.

        Seeding by epoch would not suffice, because a resumed run draws additional numbers.
        """
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step + 7_919_000_003 * self.global_rank)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the progress of the epoch once a minute when the output is not a terminal."""
        bars = bars_of(self.trainer)
        if bars is None or bars.console.is_terminal or time.monotonic() < self.logged_at + LOG_INTERVAL_S:
            return
        self.logged_at = time.monotonic()
        epoch = f"epoch {self.current_epoch + 1} of {self.config.epochs}"
        log_line(self.trainer, f"{epoch}: step {batch_idx + 1} of {self.trainer.num_training_batches}")

    def training_step(self, batch: Batch) -> Tensor:
        """One step: hardest-negative loss and, where weighted, softmax loss on all pairs and contrastive loss."""
        image = self.model.encode_images(self.model.region_features(batch.images))
        text = self.model.encode_texts(forget_words(batch.tokens, self.config.unknown_words), batch.lengths)
        v, t = image.pop("image.global", None), text.pop("text.global", None)
        losses = self._pair_losses(Encoded(image, text, batch.lengths), batch.matches)
        if v is not None and t is not None:
            losses["global_loss"] = contrastive_loss(v, t, batch.matches, self.log_scale)
        self.log_dict(losses, prog_bar=True, batch_size=len(batch.lengths))
        weights = {
            "softmax_loss": float(self.config.softmax_weight),
            "drift_loss": DRIFT_WEIGHT,
            "global_loss": float(self.config.global_weight),
        }
        none = torch.zeros((), device=self.device)
        mean = sum((weights.get(name, 1) * loss for name, loss in losses.items()), none)
        return len(batch.lengths) * mean if self.config.reduction == "sum" else mean

    def _pair_losses(self, encoded: Encoded, matches: Tensor) -> dict[str, Tensor]:
        """The losses of the scorer, on the first `pair_batch` pairs of the batch, whose order is random."""
        scorer, count = self.model.scorer, self.config.pair_batch or len(matches)
        encoded, matches = encoded.first(count), matches[:count, :count]
        logits = score_blocks(scorer, encoded) if self.config.softmax_weight else None  # [count, count]
        candidates = self._candidates(len(matches))
        choice = candidates, self.config.negatives
        losses = {"pair_loss": pair_loss(scorer, encoded, matches, *choice, logits, self.config.loss)}
        if logits is not None:
            # Clamped like the pair loss: easy negatives would be pushed without end.
            losses["softmax_loss"] = softmax_loss(logits.clamp(-CLAMP, CLAMP), matches)
            losses["drift_loss"] = drift_loss(logits)
        return losses

    def _candidates(self, batch_size: int) -> int:
        """The number of hardest negatives to choose among: the whole batch at first, one after `warm_part` of the run.

        If several negatives are chosen for a pair, `choose_negatives` uses at least as many candidates. Training with
        only the hardest from the first step does not converge: while scores are noise, the hardest negative is a random
        one.
        """
        steps = self.config.warm_part * float(self.trainer.estimated_stepping_batches)
        left = max(0.0, 1 - self.global_step / steps) if steps else 0.0
        return max(1, round(batch_size * left**2))

    def is_measured(self) -> bool:
        """Whether this epoch ends with a measurement on the dev split."""
        epoch = self.current_epoch + 1
        return epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs

    def on_train_epoch_end(self) -> None:
        """Log recall on the dev split; rsum selects the best checkpoint and stops the run."""
        if not self.is_measured():
            return
        pairs = len(self.data.dev) * len(self.data.dev.store)
        with progress_of(self.trainer, "measuring on dev", pairs) as advance:
            stages = measure_stages if self.origin.model.backbone else measure_network
            measured = stages(self.model, self.data.dev, advance)
        # The first device's network is saved; batch statistics differ between devices.
        network, vectors, *both = self.trainer.strategy.broadcast(measured)
        found = {
            MONITOR: network.rsum,
            "text_to_image_r1": network.text_to_image.r1,
            "image_to_text_r1": network.image_to_text.r1,
        }
        if vectors:
            found["global_rsum"] = vectors.rsum
        if both:
            found |= {COMBINED: both[0].metrics.rsum, WEIGHT: both[0].weight}
        for name, value in found.items():
            self.log(name, value, sync_dist=True)
        r1 = f"R@1 {network.text_to_image.r1:.1f} text to image, {network.image_to_text.r1:.1f} image to text"
        log_line(
            self.trainer,
            f"epoch {self.current_epoch + 1} of {self.config.epochs}: rsum {network.rsum:.1f}, {r1}, on dev",
        )

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle learning rate, or Adam or SGD under one that falls in steps."""
        config, rate, decay = self.config, float(self.config.learning_rate), float(self.config.weight_decay)
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        if config.optimiser != ONE_CYCLE:
            return self._in_steps(trained, rate, decay)
        optimiser = torch.optim.AdamW(trained, rate, weight_decay=decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.15)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _in_steps(self, trained: list[nn.Parameter], rate: float, decay: float) -> Any:
        """Adam, or SGD with the momentum of the released code, and a rate that falls every `decay_every` epochs."""
        optimiser: torch.optim.Optimizer
        if self.config.optimiser == "sgd":
            optimiser = torch.optim.SGD(trained, rate, momentum=0.9, nesterov=True, weight_decay=decay)
        else:
            optimiser = torch.optim.Adam(trained, rate, weight_decay=decay)
        if not (epochs := int(self.config.decay_every)):
            return optimiser
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, epochs, gamma=0.1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that rebuilds the model without this class."""
        # Lightning keeps the metrics of the last measurement, which are not those of an epoch without one.
        metrics = self.trainer.callback_metrics.items() if self.is_measured() else ()
        dev = {name: float(value) for name, value in metrics}
        run = {"epoch": self.current_epoch, "dev": dev, "on_devices": self.trainer.world_size}
        checkpoint[KEY] = replace(self.origin, training=self.origin.training | run).as_dict()


def set_dropout(encoder: nn.Module, option: str, rate: float) -> None:
    """Set the rate of an encoder's `dropout`.

    Args:
        encoder: the encoder; one of the user's may have no such module, or a rate of its own.
        option: the option that asks for the rate, for messages.
        rate: the share to drop, 0..1; 0 if the option was not given.

    Raises:
        InputError: the rate is above zero, and the encoder has no dropout.
    """
    if not rate:
        return
    dropout = getattr(encoder, "dropout", None)
    if not isinstance(dropout, nn.Dropout):
        raise InputError(f"`{option}` {rate}: {type(encoder).__name__} has no dropout")
    dropout.p = rate


def forget_words(tokens: Tensor, part: float) -> Tensor:
    """Replace a random part of the words by `<unk>`, so that the network is trained on unknown words.

    The words are drawn again at each step. Markers and padding stay.

    Args:
        tokens: [T, N] int64.
        part: the part of the words to replace, 0..1.
    """
    if not part:
        return tokens
    drawn = torch.rand(tokens.shape, device=tokens.device) < part
    return tokens.masked_fill(drawn & (tokens >= len(SPECIALS)), SPECIALS.index("<unk>"))
