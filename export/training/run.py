"""A run of training from its options to its best checkpoint: data, tokenizer, stages, and going on after a kill."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

from camp_sdk.data import Split, load_split
from camp_sdk.export.network.camp import CampScorer
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint, open_tokenizer
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.sentences import SentenceConfig, load_pretrained, read_config, read_tokenizer
from camp_sdk.export.network.vocabulary import LEARNED, build_tokenizer
from camp_sdk.export.training.batches import CaptionDataset
from camp_sdk.export.training.config import CROSS_ATTENTION, TrainConfig
from camp_sdk.export.training.image_store import EXAMPLES, prepare_images
from camp_sdk.export.training.module import CampTraining, TrainingData
from camp_sdk.export.training.resume import check_devices, check_output, check_resumed, noted, what_decides
from camp_sdk.export.training.trainer import (
    RunCheckpoint,
    build_trainer,
    keep_freed_memory,
    keep_logged,
    quiet_lightning,
)
from camp_sdk.export.training.vision_setup import open_vision
from camp_sdk.runtime.errors import InputError
from camp_sdk.terminal import stderr


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


def run_training(config: TrainConfig, scratch: Path | None = None) -> Path:
    """Train, and return the path of the best checkpoint.

    Args:
        config: the run's options; those left at 0 take what suits the data.
        scratch: a folder of this run alone for decoded pictures; a temporary one by default.

    Raises:
        InputError: options no run can have, or an output folder in use.
        BundleError: a broken data set or checkpoint.
    """
    if scratch is not None:
        return _train(config, scratch)
    with tempfile.TemporaryDirectory(prefix="camp-") as folder:
        return _train(config, Path(folder))


def _train(config: TrainConfig, cache: Path) -> Path:
    train, dev = load_split(config.data, "train"), load_split(config.data, "dev")
    started = load_checkpoint(config.start) if config.start else None
    if started:
        config = with_sizes(config, started[1])
    elif config.words != LEARNED:
        config = _with(config, {"word_width": read_config(config.words)[0]}, config.words)
    config = config.with_defaults(train.has_pictures)
    config.check()
    check_data(config, train, dev)
    stages = stages_of(config)
    begun = what_decides(config, train, dev)
    check_output(config, begun)
    keep_freed_memory()
    with noted(config.output, begun):
        data, origin = prepare(config, train, dev, cache, started)
    for stage in stages:
        if config.resume and (stage.config.output / "last.ckpt").is_file():
            check_resumed(stage.config, data, origin)
    best = config.start
    for stage in stages:
        if config.resume and stage.finished.is_file():
            best = stage.config.output / "best.ckpt"
            continue
        best = run_stage(stage, data, origin, best)
        stage.finished.touch()
    assert best is not None
    _tell_best(best, config.epochs)
    return best


@rank_zero_only
def _tell_best(best: Path, epochs: int) -> None:
    told = load_checkpoint(best)[1].training
    line = f"{best}: epoch {finished_epochs(best)} of {epochs}, rsum {told['dev']['rsum']:.1f} on dev"
    stderr.print(line, highlight=False, soft_wrap=True)


def check_data(config: TrainConfig, train: Split, dev: Split) -> None:
    """Raise InputError for splits no run can use."""
    if train.has_pictures != dev.has_pictures:
        raise InputError(f"{config.data}: one of train and dev holds pictures, the other features")
    widths = [split.images.shape[2] for split in (train, dev) if isinstance(split.images, np.ndarray)]
    if len(set(widths)) > 1:
        raise InputError(
            f"{config.data}: features of {widths[0]} numbers in train, {widths[1]} in dev: expected the same"
        )
    if len(train.images) < 2:
        raise InputError(f"{config.data}: one training image; negatives are other images, expected 2 or more")
    devices = int(config.devices) if config.devices.isdecimal() else 1
    if config.batch_size > (share := len(train.captions) // devices):
        what = f"the {share} training captions" + (f" of each of {devices} devices" if devices > 1 else "")
        raise InputError(f"--batch-size {config.batch_size} is more than {what}")


def run_stage(stage: Stage, data: TrainingData, origin: Origin, start: Path | None) -> Path:
    """Train one stage from the weights of ``start``, or from where it was killed; returns its best checkpoint."""
    config = stage.config
    lightning.seed_everything(config.seed, verbose=False)
    model = replace(origin.model, variant=config.variant)
    module = CampTraining(replace(origin, model=model, training=config.as_dict()), config, data, stage.fusion_only)
    last = config.output / "last.ckpt"
    resume = config.resume and last.is_file()
    if start and not resume:
        start_from(module.model, start)
    elif not resume:
        _begin(module.model, config)
    best = RunCheckpoint(config.output, "best", monitor="rsum", mode="max", enable_version_counter=False)
    # Not save_last of the other one: that is written only when the best one is.
    every = RunCheckpoint(config.output, "last", enable_version_counter=False)
    with quiet_lightning():
        trainer = build_trainer(config, [best, every, RichProgressBar(refresh_rate=10, leave=True)])
        if resume:
            check_devices(last, trainer.world_size)
            keep_logged(trainer, finished_epochs(last))
        try:
            trainer.fit(module, ckpt_path=last if resume else None, weights_only=True)
        except SystemExit as stopped:  # Lightning ends the process with 1 on Ctrl-C
            stderr.print("stopped: --resume goes on after the last epoch that was finished", style="red")
            if stopped.code == 1:
                raise KeyboardInterrupt from None
            raise
    return config.output / "best.ckpt"


def finished_epochs(checkpoint: Path) -> int:
    """How many epochs of its stage a run's checkpoint has seen."""
    return int(load_checkpoint(checkpoint)[1].training["epoch"]) + 1


def _begin(model: Camp, config: TrainConfig) -> None:
    """The weights a new network begins with, where they are not random."""
    if model.config.sentence:
        load_pretrained(model.text_encoder.embed, model.config.words)
    if config.begin_as_distance:
        cast(CampScorer, model.scorer).begin_as_distance()


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


def with_sizes(config: TrainConfig, started: Origin) -> TrainConfig:
    """The configuration with the sizes and the vision of the checkpoint it starts from; InputError if it asks for others."""
    own: dict[str, Any] = {name: getattr(started.model, name) for name in ("width", "word_width", "words")}
    if started.pixels:
        own |= {"vision": started.model.vision, "picture_size": started.pixels.height, "fit": started.pixels.fit}
    return _with(config, own, config.start)


def _with(config: TrainConfig, own: dict[str, Any], source: object) -> TrainConfig:
    """The configuration with what ``source`` fixes; InputError if it asks for others."""
    for name, value in own.items():
        asked = getattr(config, name)
        if asked not in (value, TrainConfig.__dataclass_fields__[name].default):
            raise InputError(f"--{name.replace('_', '-')} {asked}: {source} has {value}, and brings it: leave it out")
    return replace(config, **own)


def prepare(
    config: TrainConfig, train: Split, dev: Split, cache: Path, started: tuple[Camp, Origin] | None = None
) -> tuple[TrainingData, Origin]:
    """Tokenizer, images and configuration of a run; tokenizer, vision and preprocessing of what it starts from."""
    tokenizer_text = started[1].tokenizer if started else make_tokenizer(config, train)
    tokenizer = open_tokenizer(tokenizer_text)
    vision = open_vision(config, train, started)
    feature_width = vision.width if vision else int(train.images.shape[2])  # type: ignore[union-attr]  # an array
    if started and (bool(started[1].pixels), started[1].model.feature_width) != (train.has_pictures, feature_width):
        expected = "pictures" if started[1].pixels else f"features of width {started[1].model.feature_width}"
        raise InputError(f"{config.start} takes {expected}, {config.data} holds something else")
    images = prepare_images(train, dev, vision, config.tune_vision, cache, config.cache or cache)
    sets = [
        CaptionDataset(split, store, tokenizer, images.pixels)
        for split, store in ((train, images.train), (dev, images.dev))
    ]
    model = ModelConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        variant=config.variant,
        width=config.width,
        feature_width=feature_width,
        word_width=config.word_width,
        picture_size=vision.pixels.height if vision else 0,
        global_vectors=config.global_weight > 0,
        vision=vision.name if vision else "small",
        words=config.words,
        sentence=sentence_of(config, started[1] if started else None),
    )
    pixels, examples = vision.pixels if vision else None, torch.from_numpy(images.examples)
    origin = Origin(model, pixels, tokenizer_text, examples, dev.captions[: 5 * EXAMPLES], config.as_dict())
    return TrainingData(sets[0], sets[1], vision.network if vision else None), origin


def make_tokenizer(config: TrainConfig, train: Split) -> str:
    """The text of a tokenizer.json: of the training captions' words, or a pretrained encoder's own."""
    if config.words == LEARNED:
        return build_tokenizer(train.captions, config.min_count).to_str()
    return read_tokenizer(config.words)


def sentence_of(config: TrainConfig, started: Origin | None) -> SentenceConfig | None:
    """Sizes of the pretrained encoder, if there is one."""
    if started:
        return started.model.sentence
    return None if config.words == LEARNED else read_config(config.words)[1]
