"""The configuration of a training run: its options, their defaults, and every check of them.

Messages name an option in backticks, which the command line shows as its flag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
CROSS_ATTENTION = {"gate_fusion": "cross_attention", "gate_fusion_new": "cross_attention_new"}  # of stage 1
MACHINE_OPTIONS = ("data", "output", "start", "resume", "devices", "workers", "cache")  # may differ between machines
PICTURE_OPTIONS = ("vision", "tune_vision", "picture_size", "fit", "pixel_mean", "pixel_std", "cache")
MINIMUM = dict.fromkeys(("epochs", "batch_size", "neighbours", "negatives", "width", "word_width", "min_count"), 1)
MINIMUM |= dict.fromkeys(
    ("attention_epochs", "fusion_epochs", "softmax_weight", "global_weight", "patience", "seed"), 0
)
MINIMUM |= dict.fromkeys(("pair_batch", "picture_size", "workers", "weight_decay"), 0)
MAX_SEED = 2**32 - 1  # the limit of Lightning and numpy
VARIANT = (
    "Network: paper (gates of width d), scalar (scalar gates, factored), or a variant of the released code: "
    + ", ".join([*CROSS_ATTENTION.values(), *CROSS_ATTENTION])
)
NETWORK = "Your own network instead: my_package.my_module:MyNetwork, or an installed entry point."
SMALL, EFFICIENTNET, ONNX_SUFFIX = "small", "efficientnet-lite0", ".onnx"  # values of `vision`
PICTURE_SIZES = {SMALL: 96, EFFICIENTNET: 192}
VISION = "Vision network: small (trained with the rest), efficientnet-lite0 (pretrained), or an ONNX file."
FIT = f"Resizing: {', '.join(FITS)}. Default: stretch for --vision small, otherwise letterbox."
OF_FEATURES = {
    "width": 1024,
    "word_width": 300,
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 5e-4,
    "neighbours": 1,
    "negatives": 1,
}
OF_PICTURES = {
    "width": 128,
    "word_width": 64,
    "epochs": 5,
    "batch_size": 24,
    "learning_rate": 7e-4,
    "neighbours": 2,
    "negatives": 3,
}
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a run; `completed` replaces values left at 0 by ones that suit the data."""

    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")]
    output: Annotated[Path, typer.Option(help="Folder of the run.")]
    variant: Annotated[str, typer.Option(help=VARIANT)] = "paper"
    network: Annotated[str, typer.Option(help=NETWORK)] = ""
    start: Annotated[Path | None, typer.Option(help="Checkpoint to start from; its vocabulary is kept.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished epoch.")] = False
    width: Annotated[int, typer.Option(help="Width d of the network. 0: 1024 for features, 128 for pictures.")] = 0
    word_width: Annotated[
        int, typer.Option(help="Width of learned word vectors. 0: 300 for features, 64 for pictures.")
    ] = 0
    words: Annotated[
        str, typer.Option(help="Word vectors: learned, or of a frozen pretrained encoder: all-minilm-l6-v2.")
    ] = LEARNED
    vision: Annotated[str, typer.Option(help=VISION)] = SMALL
    tune_vision: Annotated[bool, typer.Option("--tune-vision", help="Also train a pretrained vision network.")] = False
    picture_size: Annotated[
        int, typer.Option(help="Pixels per side, a multiple of 96 (efficientnet: of 32). 0: 96 (efficientnet: 192).")
    ] = 0
    fit: Annotated[str, typer.Option(help=FIT)] = ""
    pixel_mean: Annotated[
        str, typer.Option(help="Mean of each channel, three numbers in 0..1. Default: that of --vision.")
    ] = ""
    pixel_std: Annotated[str, typer.Option(help="Standard deviation of each channel, as --pixel-mean.")] = ""
    attention_epochs: Annotated[
        int, typer.Option(help="First train the cross-attention model for this many epochs.")
    ] = 0
    fusion_epochs: Annotated[
        int, typer.Option(help="Then train the fusion alone for this many epochs, the rest frozen.")
    ] = 0
    epochs: Annotated[int, typer.Option(help="Epochs of the whole network. 0: 30 for features, 5 for pictures.")] = 0
    batch_size: Annotated[int, typer.Option(help="Pairs per step. 0: 128 for features, 24 for pictures.")] = 0
    neighbours: Annotated[
        int, typer.Option(help="Consecutive images kept in one batch. 0: 1 for features, 2 for pictures.")
    ] = 0
    negatives: Annotated[
        int, typer.Option(help="Hardest negatives per direction. 0: 1 for features (as in the paper), 3 for pictures.")
    ] = 0
    pair_batch: Annotated[int, typer.Option(help="Pairs of a batch that the pair losses use. 0: all.")] = 0
    learning_rate: Annotated[
        float,
        typer.Option(help="Peak rate. 0: 5e-4 for features, 7e-4 for pictures, times sqrt(batch size / its default)."),
    ] = 0.0
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 1e-3
    dropout: Annotated[float, typer.Option(help="Share of the region features dropped in each step.")] = 0.0
    word_dropout: Annotated[float, typer.Option(help="Share of the word vectors dropped in each step.")] = 0.0
    unknown_words: Annotated[float, typer.Option(help="Share of the words read as <unk> in each step.")] = 0.0
    begin_as_distance: Annotated[
        bool, typer.Option("--begin-as-distance", help="Initialise scores to fall with the distance of image and text.")
    ] = False
    warm_part: Annotated[float, typer.Option(help="Share of the run over which negatives narrow to the hardest.")] = 0.1
    softmax_weight: Annotated[
        float, typer.Option(help="Weight of a softmax loss over all pairs of a batch. 0: none.")
    ] = 0.0
    global_weight: Annotated[
        float, typer.Option(help="Weight of the loss on the global vectors. 0: no global vectors.")
    ] = 0.5
    patience: Annotated[int, typer.Option(help="Stop after this many epochs without a better rsum. 0: never.")] = 0
    min_count: Annotated[int, typer.Option(help="Words that occur fewer times become <unk>.")] = 4
    precision: Annotated[str, typer.Option(help="Arithmetic: 32-true, 16-mixed or bf16-mixed.")] = "32-true"
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "auto"
    workers: Annotated[int, typer.Option(help="Number of processes that prepare batches.")] = 0
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the features of a frozen --vision for other runs.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0

    def completed(self, pictures: bool, fixed: Mapping[str, Any], source: object) -> TrainConfig:
        """Set every option that was left at 0, and check all of them.

        The defaults suit the data: small and quick for pictures, the paper's sizes for features. The learning rate
        grows with the square root of the batch size, because a larger batch has a steadier gradient.

        Args:
            pictures: Whether the data set holds pictures, not features.
            fixed: Options that a checkpoint or a pretrained encoder fixes.
            source: The checkpoint or encoder that fixes them, for messages.

        Returns:
            The complete configuration of the same run.

        Raises:
            InputError: An option is out of range, conflicts with another, does not apply to the data, or is fixed.
        """
        suited = OF_PICTURES if pictures else OF_FEATURES
        chosen = suited | {"picture_size": PICTURE_SIZES.get(self.vision, 0) if pictures else 0}
        config = self._with_network()._with_fixed(fixed, source)
        values: dict[str, Any] = {name: getattr(config, name) or value for name, value in chosen.items()}
        if not config.learning_rate and config.batch_size > 0:
            values["learning_rate"] *= math.sqrt(config.batch_size / suited["batch_size"])
        config = replace(config, **values)
        config._check(pictures)
        return config

    def as_dict(self) -> dict[str, str | int | float]:
        """The options as plain values for the checkpoint, without those that may differ between machines."""
        kept = {name: value for name, value in asdict(self).items() if name not in MACHINE_OPTIONS}
        return kept | ({"vision": "onnx"} if self.vision.endswith(ONNX_SUFFIX) else {})

    @property
    def mean(self) -> Channels | None:
        """`pixel_mean` as three numbers; None if it was not given."""
        return channels("pixel_mean", self.pixel_mean)

    @property
    def std(self) -> Channels | None:
        """`pixel_std` as three numbers; None if it was not given."""
        return channels("pixel_std", self.pixel_std)

    def check_batch(self, captions: int) -> None:
        """Raise InputError if a batch is larger than a device's share of the training captions."""
        devices = int(self.devices) if self.devices.isdecimal() else 1
        if self.batch_size > (share := captions // devices):
            what = f"the {share} training captions" + (f" of each of {devices} devices" if devices > 1 else "")
            raise InputError(f"`batch_size` {self.batch_size} is more than {what}")

    def _with_network(self) -> TrainConfig:
        """The same options, with the name of a network of one's own in place of the variant."""
        if not self.network:
            return self
        if self.variant not in (TrainConfig.variant, self.network):
            raise InputError(f"`variant` {self.variant}: give either it or `network` {self.network}")
        return replace(self, variant=self.network)

    def _with_fixed(self, fixed: Mapping[str, Any], source: object) -> TrainConfig:
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in fixed.items():
            asked = getattr(self, name)
            if asked not in (value, defaults[name]):
                raise InputError(f"`{name}` {asked}: {source} has {value}, which is fixed: leave the option out")
        return replace(self, **fixed)

    def _check(self, pictures: bool) -> None:
        for name, minimum in MINIMUM.items():
            if not minimum <= getattr(self, name) < math.inf:  # refuses NaN as well
                raise InputError(f"`{name}` {getattr(self, name)}: expected a number, {minimum} or more")
        for name, values in (("precision", PRECISIONS), ("fit", ("", *FITS))):
            if getattr(self, name) not in values:
                raise InputError(f"`{name}` {getattr(self, name)}: expected one of {', '.join(filter(None, values))}")
        self._check_stages()
        self._check_network()
        self._check_losses()
        self._check_words()
        if pictures:
            self._check_vision()
        elif given := [f"`{n}`" for n in PICTURE_OPTIONS if getattr(self, n) != getattr(TrainConfig, n)]:
            raise InputError(f"{', '.join(given)}: only for pictures, but {self.data} holds features")

    def _check_stages(self) -> None:
        if self.attention_epochs and self.variant not in CROSS_ATTENTION:
            raise InputError(f"`attention_epochs`: {self.variant} has no cross-attention model to start from")
        if self.fusion_epochs and not (self.attention_epochs or self.start):
            raise InputError(
                "`fusion_epochs`: nothing to freeze; give `attention_epochs`, or `start` with a checkpoint"
            )
        if self.devices != "auto" and not (self.devices.isdecimal() and int(self.devices)):
            raise InputError(f"`devices` {self.devices}: expected auto, or a number, 1 or more")
        if self.seed > MAX_SEED:
            raise InputError(f"`seed` {self.seed}: expected {MAX_SEED} or less")

    def _check_network(self) -> None:
        from camp_sdk.export.network.networks import network_named  # here: --help does not wait for torch

        network = network_named(self.variant)
        if self.begin_as_distance and not hasattr(network, "begin_as_distance"):
            raise InputError(f"`begin_as_distance`: not possible for {self.variant}")
        if self.fusion_epochs and not network.fusion:
            raise InputError(f"`fusion_epochs`: {self.variant} has no fusion to train")

    def _check_losses(self) -> None:
        for name in ("batch_size", "pair_batch"):
            if getattr(self, name) == 1:
                raise InputError(f"`{name}` 1: negatives come from the batch, expected 2 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"`learning_rate` {self.learning_rate}: expected a positive number")
        if not 0 <= self.warm_part <= 1:
            raise InputError(f"`warm_part` {self.warm_part}: expected 0 to 1")
        for name in ("dropout", "word_dropout", "unknown_words"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` {getattr(self, name)}: expected 0 to 1, below 1")
        if self.begin_as_distance and self.start:
            raise InputError(f"`begin_as_distance`: not possible for a run with `start` {self.start}")

    def _check_words(self) -> None:
        if self.unknown_words and self.words != LEARNED:
            raise InputError(f"`unknown_words` {self.unknown_words}: {self.words} knows every word")
        if self.min_count != TrainConfig.min_count and (self.start or self.words != LEARNED):
            source = self.start or self.words
            raise InputError(f"`min_count` {self.min_count}: {source} has its own words: leave the option out")

    def _check_vision(self) -> None:
        if self.vision not in PICTURE_SIZES and not self.vision.endswith(ONNX_SUFFIX) and not self.start:
            known = ", ".join(PICTURE_SIZES)
            raise InputError(f"`vision` {self.vision}: expected {known}, or a file that ends in {ONNX_SUFFIX}")
        if self.tune_vision and self.vision != EFFICIENTNET:
            when = "always" if self.vision == SMALL else "never"
            raise InputError(f"`tune_vision`: {self.vision} is {when} trained")
        if self.cache and (self.vision == SMALL or self.tune_vision):
            raise InputError(
                f"`cache` {self.cache}: keeps the features of a frozen network, but `vision` {self.vision} is trained"
            )
        fixed = self.start or (f"`vision` {SMALL}" if self.vision == SMALL else None)
        if fixed and (self.mean or self.std):
            raise InputError(f"`pixel_mean`, `pixel_std`: {fixed} has its own")


def channels(option: str, text: str) -> Channels | None:
    """Read three numbers from text such as "0.5,0.5,0.5".

    Args:
        option: The option that holds the text.
        text: The text; "" if the option was not given.

    Returns:
        The numbers of the three channels, or None for "".

    Raises:
        InputError: The text is not three finite numbers, or a standard deviation is not above zero.
    """
    if not text:
        return None
    try:
        red, green, blue = (float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"`{option}` {text!r}: expected three numbers such as 0.5,0.5,0.5") from None
    minimum = 1e-6 if option == "pixel_std" else -math.inf
    if not all(minimum <= number < math.inf for number in (red, green, blue)):
        raise InputError(f"`{option}` {text!r}: expected finite numbers, standard deviations above zero")
    return red, green, blue
