"""What lets a run go on after a kill: what it was begun with is kept in its folder, and must be what it goes on with."""

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
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable, sha256_of, write_aside
from camp_sdk.terminal import stderr

STAGE_FOLDERS = ("attention", "fusion", ".")  # of a run's folder
BEGUN = "run.json"  # in a run's folder: what it was begun with
SAMPLE = 64  # images whose features stand for all


def what_decides(config: TrainConfig, train: Split, dev: Split) -> dict[str, Any]:
    """What a run that goes on must have as it was: its options, what the splits hold, and the checkpoint it started from."""
    start = {"start": sha256_of(config.start)} if config.start else {}
    return {"options": config.as_dict(), "train": digest_of(train), "dev": digest_of(dev)} | start


def digest_of(split: Split) -> str:
    """SHA-256 of a split: its captions, whose they are, and its images by name and size, or a sample of their features."""
    digest = hashlib.sha256(json.dumps([split.captions, split.image_of_caption.tolist()]).encode())
    if isinstance(split.images, np.ndarray):
        digest.update(repr(split.images.shape).encode())
        for row in np.linspace(0, len(split.images) - 1, SAMPLE).astype(int):  # all of them may be gigabytes
            digest.update(split.images[row].tobytes())
    else:
        digest.update(json.dumps([(path.name, path.stat().st_size) for path in split.images]).encode())
    return digest.hexdigest()


@rank_zero_only  # other devices come when the first has begun
def check_output(config: TrainConfig, begun: dict[str, Any]) -> None:
    """Raise InputError for a folder in use, one without anything to resume, or a run begun with something else."""
    run = config.output
    used = run.is_dir() and _names(run)
    if not config.resume:
        if used:
            raise InputError(f"{run} is not empty: name a new folder, or go on with --resume")
        check_writable(run / "best.ckpt")  # now, not after hours
        return
    if not run.is_dir():
        raise InputError(f"--resume: {run} not found; start the run without --resume")
    if not used:
        return
    _check_begun(run, config.data, begun)
    if not any((run / stage / "last.ckpt").is_file() for stage in STAGE_FOLDERS):
        _begin_anew(run)


def _check_begun(run: Path, data: Path, asked: dict[str, Any]) -> None:
    """Raise InputError if a run was begun with other options, other data or another checkpoint than is asked for."""
    try:
        told = json.loads((run / BEGUN).read_text(encoding="utf-8"))
        options = dict(told["options"])
    except FileNotFoundError:
        raise InputError(
            f"--resume: {run} holds something, but no {BEGUN}, which every run writes: remove it, or name another folder"
        ) from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"--resume: {run / BEGUN} is broken ({error}): start the run anew, in a new folder") from None
    if told.get("start") != asked.get("start"):  # first: it brings some of the options
        raise InputError(f"--resume: {run} was begun with another --start, or with none: give the one it began with")
    default = TrainConfig(data, run).as_dict()  # what an option that came later was
    changed = [
        f"--{name.replace('_', '-')} was {was}, is {value}"
        for name, value in asked["options"].items()
        if (was := options.get(name, default.get(name))) != value
    ]
    if changed:
        raise InputError(f"--resume: {run} was begun with other options: {'; '.join(changed)}")
    for split in ("train", "dev"):
        if told.get(split) != asked[split]:
            raise InputError(f"--resume: {run} was begun with other data than the {split} split of {data} now holds")


@contextmanager
def noted(run: Path, begun: dict[str, Any]) -> Iterator[None]:
    """Keep in a run's folder what it is begun with; not if its preparation fails, and there is nothing else yet."""
    there = run.is_dir()
    _note(run / BEGUN, begun)
    try:
        yield
    except BaseException:
        _forget(run, there)
        raise


@rank_zero_only
def _note(path: Path, begun: dict[str, Any]) -> None:
    if not path.is_file():
        with write_aside(path) as aside:
            aside.write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")


@rank_zero_only
def _forget(run: Path, keep_folder: bool) -> None:
    if _names(run) == [BEGUN]:
        (run / BEGUN).unlink()
        if not keep_folder:
            run.rmdir()


def _names(run: Path) -> list[str]:
    """What is in a run's folder, but for writes that were killed."""
    return [path.name for path in run.iterdir() if not path.name.startswith(".")]


def _begin_anew(run: Path) -> None:
    """Empty the folder of a run that was stopped in its first epoch, and so has nothing to go on from."""
    stderr.print(f"{run} was stopped in its first epoch: it begins anew", highlight=False, soft_wrap=True)
    for stage in STAGE_FOLDERS:
        shutil.rmtree(run / stage / "logs", ignore_errors=True)
        (run / stage / "best.ckpt").unlink(missing_ok=True)


def check_resumed(config: TrainConfig, data: TrainingData, origin: Origin) -> None:
    """Raise InputError if a stage of these options cannot go on, or be followed, with this network, these words, or this
    frozen vision network."""
    last = config.output / "last.ckpt"
    model = replace(origin.model, variant=config.variant)
    before, found = load_checkpoint(last)
    if (found.model, found.tokenizer) != (model, origin.tokenizer):
        raise InputError(f"--resume: {last} holds {found.model} and its words; these data make {model}, or other words")
    if data.vision is not None and before.vision is not None and not config.tune_vision:
        own, now = before.vision.state_dict(), data.vision.state_dict()
        if own.keys() != now.keys() or not all(torch.equal(own[name], now[name]) for name in own):
            raise InputError(f"--resume: {last} was trained with another --vision network: give the one it began with")


def check_devices(last: Path, devices: int) -> None:
    """Raise InputError if a checkpoint was trained on another number of devices: an epoch then has other steps."""
    told = load_checkpoint(last)[1].training
    if (before := told.get("on_devices", devices)) != devices:
        raise InputError(
            f"--resume: {last} was trained on {before} devices, these are {devices}: give --devices {before}"
        )
