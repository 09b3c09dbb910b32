"""A training run from its options to its best checkpoint: data, tokenizer, stages, and resuming after a kill."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

from camp_sdk.data import Split, load_split
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint
from camp_sdk.export.network.frozen import FrozenNetwork
from camp_sdk.export.network.model import BACKBONE, Camp, ModelConfig
from camp_sdk.export.network.networks import import_network
from camp_sdk.export.network.sentences import SentenceConfig, read_config, read_tokenizer
from camp_sdk.export.network.vocabulary import LEARNED, SPECIALS, build_tokenizer, frequent_tokens, vocabulary_of
from camp_sdk.export.training.batches import CaptionDataset
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.image_store import EXAMPLES, prepare_images
from camp_sdk.export.training.initial_weights import set_initial_weights
from camp_sdk.export.training.module import CampTraining, TrainingData
from camp_sdk.export.training.options import CROSS_ATTENTION, SMALL
from camp_sdk.export.training.resume import check_devices, check_output, check_resumed, recorded, run_record
from camp_sdk.export.training.trainer import (
    MONITOR,
    RunCheckpoint,
    build_trainer,
    keep_freed_memory,
    keep_logged,
    quiet_lightning,
)
from camp_sdk.export.training.vision_setup import open_backbone, open_vision
from camp_sdk.export.training.word_vectors import WordTable, read_vectors, width_of
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.tokenizer import Tokenizer
from camp_sdk.terminal import stderr


@dataclass(frozen=True)
class Stage:
    """One part of a run, which starts from the weights of the part before.

    Args:
        config: The run's options with the epochs, values and folder of this part; the last has the run's own folder.
        fusion_only: Whether encoders and attention are frozen.
    """

    config: TrainConfig
    fusion_only: bool = False

    @property
    def finished(self) -> Path:
        """The empty file that marks this stage as done."""
        return self.config.output / "finished"


def stages_of(config: TrainConfig) -> list[Stage]:
    """The stages of a run that have epochs: the cross-attention model, the fusion alone, the whole network."""
    attention = replace(
        config,
        variant=CROSS_ATTENTION.get(config.variant, config.variant),
        epochs=config.attention_epochs,
        output=config.output / "attention",
    )
    fusion = replace(config, epochs=config.fusion_epochs, output=config.output / "fusion")
    stages = [Stage(attention), Stage(fusion, fusion_only=True), Stage(config)]
    trained = [stage for stage in stages if stage.config.epochs]
    return [
        replace(stage, config=replace(stage.config, **config.of_stage(index))) for index, stage in enumerate(trained)
    ]


def run_training(config: TrainConfig, scratch: Path | None = None) -> Path:
    """Train, and return the path of the best checkpoint.

    Args:
        config: The run's options; those left at 0 take values that suit the data.
        scratch: A folder for decoded pictures, used by this run alone. Default: a temporary folder.

    Raises:
        InputError: The options are not valid, or the output folder is in use.
        BundleError: The data set or the checkpoint to start from is broken.
    """
    run = Run(config)
    if scratch is not None:
        return run.train(scratch)
    with tempfile.TemporaryDirectory(prefix="camp-") as folder:
        return run.train(Path(folder))


class Run:
    """A training run: its splits, the checkpoint that it starts from, and its complete, checked options.

    Args:
        config: The options as they were given.

    Raises:
        InputError: The options are not valid.
        BundleError: The data set or the checkpoint to start from is broken.
    """

    def __init__(self, config: TrainConfig) -> None:
        if config.network:  # first: the checkpoint to start from may need it
            config = replace(config, network=import_network(config.network))
        self.data = config.data
        self.start = config.start
        self.splits = load_split(config.data, "train"), load_split(config.data, "dev")
        self.started = load_checkpoint(config.start) if config.start else None
        if self.started and self.started[1].model.towers:
            raise InputError(f"{config.start} holds a published model, which cannot be trained: use camp export")
        self._check_splits()
        self.backbone = self._open_backbone(config)
        if self.started and bool(self.started[1].pixels) != self.splits[0].has_pictures:
            raise self._mismatch(self.started[1])
        if self.backbone:
            fixed: tuple[dict[str, Any], object] = options_of_backbone(*self.backbone), config.backbone
        else:
            fixed = fixed_options(config, self.started)
        self.config = config.completed(self.splits[0].has_pictures, *fixed)
        self.config.check_batch(len(self.splits[0].images), len(self.splits[0].captions))

    def train(self, scratch: Path) -> Path:
        """Train every stage that is not finished, and return the best checkpoint of the last.

        Args:
            scratch: A folder for decoded pictures, used by this run alone.

        Raises:
            InputError: The output folder is in use, or the run cannot be resumed with these options and data.
        """
        config, record = self.config, run_record(self.config, *self.splits)
        check_output(config, record)
        keep_freed_memory()
        with recorded(config.output, record):
            data, origin = self.prepare(scratch)
        stages = stages_of(config)
        for stage in stages:
            if config.resume and (stage.config.output / "last.ckpt").is_file():
                check_resumed(stage.config, data, origin)
        best = self.start
        for stage in stages:
            if config.resume and stage.finished.is_file():
                best = stage.config.output / "best.ckpt"
                continue
            best = run_stage(stage, data, origin, best)
            stage.finished.touch()
        assert best is not None
        _print_best(best, config.epochs)
        return best

    def prepare(self, scratch: Path) -> tuple[TrainingData, Origin]:
        """Prepare the run's data, and the metadata that its checkpoints hold beside their weights.

        Tokenizer, vision network and preprocessing come from the checkpoint that the run starts from, if there is one.

        Args:
            scratch: A folder for decoded pictures, used by this run alone.
        """
        config, started, backbone, (train, dev) = self.config, self.started, self.backbone, self.splits
        given = started or backbone
        tokenizer_text = given[1].tokenizer if given else make_tokenizer(config, self.splits)
        tokenizer, words = Tokenizer(tokenizer_text), word_table(config, tokenizer_text)
        vision = open_vision(config, train, started, backbone)
        feature_width = vision.width if vision else int(train.images.shape[2])  # type: ignore[union-attr]  # an array
        if started and started[1].model.feature_width != feature_width:
            raise self._mismatch(started[1])
        images = prepare_images(self.splits, vision, config.tune_vision, scratch, config.cache or scratch)
        sets = [
            CaptionDataset(split, store, tokenizer, images.pixels)
            for split, store in zip(self.splits, images.stores, strict=True)
        ]
        model = ModelConfig(
            vocabulary_size=tokenizer.vocabulary_size,
            variant=config.variant,
            width=config.width,
            feature_width=feature_width,
            word_width=config.word_width,
            picture_size=vision.pixels.height if vision else 0,
            global_vectors=max(config.each("global_weight")) > 0,
            vision=vision.name if vision else SMALL,
            words=config.words,
            sentence=started[1].model.sentence if started else sentence_of(config.words),
            backbone=started[1].model.backbone if started else backbone[1].model if backbone else None,
        )
        pixels, examples = vision.pixels if vision else None, torch.from_numpy(images.examples)
        origin = Origin(
            model,
            pixels,
            tokenizer_text,
            example_images=examples,
            example_captions=dev.captions[: 5 * EXAMPLES],
            training=config.as_dict() | ({BACKBONE: backbone[1].training} if backbone else {}),
            stop_words=frequent_tokens(tokenizer_text, train.captions),
        )
        return TrainingData(sets[0], sets[1], vision.network if vision else None, words), origin

    def _open_backbone(self, config: TrainConfig) -> tuple[FrozenNetwork, Origin] | None:
        if config.backbone is None:
            return None
        if config.start:
            raise InputError(f"`backbone`: not possible for a run with `start` {config.start}")
        if not self.splits[0].has_pictures:
            raise InputError(f"`backbone`: only for pictures, but {self.data} holds features")
        return open_backbone(config.backbone)

    def _check_splits(self) -> None:
        train, dev = self.splits
        if train.has_pictures != dev.has_pictures:
            raise InputError(f"{self.data}: one of train and dev holds pictures, the other features")
        widths = [split.images.shape[2] for split in self.splits if isinstance(split.images, np.ndarray)]
        if len(set(widths)) > 1:
            raise InputError(
                f"{self.data}: features of {widths[0]} numbers in train, {widths[1]} in dev: expected the same width"
            )
        if len(train.images) < 2:
            raise InputError(f"{self.data}: one training image; negatives are other images: expected 2 or more")

    def _mismatch(self, origin: Origin) -> InputError:
        expected = "pictures" if origin.pixels else f"features of width {origin.model.feature_width}"
        return InputError(f"{self.start} takes {expected}, but {self.data} holds something else")


def fixed_options(config: TrainConfig, started: tuple[Camp, Origin] | None) -> tuple[dict[str, Any], object]:
    """The options fixed by a run's start checkpoint, sentence encoder or word vectors, and which of them fixes them."""
    if started is None:
        file = config.word_vectors if config.words == LEARNED else None
        width = width_of(file) if file else sentence_width(config.words)
        return {} if width is None else {"word_width": width}, file or config.words
    origin = started[1]
    fixed: dict[str, Any] = {name: getattr(origin.model, name) for name in ("width", "word_width", "words")}
    if origin.pixels:
        fixed |= {"vision": origin.model.vision, "picture_size": origin.pixels.height, "fit": origin.pixels.fit}
    return fixed, config.start


def options_of_backbone(frozen: FrozenNetwork, origin: Origin) -> dict[str, Any]:
    """The options that the frozen network below a run fixes."""
    assert origin.pixels is not None
    own = {"words": BACKBONE, "vision": BACKBONE, "word_width": frozen.word_width}
    return own | {"picture_size": origin.pixels.height, "fit": origin.pixels.fit}


def sentence_width(words: str) -> int | None:
    """Width of a pretrained encoder's word vectors; None for learned words."""
    return None if words == LEARNED else read_config(words)[0]


def sentence_of(words: str) -> SentenceConfig | None:
    """Sizes of a pretrained encoder; None for learned words and those of a frozen network."""
    return None if words in (LEARNED, BACKBONE) else read_config(words)[1]


def make_tokenizer(config: TrainConfig, splits: Iterable[Split]) -> str:
    """The text of tokenizer.json: built from the captions of some splits, or taken from a pretrained encoder.

    Args:
        config: The run's options.
        splits: The splits at hand; others that the vocabulary is built from are read.
    """
    if config.words != LEARNED:
        return read_tokenizer(config.words)
    at_hand = {split.name: split for split in splits}
    chosen = [at_hand.get(name) or load_split(config.data, name) for name in config.vocabulary_splits.split(",")]
    captions = [caption for split in chosen for caption in split.captions]
    return build_tokenizer(captions, config.min_count).to_str()


def word_table(config: TrainConfig, tokenizer: str) -> WordTable | None:
    """Read the word vectors that the run starts from, if it has any, and report how many words they cover."""
    if config.word_vectors is None:
        return None
    vocabulary = vocabulary_of(tokenizer)
    table = read_vectors(config.word_vectors, vocabulary)
    words = len(vocabulary) - len(SPECIALS)
    found = int((table.rows >= len(SPECIALS)).sum())
    _print(f"{config.word_vectors}: vectors of {found} of the {words} words")
    return table


def _print_best(best: Path, epochs: int) -> None:
    training = load_checkpoint(best)[1].training
    _print(f"{best}: epoch {finished_epochs(best)} of {epochs}, rsum {training['dev'][MONITOR]:.1f} on dev")


@rank_zero_only
def _print(line: str) -> None:
    stderr.print(line, highlight=False, soft_wrap=True)


def run_stage(stage: Stage, data: TrainingData, origin: Origin, start: Path | None) -> Path:
    """Train one stage and return its best checkpoint.

    Args:
        stage: The stage.
        data: The run's data.
        origin: The metadata of the run's checkpoints.
        start: A checkpoint whose weights the stage starts from; None to start from random weights. Ignored if the stage
            continues from its own last finished epoch.
    """
    config = stage.config
    lightning.seed_everything(config.seed, verbose=False)
    model, training = replace(origin.model, variant=config.variant), origin.training | config.as_dict()
    module = CampTraining(replace(origin, model=model, training=training), config, data, stage.fusion_only)
    last = config.output / "last.ckpt"
    resume = config.resume and last.is_file()
    if not resume:
        set_initial_weights(module.model, config, data.words, start)
    best = RunCheckpoint(config.output, "best", monitor=MONITOR, mode="max", enable_version_counter=False)
    # A second callback instead of `save_last` of the first, which writes last.ckpt only together with a new best.
    every = RunCheckpoint(config.output, "last", enable_version_counter=False)
    with quiet_lightning():
        trainer = build_trainer(config, [best, every, RichProgressBar(refresh_rate=10, leave=True)])
        if resume:
            check_devices(last, trainer.world_size)
            keep_logged(trainer, finished_epochs(last))
        try:
            trainer.fit(module, ckpt_path=last if resume else None, weights_only=True)
        except SystemExit as stopped:  # Lightning exits with 1 on Ctrl-C
            stderr.print("stopped: --resume continues after the last finished epoch", style="red")
            if stopped.code == 1:
                raise KeyboardInterrupt from None
            raise
    return config.output / "best.ckpt"


def finished_epochs(checkpoint: Path) -> int:
    """The number of epochs of its stage that a checkpoint has finished."""
    return int(load_checkpoint(checkpoint)[1].training["epoch"]) + 1
