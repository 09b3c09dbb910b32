"""Resuming a run: its folder records its options and data, which must be the same when it continues."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from camp_sdk.data import Split
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.module import TrainingData
from camp_sdk.export.training.vision_setup import anonymous, checkpoint_in
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable, sha256_of, write_aside
from camp_sdk.runtime.messages import MAX_TEXT, brief, visible
from camp_sdk.terminal import stderr

STAGE_FOLDERS = ("attention", "fusion", ".")  # in a run's folder
RECORD = "run.json"  # in a run's folder: its options, data and start checkpoint
SAMPLE = 64  # images whose features stand for the whole split in its hash


def run_record(config: TrainConfig, train: Split, dev: Split) -> dict[str, Any]:
    """What must not change before a run continues: its options, its splits, and the files that it starts from."""
    files = {"start": config.start, "word_vectors": config.word_vectors, "backbone": config.backbone}
    content = {name: sha256_of(checkpoint_in(path)) for name, path in files.items() if path}
    return {"options": config.as_dict(), "train": digest_of(train), "dev": digest_of(dev)} | content


def digest_of(split: Split) -> str:
    """SHA-256 of a split: its captions, the image of each, and the images' names and sizes or a sample of features."""
    digest = hashlib.sha256(json.dumps([split.captions, split.image_of_caption.tolist()]).encode())
    if isinstance(split.images, np.ndarray):
        digest.update(repr(split.images.shape).encode())
        for row in np.linspace(0, len(split.images) - 1, SAMPLE).astype(int):  # a sample: all features may be gigabytes
            digest.update(split.images[row].tobytes())
    else:
        digest.update(json.dumps([(path.name, path.stat().st_size) for path in split.images]).encode())
    return digest.hexdigest()


@rank_zero_only  # the other devices start after the first
def check_output(config: TrainConfig, record: dict[str, Any]) -> None:
    """Check that a run can be written to its output folder, or can continue there.

    Args:
        config: The run's options.
        record: Its record, as `run_record` makes it.

    Raises:
        InputError: The folder is in use, there is no run to resume, or the run there has another record.
        OSError: Nothing can be written there.
    """
    run = config.output
    used = run.is_dir() and _names(run)
    if not config.resume:
        if used:
            raise InputError(f"{run} is not empty: name a new folder, or continue with `resume`")
        check_writable(run / "best.ckpt")  # before hours of work
        return
    if not run.is_dir():
        raise InputError(f"`resume`: {run} not found; start the run without it")
    if not used:
        return
    _check_record(run, config.data, record)
    if not any((run / stage / "last.ckpt").is_file() for stage in STAGE_FOLDERS):
        _restart(run)


def _check_record(run: Path, data: Path, asked: dict[str, Any]) -> None:
    """Raise InputError if a run was started with other options, other data or another checkpoint."""
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        options = dict(record["options"])
    except FileNotFoundError:
        raise InputError(
            f"`resume`: {run} is not empty but has no {RECORD}, which every run writes: empty it or name another folder"
        ) from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"`resume`: {run / RECORD} is broken ({error}): start the run again in a new folder") from None
    if record.get("start") != asked.get("start"):  # checked first: a start checkpoint fixes some options
        raise InputError(f"`resume`: {run} was started with another `start`, or without one: give the original one")
    default = TrainConfig(data, run).as_dict()  # used for options that did not exist when the run was started
    changed = [
        f"`{name}` was {_shown(was)}, is now {value}"
        for name, value in asked["options"].items()
        if (was := options.get(name, default.get(name))) != value
    ]
    if changed:
        raise InputError(f"`resume`: {run} was started with other options: {'; '.join(changed)}")
    if record.get("backbone") != asked.get("backbone"):
        raise InputError(f"`resume`: {run} was started with another `backbone`, or without one: give the original one")
    if record.get("word_vectors") != asked.get("word_vectors"):
        raise InputError(f"`resume`: {run} was started with other `word_vectors` than this file: give the original one")
    for split in ("train", "dev"):
        if record.get(split) != asked[split]:
            raise InputError(f"`resume`: {run} was started with other data than the {split} split of {data} now holds")


def _shown(value: Any) -> str:
    """An option of a record, which may hold anything, on one short line."""
    return visible(value[:MAX_TEXT]) if isinstance(value, str) else brief(value)


@contextmanager
def recorded(run: Path, record: dict[str, Any]) -> Iterator[None]:
    """Write a run's record into its folder; remove it again if the block fails and the folder holds nothing else."""
    existed = run.is_dir()
    _write_record(run / RECORD, record)
    try:
        yield
    except BaseException:
        _remove_record(run, existed)
        raise


@rank_zero_only
def _write_record(path: Path, record: dict[str, Any]) -> None:
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@rank_zero_only
def _remove_record(run: Path, keep_folder: bool) -> None:
    if _names(run) == [RECORD]:
        (run / RECORD).unlink()
        if not keep_folder:
            run.rmdir()


def _names(run: Path) -> list[str]:
    """The names in a run's folder, except the remains of interrupted writes."""
    return [path.name for path in run.iterdir() if not path.name.startswith(".")]


def _restart(run: Path) -> None:
    """Clear the folder of a run that was stopped in its first epoch, which left nothing to continue from."""
    stderr.print(f"{run} was stopped in its first epoch: starting again", highlight=False, soft_wrap=True)
    for stage in STAGE_FOLDERS:
        shutil.rmtree(run / stage / "logs", ignore_errors=True)
        (run / stage / "best.ckpt").unlink(missing_ok=True)


def check_resumed(config: TrainConfig, data: TrainingData, origin: Origin) -> None:
    """Check that a stage can continue, or that the next can follow it.

    Args:
        config: The options of the stage.
        data: The run's data.
        origin: The metadata that the run's checkpoints would hold now.

    Raises:
        InputError: The stage's last checkpoint holds another network, other words or another frozen vision network.
    """
    last = config.output / "last.ckpt"
    model = replace(origin.model, variant=config.variant)
    before, found = load_checkpoint(last)
    if (found.model, found.tokenizer) != (model, origin.tokenizer):
        raise InputError(
            f"`resume`: {last} holds {found.model} and its words; these data lead to {model}, or to other words"
        )
    if data.vision is not None and before.vision is not None and not config.tune_vision:
        own, now = anonymous(before.vision).state_dict(), data.vision.state_dict()  # older checkpoints keep it whole
        if own.keys() != now.keys() or not all(torch.equal(own[name], now[name]) for name in own):
            raise InputError(f"`resume`: {last} was trained with another `vision` network: give the original one")


def check_devices(last: Path, devices: int) -> None:
    """Check the number of devices, which decides the steps of an epoch.

    Args:
        last: The checkpoint to continue from.
        devices: The number of devices now.

    Raises:
        InputError: The checkpoint was trained on another number of devices.
    """
    training = load_checkpoint(last)[1].training
    if (before := training.get("on_devices", devices)) != devices:
        raise InputError(
            f"`resume`: {last} was trained on {before} devices, now there are {devices}: give `devices` {before}"
        )
