"""The Lightning trainer of a run: checkpoints that survive a kill, logs, progress, early stopping."""

from __future__ import annotations

import csv
import ctypes
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from camp_sdk.export.network.checkpoint import write_checkpoint
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.runtime.files import write_aside

CLIP_NORM = 2.0
MONITOR = "rsum"  # on dev: selects the best checkpoint and stops the run


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written aside and renamed.

    Lightning moves its own from another folder, piece by piece if that is on another disk: a kill then leaves a
    truncated file under the name that a run resumes from.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises OSError, naming the path, if the disk is full."""
        write_checkpoint(checkpoint, Path(path))


class NamelessTensorBoard(TensorBoardLogger):
    """TensorBoard's log, whose file name does not hold the machine's name."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which opens its file when it is made."""
        files: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        network = files.socket
        files.socket = SimpleNamespace(gethostname=lambda: "camp")
        try:
            return super().experiment
        finally:
            files.socket = network


class RunCheckpoint(ModelCheckpoint):
    """Lightning's callback, but its state knows files by name: it names no folder, and a run may be moved.

    One that monitors a metric passes over epochs without a measurement.
    """

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save a checkpoint, if the epoch has what it monitors."""
        if self.monitor is None or cast(Any, pl_module).is_measured():
            super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the names of files in place of their paths."""
        state = super().state_dict()
        paths = {name: Path(path).name for name, path in state.items() if name.endswith("_path") and path}
        best = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return state | paths | {"best_k_models": best, "dirpath": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with every path in the run's present folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class MeasuredStopping(EarlyStopping):
    """Lightning's callback, but it counts only epochs with a measurement."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the run if the measurements have not improved for long enough."""
        if cast(Any, pl_module).is_measured():
            super().on_train_epoch_end(trainer, pl_module)


def bars_of(trainer: lightning.Trainer) -> Any:
    """The trainer's progress bars; None on every device but the first."""
    return getattr(trainer.progress_bar_callback, "progress", None)


@contextmanager
def progress_of(trainer: lightning.Trainer, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar below the trainer's own; yields a function that takes the number of items just done."""
    bars = bars_of(trainer)
    if bars is None:
        yield lambda done: None
        return
    task = bars.add_task(title, total=total)
    yield lambda done: bars.update(task, advance=done, refresh=True)  # Lightning's bars do not refresh by themselves
    bars.update(task, visible=False)


def log_line(trainer: lightning.Trainer, line: str) -> None:
    """Print a line above the trainer's bars, which themselves show the figures of the epoch before."""
    bars = bars_of(trainer)
    if bars is not None:
        bars.console.print(line, highlight=False, soft_wrap=True)


@rank_zero_only
def keep_logged(trainer: lightning.Trainer, epochs: int) -> None:
    """Keep the finished epochs in metrics.csv when a run resumes; Lightning would delete them."""
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
    """Make glibc keep large freed blocks.

    Otherwise every step returns them to the system and faults them in again page by page, which took a fifth of the
    training time on two CPU cores. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(32 << 20))  # M_MMAP_THRESHOLD: 32 MiB is the most it takes
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(1 << 30))  # M_TRIM_THRESHOLD


def build_trainer(config: TrainConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """A Lightning trainer that writes into the run's folder."""
    if config.patience:
        stopping = MeasuredStopping(MONITOR, patience=config.patience, mode="max", check_on_train_epoch_end=True)
        callbacks.append(stopping)
    return lightning.Trainer(
        max_epochs=config.epochs,
        precision=config.precision,  # type: ignore[arg-type]  # Lightning checks the string itself
        devices=config.devices,
        logger=[CSVLogger(config.output, "logs", ""), NamelessTensorBoard(config.output, "logs", "")],
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
