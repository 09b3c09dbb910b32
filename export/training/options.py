"""The options of a training run: their names, defaults and help, in the order of `camp train --help`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.export.training.recipe import ONE_CYCLE
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS

CROSS_ATTENTION = {"gate_fusion": "cross_attention", "gate_fusion_new": "cross_attention_new"}  # of stage 1
# Options that may differ between machines.
MACHINE_OPTIONS = ("data", "output", "start", "resume", "backbone", "devices", "workers", "cache")
VARIANT = (
    "Network: paper (gates of width d), scalar (scalar gates, factored), or a variant of the released code: "
    + ", ".join([*CROSS_ATTENTION.values(), *CROSS_ATTENTION])
)
NETWORK = "Your own network instead: my_package.my_module:MyNetwork, or an installed entry point."
STAGES = "; one value, or one for each stage"  # of the options in `STAGED`
SMALL, EFFICIENTNET, ONNX_SUFFIX = "small", "efficientnet-lite0", ".onnx"  # values of `vision`
PICTURE_SIZES = {SMALL: 96, EFFICIENTNET: 192}
VISION = "Vision network: small (trained with the rest), efficientnet-lite0 (pretrained), or an ONNX file."
ON = "Train on top of this frozen network, such as a published CLIP: its folder or checkpoint."
FIT = f"Resizing: {', '.join(FITS)}. Default: stretch for --vision small, otherwise letterbox."
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class TrainOptions:
    """Every option of a run, as it was given.

    Options of `STAGED` take a number, or text with one value for each stage that is trained: "256,128,64".
    """

    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")]
    output: Annotated[Path, typer.Option(help="Folder of the run.")]
    variant: Annotated[str, typer.Option(help=VARIANT)] = "paper"
    start: Annotated[Path | None, typer.Option(help="Checkpoint to start from; its vocabulary is kept.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished epoch.")] = False
    network: Annotated[str, typer.Option(help=NETWORK)] = ""
    recipe: Annotated[
        str, typer.Option(help="released: the options with which the released code trains. Options given besides win.")
    ] = ""
    width: Annotated[int, typer.Option(help="Width d of the network. 0: 1024 for features, 128 for pictures.")] = 0
    word_width: Annotated[
        int, typer.Option(help="Width of learned word vectors. 0: 300 for features, 64 for pictures.")
    ] = 0
    words: Annotated[
        str, typer.Option(help="Word vectors: learned, or of a frozen pretrained encoder: all-minilm-l6-v2.")
    ] = LEARNED
    word_vectors: Annotated[
        Path | None,
        typer.Option(help="Learned word vectors start from this file: .npy, or GloVe's or word2vec's .txt."),
    ] = None
    backbone: Annotated[Path | None, typer.Option(help=ON)] = None
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
    captions: Annotated[
        str, typer.Option(help="Of each image in an epoch: all captions, or one, drawn again in every epoch.")
    ] = "all"
    batch_size: Annotated[
        int | str, typer.Option(help=f"Pairs per step{STAGES}. 0: 128 for features, 24 for pictures.")
    ] = 0
    neighbours: Annotated[
        int, typer.Option(help="Consecutive images kept in one batch. 0: 1 for features, 2 for pictures.")
    ] = 0
    negatives: Annotated[
        int, typer.Option(help="Hardest negatives per direction. 0: 1 for features (as in the paper), 3 for pictures.")
    ] = 0
    pair_batch: Annotated[int, typer.Option(help="Pairs of a batch that the pair losses use. 0: all.")] = 0
    learning_rate: Annotated[
        float | str,
        typer.Option(
            help=f"Peak rate{STAGES}. 0: 5e-4 for features, 7e-4 for pictures, times sqrt(batch size / its default)."
        ),
    ] = 0.0
    optimiser: Annotated[
        str, typer.Option(help=f"adamw with a one-cycle rate, or adam or sgd with a rate that falls in steps{STAGES}.")
    ] = ONE_CYCLE
    decay_every: Annotated[
        int | str, typer.Option(help=f"Epochs after which the rate of adam or sgd falls to a tenth{STAGES}. 0: never.")
    ] = 0
    weight_decay: Annotated[float | str, typer.Option(help=f"The optimiser's weight decay{STAGES}.")] = 1e-3
    dropout: Annotated[float, typer.Option(help="Share of the region features dropped in each step.")] = 0.0
    word_dropout: Annotated[float, typer.Option(help="Share of the word vectors dropped in each step.")] = 0.0
    unknown_words: Annotated[float, typer.Option(help="Share of the words read as <unk> in each step.")] = 0.0
    begin_as_distance: Annotated[
        bool, typer.Option("--begin-as-distance", help="Initialise scores to fall with the distance of image and text.")
    ] = False
    init: Annotated[str, typer.Option(help="Initial weights: default (PyTorch's), or released.")] = "default"
    loss: Annotated[
        str, typer.Option(help="Loss of the pairs: bce, or margin for cosines. Default: margin for cosines, else bce.")
    ] = ""
    reduction: Annotated[str, typer.Option(help="Losses over a batch: mean or sum.")] = "mean"
    warm_part: Annotated[float, typer.Option(help="Share of the run over which negatives narrow to the hardest.")] = 0.1
    softmax_weight: Annotated[
        float | str, typer.Option(help=f"Weight of a softmax loss over all pairs of a batch{STAGES}. 0: none.")
    ] = 0.0
    global_weight: Annotated[
        float | str, typer.Option(help=f"Weight of the loss on the global vectors{STAGES}. 0: no global vectors.")
    ] = 0.5
    evaluate_every: Annotated[int, typer.Option(help="Measure on dev after every N epochs, and after the last.")] = 1
    patience: Annotated[
        int, typer.Option(help="Stop after this many measurements without a better rsum; 0: never.")
    ] = 0
    vocabulary_splits: Annotated[
        str, typer.Option(help="Splits whose captions give the vocabulary, with commas: train,dev.")
    ] = "train"
    min_count: Annotated[int, typer.Option(help="Words that occur fewer times become <unk>.")] = 4
    precision: Annotated[str, typer.Option(help="Arithmetic: 32-true, 16-mixed or bf16-mixed.")] = "32-true"
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "auto"
    workers: Annotated[int, typer.Option(help="Number of processes that prepare batches.")] = 0
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the features of a frozen --vision for other runs.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0

    def as_dict(self) -> dict[str, str | int | float]:
        """The options as plain values for the checkpoint, without those that may differ between machines."""
        kept = {name: value for name, value in asdict(self).items() if name not in MACHINE_OPTIONS}
        files = {"word_vectors": self.word_vectors.suffix if self.word_vectors else ""}
        return kept | files | ({"vision": "onnx"} if self.vision.endswith(ONNX_SUFFIX) else {})

    @property
    def mean(self) -> Channels | None:
        """`pixel_mean` as three numbers; None if it was not given."""
        return channels("pixel_mean", self.pixel_mean)

    @property
    def std(self) -> Channels | None:
        """`pixel_std` as three numbers; None if it was not given."""
        return channels("pixel_std", self.pixel_std)


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
