"""The training loop, by Lightning: checkpoints, resume, mixed precision, several devices, logs, early stopping."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camp_sdk.data import Split, load_split
from camp_sdk.export.batches import Batch, CaptionDataset, NeighbourSampler, decode_pictures, measure_pixels
from camp_sdk.export.checkpoint import KEY, Origin, load_checkpoint, open_tokenizer
from camp_sdk.export.losses import contrastive_loss, pair_loss
from camp_sdk.export.measure import features_of, measure_network
from camp_sdk.export.model import Camp, ModelConfig
from camp_sdk.export.networks import VisionNet
from camp_sdk.export.train import CROSS_ATTENTION, TrainConfig
from camp_sdk.export.vocabulary import build_tokenizer
from camp_sdk.runtime.errors import InputError

CLIP_NORM = 2.0
EXAMPLES = 24


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run, as batches come from them."""

    train: CaptionDataset
    dev: CaptionDataset


class CampTraining(lightning.LightningModule):
    """CAMP with its losses and its optimiser; the checkpoint carries what `load_checkpoint` needs."""

    def __init__(self, origin: Origin, config: TrainConfig, data: TrainingData, fusion_only: bool = False) -> None:
        super().__init__()
        self.model = Camp(origin.model)
        if self.model.vision is not None:  # convolutions in this layout take two thirds of the time, on CPUs too
            self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it not
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=origin.model.global_vectors)
        self.origin, self.config, self.data, self.fusion_only = origin, config, data, fusion_only
        if fusion_only:
            self.requires_grad_(False)
            for part in self.model.scorer.fusion:
                self.model.scorer.get_submodule(part).requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        """Keep the statistics of a frozen vision network as they are."""
        if self.fusion_only and self.model.vision is not None:
            self.model.vision.eval()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends on seed, epoch and devices alone, so that a resumed run is the same run."""
        config, trainer = self.config, self.trainer
        share = trainer.global_rank, trainer.world_size
        sampler = NeighbourSampler(self.data.train, config.neighbours, config.seed, *share)
        return self.data.train.loader(config.batch_size, sampler, config.workers)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the choice of negatives by step, for the same reason: by epoch is not enough, a resumed run draws more."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Batch) -> Tensor:
        """One step: hardest-negative loss on pairs, contrastive loss on the global vectors if there are any."""
        image = self.model.encode_images(features_of(self.model, batch.images))
        text = self.model.encode_texts(batch.tokens, batch.lengths)
        v, t = image.pop("image.global", None), text.pop("text.global", None)
        candidates = self._candidates(len(batch.lengths))
        pairs = pair_loss(self.model.scorer, image, text, batch.matches, candidates, self.config.negatives)
        losses = {"pair_loss": pairs}
        if v is not None and t is not None:
            losses["global_loss"] = contrastive_loss(v, t, batch.matches, self.log_scale)
        self.log_dict(losses, prog_bar=True, batch_size=len(batch.lengths))
        return pairs + self.config.global_weight * losses.get("global_loss", 0)

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
            network, vectors = measure_network(self.model, self.data.dev, advance)
        self.log("rsum", network.rsum, prog_bar=True, sync_dist=True)
        self.log("text_to_image_r1", network.text_to_image.r1, prog_bar=True, sync_dist=True)
        self.log("image_to_text_r1", network.image_to_text.r1, sync_dist=True)
        if vectors:
            self.log("global_rsum", vectors.rsum, sync_dist=True)

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
        training = self.origin.training | {"epoch": self.current_epoch, "dev": metrics}
        checkpoint[KEY] = replace(self.origin, training=training).as_dict()


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets the best score of a run whose folder was moved; this one knows its files by their names."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with every path in the folder where the run is now."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


@contextmanager
def progress_of(trainer: lightning.Trainer, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar below the trainer's own; yields the function to call with the number of items just done."""
    bars = getattr(trainer.progress_bar_callback, "progress", None)
    if bars is None:  # only the first of several devices shows any
        yield lambda done: None
        return
    task = bars.add_task(title, total=total)
    yield lambda done: bars.update(task, advance=done, refresh=True)  # Lightning's bars do not refresh by themselves
    bars.update(task, visible=False)


@dataclass(frozen=True)
class Stage:
    """One part of a run, in a folder of its own (the last in the run's): what to train, from where the one before stopped."""

    config: TrainConfig
    fusion_only: bool = False

    @property
    def finished(self) -> Path:
        """The empty file that tells that this stage is done."""
        return self.config.output / "finished"


def stages_of(config: TrainConfig) -> list[Stage]:
    """The stages of a run: the cross-attention model, the fusion alone, everything; those of no epochs are left out."""
    attention = replace(
        config,
        variant=CROSS_ATTENTION.get(config.variant, config.variant),
        epochs=config.attention_epochs,
        output=config.output / "attention",
    )
    fusion = replace(config, epochs=config.fusion_epochs, output=config.output / "fusion")
    stages = [Stage(attention), Stage(fusion, fusion_only=True), Stage(config)]
    return [stage for stage in stages if stage.config.epochs]


def run_training(config: TrainConfig, cache: Path) -> Path:
    """Train, and return the path of the best checkpoint. ``cache`` is a folder for decoded pictures.

    Raises InputError for options no run can have or an output folder in use, BundleError for a broken data set.
    """
    train, dev = load_split(config.data, "train"), load_split(config.data, "dev")
    started = load_checkpoint(config.start)[1] if config.start else None
    if started:
        config = with_sizes(config, started.model)
    config = config.with_defaults(train.has_pictures)
    config.check()
    check_data(config, train, dev)
    stages = stages_of(config)
    check_output(config)
    keep_freed_memory()
    data, origin = prepare(config, train, dev, cache, started)
    best = config.start
    for stage in stages:
        if config.resume and stage.finished.is_file():
            best = stage.config.output / "best.ckpt"
            continue
        best = run_stage(stage, data, origin, best)
        stage.finished.touch()
    assert best is not None
    return best


def check_data(config: TrainConfig, train: Split, dev: Split) -> None:
    """Raise InputError for splits no run can use."""
    if train.has_pictures != dev.has_pictures:
        raise InputError(f"{config.data}: one of train and dev holds pictures, the other features")
    if len(train.images) < 2:
        raise InputError(f"{config.data}: one training image; negatives are other images, expected 2 or more")
    if config.batch_size > len(train.captions):
        raise InputError(f"--batch-size {config.batch_size} is more than the {len(train.captions)} training captions")


def check_output(config: TrainConfig) -> None:
    """Raise InputError for a folder in use, one without anything to resume, or a run begun with other options."""
    if not config.resume:
        if config.output.exists() and any(config.output.iterdir()):
            raise InputError(f"{config.output} is not empty: name a new folder, or go on with --resume")
        return
    begun = [
        path
        for path in (config.output / stage / "last.ckpt" for stage in ("attention", "fusion", "."))
        if path.is_file()
    ]
    if not begun:
        raise InputError(f"--resume: {config.output / 'last.ckpt'} not found; start the run without --resume")
    for path in begun:
        told, stage = load_checkpoint(path)[1].training, path.parent.name if path.parent != config.output else "."
        asked = _options_of_stage(config, stage)
        changed = [
            f"--{n.replace('_', '-')} was {told[n]}, is {v}" for n, v in asked.items() if n in told and told[n] != v
        ]
        if changed:
            raise InputError(f"--resume: {path} was trained with other options: {'; '.join(changed)}")


def _options_of_stage(config: TrainConfig, stage: str) -> dict[str, Any]:
    """The options as a stage's checkpoint tells them; its own variant and epochs are checked by what they follow from."""
    options = config.as_dict()
    return options if stage == "." else {n: v for n, v in options.items() if n not in ("variant", "epochs")}


def run_stage(stage: Stage, data: TrainingData, origin: Origin, start: Path | None) -> Path:
    """Train one stage from the weights of ``start``, or from where it was killed; returns its best checkpoint."""
    config = stage.config
    lightning.seed_everything(config.seed, verbose=False)
    model = replace(origin.model, variant=config.variant)
    module = CampTraining(replace(origin, model=model, training=config.as_dict()), config, data, stage.fusion_only)
    last = config.output / "last.ckpt"
    resume = config.resume and last.is_file()
    if resume and ((found := load_checkpoint(last)[1]).model, found.tokenizer) != (model, origin.tokenizer):
        raise InputError(f"--resume: {last} holds {found.model} and its words; these data make {model}, or other words")
    if start and not resume:
        start_from(module.model, start)
    best = RunCheckpoint(config.output, "best", monitor="rsum", mode="max", enable_version_counter=False)
    # Not save_last of the other one: that is written only when the best one is.
    every = RunCheckpoint(config.output, "last", enable_version_counter=False)
    with quiet_lightning():
        trainer = build_trainer(config, [best, every, RichProgressBar(refresh_rate=10, leave=True)])
        trainer.fit(module, ckpt_path=last if resume else None, weights_only=True)
    return config.output / "best.ckpt"


def start_from(model: Camp, checkpoint: Path) -> None:
    """Give a network the weights of a checkpoint of its sizes; what the checkpoint has not stays as it is.

    Raises InputError listing what the checkpoint has that the network has not.
    """
    weights, own = load_checkpoint(checkpoint)[0].state_dict(), model.state_dict()
    if not model.config.global_vectors:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("global_")}
    if surplus := [name for name, t in weights.items() if name not in own or own[name].shape != t.shape]:
        raise InputError(f"{checkpoint} holds what {model.config.variant} has not: {', '.join(surplus)}")
    model.load_state_dict(weights, strict=False)


def with_sizes(config: TrainConfig, started: ModelConfig) -> TrainConfig:
    """The configuration with the sizes of the checkpoint it starts from; InputError if it asks for others."""
    sizes: dict[str, Any] = {"width": started.width, "word_width": started.word_width}
    if started.picture_size:
        sizes["picture_size"] = started.picture_size
    for name, size in sizes.items():
        asked = getattr(config, name)
        if asked not in (size, TrainConfig.__dataclass_fields__[name].default):
            raise InputError(f"--{name.replace('_', '-')} {asked}: {config.start} has {size}")
    return replace(config, **sizes)


def prepare(
    config: TrainConfig, train: Split, dev: Split, cache: Path, started: Origin | None = None
) -> tuple[TrainingData, Origin]:
    """Tokenizer, decoded pictures and configuration of a run; tokenizer and preprocessing of what it starts from."""
    tokenizer_text = started.tokenizer if started else build_tokenizer(train.captions, config.min_count).to_str()
    tokenizer = open_tokenizer(tokenizer_text)
    pixels = None
    stores: list[Any] = [train.images, dev.images]
    if train.has_pictures:
        stores = [decode_pictures(split, config.picture_size, cache / f"{split.name}.npy") for split in (train, dev)]
        pixels = started.pixels if started else measure_pixels(stores[0], config.picture_size, VisionNet.GRID)
    feature_width = config.width if train.has_pictures else int(stores[0].shape[2])
    if started and (bool(started.pixels), started.model.feature_width) != (train.has_pictures, feature_width):
        expected = "pictures" if started.pixels else f"features of width {started.model.feature_width}"
        raise InputError(f"{config.start} takes {expected}, {config.data} holds something else")
    sets = [CaptionDataset(split, store, tokenizer, pixels) for split, store in zip((train, dev), stores, strict=True)]
    model = ModelConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        variant=config.variant,
        width=config.width,
        feature_width=feature_width,
        word_width=config.word_width,
        picture_size=config.picture_size if pixels else 0,
        global_vectors=config.global_weight > 0,
    )
    examples = torch.from_numpy(np.array(stores[1][:EXAMPLES]))
    origin = Origin(model, pixels, tokenizer_text, examples, dev.captions[: 5 * EXAMPLES], config.as_dict())
    return TrainingData(*sets), origin


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
