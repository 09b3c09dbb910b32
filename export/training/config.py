"""The configuration of a training run: its options, their defaults, and every check of them that needs no data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
CROSS_ATTENTION = {"gate_fusion": "cross_attention", "gate_fusion_new": "cross_attention_new"}  # what each starts from
DISTANCE_VARIANTS = ("paper", "scalar")  # their MLP sees the sum of both sides
UNTOLD = ("data", "output", "start", "resume", "devices", "workers", "cache")  # where things lay on this machine
LEAST = dict.fromkeys(("epochs", "batch_size", "neighbours", "negatives", "width", "word_width", "min_count"), 1)
LEAST |= dict.fromkeys(("attention_epochs", "fusion_epochs", "softmax_weight", "global_weight", "patience", "seed"), 0)
LEAST |= dict.fromkeys(("pair_batch", "picture_size", "workers", "weight_decay"), 0)
MOST_SEED = 2**32 - 1  # of Lightning and numpy
VARIANTS = (*DISTANCE_VARIANTS, *CROSS_ATTENTION.values(), *CROSS_ATTENTION)
VARIANT = "paper (gates of d numbers), scalar (one number, factored), or one of the released code's: " + ", ".join(
    [*CROSS_ATTENTION.values(), *CROSS_ATTENTION]
)
PICTURE_SIZES = {"small": 96, "efficientnet-lite0": 192}
VISION = "Pictures to features: small (trained with the rest), efficientnet-lite0 (pretrained), or an ONNX file."
FIT = f"{', '.join(FITS)}. Default: stretch for --vision small, letterbox for others."


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Options left at 0 take a value that suits the data: see `with_defaults`."""

    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")]
    output: Annotated[Path, typer.Option(help="Folder of the run.")]
    variant: Annotated[str, typer.Option(help=VARIANT)] = "paper"
    start: Annotated[Path | None, typer.Option(help="Checkpoint to start from; brings its vocabulary.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last epoch that was finished.")] = False
    width: Annotated[int, typer.Option(help="d. 0: 1024 for features, 128 for pictures.")] = 0
    word_width: Annotated[int, typer.Option(help="Learned vectors. 0: 300 for features, 64 for pictures.")] = 0
    words: Annotated[str, typer.Option(help="learned, or a pretrained encoder, frozen: all-minilm-l6-v2.")] = "learned"
    vision: Annotated[str, typer.Option(help=VISION)] = "small"
    tune_vision: Annotated[bool, typer.Option("--tune-vision", help="Train a pretrained vision network, too.")] = False
    picture_size: Annotated[int, typer.Option(help="Pixels, a multiple of 96, of 32 for efficientnet. 0: 96, 192.")] = 0
    fit: Annotated[str, typer.Option(help=FIT)] = ""
    pixel_mean: Annotated[str, typer.Option(help="Three numbers of 0..1; default: what --vision was made with.")] = ""
    pixel_std: Annotated[str, typer.Option(help="As --pixel-mean.")] = ""
    attention_epochs: Annotated[int, typer.Option(help="First train the variant's cross-attention model so long.")] = 0
    fusion_epochs: Annotated[int, typer.Option(help="Then train the fusion alone, encoders and attention frozen.")] = 0
    epochs: Annotated[int, typer.Option(help="Of everything. 0: 30 for features, 5 for pictures.")] = 0
    batch_size: Annotated[int, typer.Option(help="Pairs a step. 0: 128 for features, 24 for pictures.")] = 0
    neighbours: Annotated[int, typer.Option(help="Images side by side that share a batch. 0: 1; 2 for pictures.")] = 0
    negatives: Annotated[int, typer.Option(help="Hardest negatives each way. 0: 1, the paper's; 3 for pictures.")] = 0
    pair_batch: Annotated[int, typer.Option(help="So many pairs of a batch meet in the pair losses; 0: all of it.")] = 0
    learning_rate: Annotated[
        float,
        typer.Option(help="Peak. 0: 5e-4 for features, 7e-4 for pictures, times the root of batch size / default."),
    ] = 0.0
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 1e-3
    dropout: Annotated[float, typer.Option(help="Part of the region features that a step leaves out.")] = 0.0
    word_dropout: Annotated[float, typer.Option(help="The same of the word vectors.")] = 0.0
    unknown_words: Annotated[float, typer.Option(help="Part of the words that a step reads as <unk>.")] = 0.0
    begin_as_distance: Annotated[
        bool, typer.Option("--begin-as-distance", help="Begin with scores that fall with a distance of the two sides.")
    ] = False
    warm_part: Annotated[float, typer.Option(help="Part of the run that narrows to the hardest negatives.")] = 0.1
    softmax_weight: Annotated[
        float, typer.Option(help="Weight of a softmax loss on all pairs of a batch; 0: none.")
    ] = 0.0
    global_weight: Annotated[float, typer.Option(help="Weight of the global vectors' loss. 0: no such vectors.")] = 0.5
    patience: Annotated[int, typer.Option(help="Stop after this many epochs without a better rsum; 0: never.")] = 0
    min_count: Annotated[int, typer.Option(help="Words seen less often become <unk>.")] = 4
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, 16-mixed or bf16-mixed.")] = "32-true"
    devices: Annotated[str, typer.Option(help="How many devices, or auto.")] = "auto"
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the features of a frozen --vision for other runs.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0

    def with_defaults(self, pictures: bool) -> TrainConfig:
        """The same run with every 0 replaced by what suits pictures (small and quick) or features (the paper's sizes).

        The learning rate grows with the batch, by its square root as Adam's steps want it: a larger batch has a steadier
        gradient.
        """
        small = {"width": 128, "word_width": 64, "epochs": 5, "batch_size": 24, "learning_rate": 7e-4}
        large = {"width": 1024, "word_width": 300, "epochs": 30, "batch_size": 128, "learning_rate": 5e-4}
        chosen = small | {"neighbours": 2, "negatives": 3} if pictures else large | {"neighbours": 1, "negatives": 1}
        chosen["picture_size"] = PICTURE_SIZES.get(self.vision, 0) if pictures else 0
        values: dict[str, Any] = {name: getattr(self, name) or value for name, value in chosen.items()}
        if not self.learning_rate and self.batch_size > 0:
            values["learning_rate"] *= math.sqrt(self.batch_size / chosen["batch_size"])
        return replace(self, **values)

    def as_dict(self) -> dict[str, str | int | float]:
        """Plain values, for the checkpoint; without where things lay on this machine."""
        told = {name: value for name, value in asdict(self).items() if name not in UNTOLD}
        return told | ({"vision": "onnx"} if self.vision.endswith(".onnx") else {})

    def check(self) -> None:
        """Raise InputError for values no run can have."""
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:  # not a number is not enough either
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number, {least} or more"
                )
        if self.variant not in VARIANTS:
            raise InputError(f"--variant {self.variant}: expected one of {', '.join(VARIANTS)}")
        self._check_stages()
        self._check_vision()
        self._check_parts()
        if self.devices != "auto" and not (self.devices.isdecimal() and int(self.devices)):
            raise InputError(f"--devices {self.devices}: expected auto, or how many, 1 or more")
        for name, size in (("batch-size", self.batch_size), ("pair-batch", self.pair_batch)):
            if size == 1:
                raise InputError(f"--{name} 1: negatives come from the batch, expected 2 or more")
        if self.precision not in PRECISIONS:
            raise InputError(f"--precision {self.precision}: expected one of {', '.join(PRECISIONS)}")
        if self.seed > MOST_SEED:
            raise InputError(f"--seed {self.seed}: expected {MOST_SEED} or less")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"--learning-rate {self.learning_rate}: expected a positive number")

    def _check_vision(self) -> None:
        if self.fit not in ("", *FITS):
            raise InputError(f"--fit {self.fit}: expected one of {', '.join(FITS)}")
        if self.tune_vision and self.vision != "efficientnet-lite0":
            raise InputError(
                f"--tune-vision: {self.vision} is {'always' if self.vision == 'small' else 'never'} trained"
            )

    def _check_parts(self) -> None:
        if self.begin_as_distance and (self.start or self.variant not in DISTANCE_VARIANTS):
            what = f"a run with --start {self.start}" if self.start else self.variant
            raise InputError(f"--begin-as-distance: {what} begins otherwise")
        if not 0 <= self.warm_part <= 1:
            raise InputError(f"--warm-part {self.warm_part}: expected 0 to 1")
        for name in ("dropout", "word_dropout", "unknown_words"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 to 1, below 1")
        if self.unknown_words and self.words != "learned":
            raise InputError(f"--unknown-words {self.unknown_words}: the words of {self.words} are known")
        if self.min_count != TrainConfig.min_count and (self.start or self.words != "learned"):
            raise InputError(f"--min-count {self.min_count}: {self.start or self.words} brings its words, leave it out")

    def _check_stages(self) -> None:
        if self.attention_epochs and self.variant not in CROSS_ATTENTION:
            raise InputError(f"--attention-epochs: {self.variant} has no cross-attention model to start from")
        if self.fusion_epochs and not (self.attention_epochs or self.start):
            raise InputError(
                "--fusion-epochs: nothing to freeze; give --attention-epochs, or --start with a checkpoint"
            )
        if self.fusion_epochs and self.variant in CROSS_ATTENTION.values():
            raise InputError(f"--fusion-epochs: {self.variant} has no fusion to train")
