"""The configuration of a training run: its options, completed by defaults that suit the data, and every check of them.

Messages name an option in backticks, which the command line shows as its flag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.export.training.options import (
    CROSS_ATTENTION,
    EFFICIENTNET,
    ONNX_SUFFIX,
    PICTURE_SIZES,
    SMALL,
    TrainOptions,
)
from camp_sdk.export.training.recipe import (
    ATTENTION,
    FUSION,
    ONE_CYCLE,
    OPTIMISERS,
    RELEASED,
    STAGED,
    WHOLE,
    joined,
    released_options,
    values_of,
)
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
CHOICES = {  # the first is the default
    "recipe": ("", RELEASED),
    "precision": PRECISIONS,
    "fit": ("", *FITS),
    "init": ("default", RELEASED),
    "captions": ("all", "one"),
    "loss": ("", "bce", "margin"),
    "reduction": ("mean", "sum"),
}
PICTURE_OPTIONS = ("backbone", "vision", "tune_vision", "picture_size", "fit", "pixel_mean", "pixel_std", "cache")
MINIMUM = dict.fromkeys(("epochs", "batch_size", "neighbours", "negatives", "width", "word_width", "min_count"), 1)
MINIMUM |= dict.fromkeys(
    ("attention_epochs", "fusion_epochs", "softmax_weight", "global_weight", "patience", "seed"), 0
)
MINIMUM |= dict.fromkeys(("pair_batch", "picture_size", "workers", "weight_decay", "decay_every"), 0)
MINIMUM |= {"evaluate_every": 1}
MAX_SEED = 2**32 - 1  # the limit of Lightning and numpy
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


@dataclass(frozen=True)
class TrainConfig(TrainOptions):
    """Every option of a run; `completed` replaces values left at 0 by ones that suit the data.

    Options of `STAGED` take a number, or text with one value for each stage that is trained: "256,128,64".
    """

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
        config = self._with_network()._with_fixed(fixed, source)._staged_values()._with_recipe()
        suited = OF_PICTURES if pictures else OF_FEATURES
        chosen = suited | {"picture_size": PICTURE_SIZES.get(self.vision, 0) if pictures else 0}
        values: dict[str, Any] = {n: getattr(config, n) or value for n, value in chosen.items() if n not in STAGED}
        config = replace(config, **values, **config._step_sizes(suited))
        config._check(pictures)
        return config

    @property
    def stages(self) -> list[str]:
        """What each stage that is trained trains: `ATTENTION`, `FUSION` or `WHOLE`."""
        first = [name for name, epochs in ((ATTENTION, self.attention_epochs), (FUSION, self.fusion_epochs)) if epochs]
        return [*first, ATTENTION if self.variant in CROSS_ATTENTION.values() else WHOLE]

    def each(self, name: str) -> list[Any]:
        """The values of an option of `STAGED`, one for each stage."""
        return values_of(name, getattr(self, name), len(self.stages))

    def of_stage(self, index: int) -> dict[str, Any]:
        """The options of `STAGED` of one of the `stages`."""
        return {name: self.each(name)[index] for name in STAGED}

    def check_batch(self, images: int, captions: int) -> None:
        """Raise InputError if a batch is larger than a device's share of an epoch.

        Args:
            images: The number of training images.
            captions: The number of their captions.
        """
        devices = int(self.devices) if self.devices.isdecimal() else 1
        pairs, name = (images, "images") if self.captions == "one" else (captions, "captions")
        share, largest = pairs // devices, max(self.each("batch_size"))
        if largest > share:
            what = f"the {share} training {name}" + (f" of each of {devices} devices" if devices > 1 else "")
            raise InputError(f"`batch_size` {largest} is more than {what}")

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

    def _staged_values(self) -> TrainConfig:
        """The same options, those of `STAGED` as numbers, which the command line passes as text."""
        return replace(self, **{name: joined(self.each(name)) for name in STAGED})

    def _with_recipe(self) -> TrainConfig:
        """The options of `recipe`, where none was given, or where it equals the default."""
        if self.recipe != RELEASED:
            return self
        options = released_options(self.stages)
        if self.start or self.words != LEARNED:
            del options["vocabulary_splits"]  # the start or the encoder has its own words
        if self.start:
            del options["init"]
        return replace(
            self, **{n: value for n, value in options.items() if getattr(self, n) == getattr(TrainConfig, n)}
        )

    def _step_sizes(self, suited: Mapping[str, Any]) -> dict[str, Any]:
        """Batch sizes and learning rates, those left at 0 as they suit the data."""
        batches = [given or suited["batch_size"] for given in self.each("batch_size")]
        rates = [
            given or suited["learning_rate"] * math.sqrt(max(batch, 0) / suited["batch_size"])
            for given, batch in zip(self.each("learning_rate"), batches, strict=True)
        ]
        return {"batch_size": joined(batches), "learning_rate": joined(rates)}

    def _check(self, pictures: bool) -> None:
        for name, minimum in MINIMUM.items():
            for value in self.each(name) if name in STAGED else [getattr(self, name)]:
                if not minimum <= value < math.inf:  # refuses NaN as well
                    raise InputError(f"`{name}` {value}: expected a number, {minimum} or more")
        chosen = [(name, getattr(self, name), values) for name, values in CHOICES.items()]
        for name, value, values in chosen + [("optimiser", one, OPTIMISERS) for one in self.each("optimiser")]:
            if value not in values:
                raise InputError(f"`{name}` {value}: expected one of {', '.join(filter(None, values))}")
        self._check_stages()
        self._check_network()
        self._check_steps()
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
        if self.loss == "margin" and network.activation != "none":
            raise InputError(f"`loss` margin: ranks cosines, but {self.variant} gives logits: expected bce")

    def _check_steps(self) -> None:
        for name, sizes in (("batch_size", self.each("batch_size")), ("pair_batch", [self.pair_batch])):
            if 1 in sizes:
                raise InputError(f"`{name}` 1: negatives come from the batch, expected 2 or more")
        for rate in self.each("learning_rate"):
            if not (math.isfinite(rate) and rate > 0):
                raise InputError(f"`learning_rate` {rate}: expected a positive number")
        for optimiser, epochs in zip(self.each("optimiser"), self.each("decay_every"), strict=True):
            if optimiser == ONE_CYCLE and epochs:
                raise InputError(f"`decay_every` {epochs}: {ONE_CYCLE} has a one-cycle rate; expected adam or sgd")

    def _check_losses(self) -> None:
        if not 0 <= self.warm_part <= 1:
            raise InputError(f"`warm_part` {self.warm_part}: expected 0 to 1")
        for name in ("dropout", "word_dropout", "unknown_words"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` {getattr(self, name)}: expected 0 to 1, below 1")
        if self.begin_as_distance and self.start:
            raise InputError(f"`begin_as_distance`: not possible for a run with `start` {self.start}")
        if self.init == RELEASED and self.start:
            raise InputError(f"`init` {RELEASED}: `start` {self.start} gives the initial weights")

    def _check_words(self) -> None:
        own = self.backbone or (self.words if self.words != LEARNED else None)
        if self.unknown_words and own:
            raise InputError(f"`unknown_words` {self.unknown_words}: {own} knows every word")
        if own := self.start or own:
            for name in ("min_count", "vocabulary_splits", "word_vectors"):
                if (value := getattr(self, name)) != getattr(TrainConfig, name):
                    raise InputError(f"`{name}` {value}: {own} has its own words: leave the option out")
        splits = self.vocabulary_splits.split(",")
        if "" in splits or len(set(splits)) < len(splits):
            raise InputError(f"`vocabulary_splits` {self.vocabulary_splits}: expected splits such as train,dev")

    def _check_vision(self) -> None:
        other = self.start or self.backbone
        if self.vision not in PICTURE_SIZES and not self.vision.endswith(ONNX_SUFFIX) and not other:
            known = ", ".join(PICTURE_SIZES)
            raise InputError(f"`vision` {self.vision}: expected {known}, or a file that ends in {ONNX_SUFFIX}")
        if self.tune_vision and self.vision != EFFICIENTNET:
            when = "always" if self.vision == SMALL else "never"
            raise InputError(f"`tune_vision`: {self.vision} is {when} trained")
        if self.cache and (self.vision == SMALL or self.tune_vision):
            raise InputError(
                f"`cache` {self.cache}: keeps the features of a frozen network, but `vision` {self.vision} is trained"
            )
        fixed = other or (f"`vision` {SMALL}" if self.vision == SMALL else None)
        if fixed and (self.mean or self.std):
            raise InputError(f"`pixel_mean`, `pixel_std`: {fixed} has its own")
