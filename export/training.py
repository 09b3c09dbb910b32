"""The training loop, by Lightning: checkpoints, resume, mixed precision, several devices, logs, early stopping."""

from __future__ import annotations

import csv
import ctypes
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camp_sdk.export.backbones import EfficientNetLite, OnnxVision
from camp_sdk.export.batches import Batch, CaptionDataset, NeighbourSampler
from camp_sdk.export.checkpoint import KEY, Origin
from camp_sdk.export.losses import CLAMP, contrastive_loss, drift_loss, pair_loss, score_blocks, softmax_loss
from camp_sdk.export.measure import features_of, measure_network
from camp_sdk.export.model import Camp
from camp_sdk.export.networks import Tensors
from camp_sdk.export.train import TrainConfig
from camp_sdk.export.vocabulary import SPECIALS
from camp_sdk.runtime.files import write_aside

CLIP_NORM = 2.0
DRIFT_WEIGHT = 0.1
TELL_S = 60.0  # between two lines of a log file


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run, as batches come from them, and the pretrained vision network if there is one."""

    train: CaptionDataset
    dev: CaptionDataset
    vision: EfficientNetLite | OnnxVision | None = None


class CampTraining(lightning.LightningModule):
    """CAMP with its losses and its optimiser; the checkpoint carries what `load_checkpoint` needs."""

    def __init__(self, origin: Origin, config: TrainConfig, data: TrainingData, fusion_only: bool = False) -> None:
        super().__init__()
        self.model = Camp(origin.model)
        self.pretrained = data.vision is not None
        if data.vision is not None:
            self.model.vision = data.vision.train().requires_grad_(config.tune_vision)
        if self.model.vision is not None:  # convolutions in this layout take two thirds of the time, on CPUs too
            self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it not
        self.model.image_encoder.dropout.p = config.dropout
        self.model.text_encoder.dropout.p = config.word_dropout
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=origin.model.global_vectors)
        self.origin, self.config, self.data, self.fusion_only = origin, config, data, fusion_only
        self.told = time.monotonic()
        if fusion_only:
            self.requires_grad_(False)
            for part in self.model.scorer.fusion:
                self.model.scorer.get_submodule(part).requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        """Keep the statistics of a vision network that is frozen, or was trained on more than this data set, as they are."""
        if self.model.vision is not None and (self.fusion_only or self.pretrained):
            self.model.vision.eval()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends on seed, epoch and devices alone, so that a resumed run is the same run."""
        config, trainer = self.config, self.trainer
        share = trainer.global_rank, trainer.world_size
        sampler = NeighbourSampler(self.data.train, config.neighbours, config.seed, *share)
        return self.data.train.loader(config.batch_size, sampler, config.workers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what a step draws by step and device, for the same reason: by epoch is not enough, a resumed run draws more."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step + 7_919_000_003 * self.global_rank)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Where bars do not move, in a log file, a line a minute tells how far the epoch is."""
        bars = bars_of(self.trainer)
        if bars is None or bars.console.is_terminal or time.monotonic() < self.told + TELL_S:
            return
        self.told = time.monotonic()
        epoch = f"epoch {self.current_epoch + 1} of {self.config.epochs}"
        tell(self.trainer, f"{epoch}: step {batch_idx + 1} of {self.trainer.num_training_batches}")

    def training_step(self, batch: Batch) -> Tensor:
        """One step: hardest-negative loss on pairs and, where they have a weight, softmax loss on all pairs and contrastive
        loss on the global vectors."""
        image = self.model.encode_images(features_of(self.model, batch.images))
        text = self.model.encode_texts(forget_words(batch.tokens, self.config.unknown_words), batch.lengths)
        v, t = image.pop("image.global", None), text.pop("text.global", None)
        losses = self._pair_losses(image, text, batch.matches)
        if v is not None and t is not None:
            losses["global_loss"] = contrastive_loss(v, t, batch.matches, self.log_scale)
        self.log_dict(losses, prog_bar=True, batch_size=len(batch.lengths))
        weights = {
            "softmax_loss": self.config.softmax_weight,
            "drift_loss": DRIFT_WEIGHT,
            "global_loss": self.config.global_weight,
        }
        return sum((weights.get(name, 1) * loss for name, loss in losses.items()), torch.zeros((), device=self.device))

    def _pair_losses(self, image: Tensors, text: Tensors, matches: Tensor) -> dict[str, Tensor]:
        """The losses of the network's own scores, on the first `pair_batch` of the batch: its order is random."""
        scorer, count = self.model.scorer, self.config.pair_batch or len(matches)
        image, text = ({name: tensor[:count] for name, tensor in side.items()} for side in (image, text))
        matches = matches[:count, :count]
        logits = score_blocks(scorer, image, text) if self.config.softmax_weight else None  # [count, count]
        candidates = self._candidates(len(matches))
        losses = {"pair_loss": pair_loss(scorer, image, text, matches, candidates, self.config.negatives, logits)}
        if logits is not None:
            # Clamped as the other is: easy negatives would be pushed on and on.
            losses["softmax_loss"] = softmax_loss(logits.clamp(-CLAMP, CLAMP), matches)
            losses["drift_loss"] = drift_loss(logits)
        return losses

    def _candidates(self, batch_size: int) -> int:
        """How many of the hardest negatives to choose among: all of the batch at first, one (or as many as are wanted) after
        `warm_part` of the run.

        Hardest-only from the first step does not converge: while scores are noise, the hardest is a random mistake.
        """
        steps = self.config.warm_part * float(self.trainer.estimated_stepping_batches)
        left = max(0.0, 1 - self.global_step / steps) if steps else 0.0
        return max(1, round(batch_size * left**2))

    def on_train_epoch_end(self) -> None:
        """Log recall on the dev split; rsum decides which checkpoint is the best and when to stop."""
        pairs = len(self.data.dev) * len(self.data.dev.store)
        with progress_of(self.trainer, "measuring on dev", pairs) as advance:
            measured = measure_network(self.model, self.data.dev, advance)
        # The first device's network is what is saved; statistics of batches differ from device to device.
        network, vectors = self.trainer.strategy.broadcast(measured)
        self.log("rsum", network.rsum, sync_dist=True)
        self.log("text_to_image_r1", network.text_to_image.r1, sync_dist=True)
        self.log("image_to_text_r1", network.image_to_text.r1, sync_dist=True)
        if vectors:
            self.log("global_rsum", vectors.rsum, sync_dist=True)
        r1 = f"R@1 {network.text_to_image.r1:.1f} text to image, {network.image_to_text.r1:.1f} image to text"
        tell(
            self.trainer,
            f"epoch {self.current_epoch + 1} of {self.config.epochs}: rsum {network.rsum:.1f}, {r1}, on dev",
        )

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle learning rate."""
        config = self.config
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, steps, pct_start=0.15)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model without this class."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        ran = {"epoch": self.current_epoch, "dev": metrics, "on_devices": self.trainer.world_size}
        checkpoint[KEY] = replace(self.origin, training=self.origin.training | ran).as_dict()


def forget_words(tokens: Tensor, part: float) -> Tensor:
    """Tokens [T, N] of which a part of the words, drawn anew for each step, is `<unk>`: a word that training never saw is
    then not new to the network. Markers and padding stay."""
    if not part:
        return tokens
    drawn = torch.rand(tokens.shape, device=tokens.device) < part
    return tokens.masked_fill(drawn & (tokens >= len(SPECIALS)), SPECIALS.index("<unk>"))


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written beside their place and renamed. Lightning's own come from another folder, in pieces where that is
    on another disk: a kill leaves one cut short, under the name that a run goes on from."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises OSError, naming the path, where it does not fit."""
        content = io.BytesIO()  # a disk that is full is no OSError inside torch.save
        torch.save(checkpoint, content)
        with write_aside(Path(path)) as aside:
            # No copy. `getbuffer` after a write that failed crashes Python 3.12 when it is collected.
            aside.write_bytes(content.getvalue())


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets the best score of a run whose folder was moved; this one knows its files by their names."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with every path in the folder where the run is now."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


def bars_of(trainer: lightning.Trainer) -> Any:
    """The trainer's bars; None on all but the first of several devices."""
    return getattr(trainer.progress_bar_callback, "progress", None)


@contextmanager
def progress_of(trainer: lightning.Trainer, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar below the trainer's own; yields the function to call with the number of items just done."""
    bars = bars_of(trainer)
    if bars is None:
        yield lambda done: None
        return
    task = bars.add_task(title, total=total)
    yield lambda done: bars.update(task, advance=done, refresh=True)  # Lightning's bars do not refresh by themselves
    bars.update(task, visible=False)


def tell(trainer: lightning.Trainer, line: str) -> None:
    """A line above the trainer's bars. (Lightning's own shows what was measured an epoch before.)"""
    bars = bars_of(trainer)
    if bars is not None:
        bars.console.print(line, highlight=False, soft_wrap=True)


@rank_zero_only
def keep_logged(trainer: lightning.Trainer, epochs: int) -> None:
    """Before a run goes on: keep what metrics.csv has of the epochs that are done, which Lightning would delete."""
    logger = next(one for one in trainer.loggers if isinstance(one, CSVLogger))
    path = Path(logger.log_dir, "metrics.csv")
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if (row.get("epoch") or "").isdecimal() and int(row["epoch"]) < epochs]
        names = sorted(reader.fieldnames or ())
    writer = logger.experiment  # deletes the file
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
    writer.metrics_keys = names  # as if it had written these rows itself


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks: otherwise each step hands them back and faults them in again, page by page,
    which took a fifth of the time of training on two CPU cores. Other C libraries are left alone."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(32 << 20))  # M_MMAP_THRESHOLD: 32 MiB is the most it takes
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(1 << 30))  # M_TRIM_THRESHOLD


def build_trainer(config: TrainConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """A Lightning trainer that writes into the run's folder."""
    if config.patience:
        callbacks.append(EarlyStopping("rsum", patience=config.patience, mode="max", check_on_train_epoch_end=True))
    return lightning.Trainer(
        max_epochs=config.epochs,
        precision=config.precision,  # type: ignore[arg-type]  # Lightning checks the string itself
        devices=config.devices,
        logger=[CSVLogger(config.output, "logs", ""), TensorBoardLogger(config.output, "logs", "")],
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        gradient_clip_val=CLIP_NORM,
        enable_model_summary=False,
        log_every_n_steps=20,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips off the terminal; its errors and its progress bar stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    os.environ.setdefault("TENSORBOARD_NO_TF", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*number of training batches .* is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*Experiment logs directory.*exists.*")
        yield
