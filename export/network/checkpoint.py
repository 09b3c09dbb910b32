"""Self-contained checkpoints: weights, configuration, tokenizer, preprocessing, and a few real examples."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.networks import NetworkError, is_own, network_named
from camp_sdk.export.network.pickle_steps import RefusedNameError
from camp_sdk.export.network.pickles import check_checkpoint_file, check_values
from camp_sdk.export.network.sentences import SentenceConfig
from camp_sdk.export.network.towers import TowersConfig
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.manifest import MAX_PIXELS, PixelSpec
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.tokenizer import Tokenizer

KEY = "camp"
FORMAT = 1
MAX_LIST = 5000  # characters of a message that lists tensors
MAX_REASON = 300  # characters: errors may repeat what a file holds
EASYDICT = "easydict.EasyDict"  # the class of the options in a released checkpoint


@dataclass(frozen=True)
class Origin:
    """Everything a checkpoint holds besides its weights.

    Args:
        model: the configuration of the network.
        pixels: how pictures become pixels; None for a model that takes features.
        tokenizer: the text of tokenizer.json.
        example_images: a few training images: uint8 pictures [I, S, S, 3] or float32 features [I, R, D].
        example_captions: a few captions of these images.
        training: how the network was trained, for people to read.
        stop_words: tokens that occur in more than half of the training captions, sorted.
    """

    model: ModelConfig
    pixels: PixelSpec | None
    tokenizer: str
    example_images: Tensor
    example_captions: list[str]
    training: dict[str, Any]
    stop_words: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values and tensors, which torch loads without running any code."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        pixels = self.pixels.as_dict() if self.pixels else None
        return plain | {"format": FORMAT, "model": asdict(self.model), "pixels": pixels}

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, opened as the runtime opens it."""
        return Tokenizer(self.tokenizer)

    def example_batch(self) -> Tensor:
        """The example images as the network takes them: pixels [I, 3, S, S] or features [I, R, D]."""
        from camp_sdk.pictures import normalise

        if self.pixels is None:
            return self.example_images
        return torch.from_numpy(normalise(self.example_images.numpy().astype(np.uint8), self.pixels))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        checkpoint: tensors and plain values.
        path: the file.

    Raises:
        OSError: the disk is full, or nothing can be written there; the error names the path.
    """
    content = io.BytesIO()  # inside torch.save, a full disk is not an OSError
    torch.save(checkpoint, content)
    with write_aside(path) as aside:
        # Not `getbuffer`: after a failed write, collecting it crashes Python 3.12.
        aside.write_bytes(content.getvalue())


def load_plain(path: Path, dicts: Sequence[str] = ()) -> Any:
    """Load a file written by torch.save that holds only tensors and plain values. No code in it is run.

    Args:
        path: the file.
        dicts: the names of classes for which an ordered dict stands in, so that they need not be installed.

    Raises:
        BundleError: the file is truncated, not written by torch, holds anything else, or stands for much more data than
            it has bytes.
    """
    try:
        check_checkpoint_file(path, [" ".join(name.rsplit(".", 1)) for name in dicts])
        with torch.serialization.safe_globals([(OrderedDict, name) for name in dicts]):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        check_values(loaded, path.stat().st_size)
    except Exception as error:  # for files that are not checkpoints, torch raises a dozen types
        whole = "" if isinstance(error, RefusedNameError) else "; expected a whole file written by torch.save"
        reason = first_line(error) + whole
        released = "; import a checkpoint of the released code with camp import" if EASYDICT in reason else ""
        raise BundleError(f"{path} cannot be read as a checkpoint: {reason}{released}") from None
    return loaded


def first_line(error: Exception) -> str:
    """The first sentence of an error's first line: the rest of torch's messages advises running the file's code."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.split(". ")[0][:MAX_REASON]


def load_checkpoint(path: str | Path) -> tuple[Camp, Origin]:
    """Rebuild the network of a checkpoint, in evaluation mode on the CPU.

    Only tensors and plain values are read, never code.

    Args:
        path: a file written by training or by the import of a released checkpoint.

    Returns:
        The network, and everything else the checkpoint holds.

    Raises:
        BundleError: the file is missing, truncated or from another program, or its weights do not fit its
            configuration.
        InputError: its network is not known here: it was neither added nor installed.
    """
    if not Path(path).is_file():
        raise BundleError(f"{path} not found: expected a checkpoint written by camp train")
    loaded = load_plain(Path(path))
    own = loaded.get(KEY) if isinstance(loaded, dict) else None
    version = own.get("format") if isinstance(own, dict) else None
    if type(version) is not int or version != FORMAT:  # a tensor would compare as a tensor
        raise BundleError(
            f"{path} is not a checkpoint of camp train (format {FORMAT}): train with this version, or, if the released "
            "code wrote it, run camp import first"
        )
    with _fitting(path):
        origin = _parse(loaded[KEY])
    configs = [config for config in (origin.model, origin.model.backbone) if config is not None]
    own = [_check_network(path, config.variant) for config in configs if config.towers is None]
    with _fitting(path):
        weights = {k.removeprefix("model."): v for k, v in loaded["state_dict"].items() if k.startswith("model.")}
        if not any(own):  # the user's code may read values of what it makes, which a network without memory lacks
            _check_sizes(origin.model, weights)
        model = Camp(origin.model)
        model.load_state_dict(weights)
    return model.eval(), origin


@contextmanager
def _fitting(path: str | Path) -> Iterator[None]:
    """Raise BundleError for whatever a checkpoint that contradicts itself leads to."""
    try:
        yield
    except NetworkError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        shown = reason if len(reason) <= MAX_LIST else f"{reason[:MAX_LIST]}..."
        raise BundleError(f"{path} does not fit its own configuration: {shown}") from None


def _parse(raw: Mapping[str, Any]) -> Origin:
    pixels = PixelSpec.from_dict(raw["pixels"]) if raw["pixels"] else None
    rest = {name: raw[name] for name in ("tokenizer", "example_images", "example_captions", "training")}
    backbone = raw["model"].get("backbone")
    model = replace(_model_config(raw["model"]), backbone=_model_config(backbone) if backbone else None)
    stop_words = [str(word) for word in raw.get("stop_words", [])]  # missing in older checkpoints
    origin = Origin(model, pixels, **rest, stop_words=stop_words)
    for name, kind in (("tokenizer", str), ("example_images", Tensor), ("example_captions", list), ("training", dict)):
        if not isinstance(getattr(origin, name), kind):
            raise TypeError(f"{name} is {brief(getattr(origin, name))}, expected {kind.__name__}")
    if not all(isinstance(caption, str) for caption in origin.example_captions):
        raise TypeError(f"example_captions are {brief(origin.example_captions)}, expected text")
    return origin


def _model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a network, without that of the frozen network below it."""
    sizes = raw.get("sentence")  # missing in checkpoints that are older than sentence encoders
    towers = raw.get("towers")  # likewise
    parts = {
        "sentence": SentenceConfig(**sizes) if sizes else None,
        "towers": TowersConfig(**towers) if towers else None,
        "backbone": None,
    }
    return ModelConfig(**{**raw, **parts})


def _check_network(path: str | Path, name: Any) -> bool:
    """Whether the network of a checkpoint is one of the user's; nothing is imported because a file names it.

    Raises InputError if it is not known.
    """
    if not isinstance(name, str):
        raise BundleError(f"{path} does not fit its own configuration: variant is {brief(name)}, expected a name")
    try:
        return is_own(network_named(name))
    except InputError as error:
        raise InputError(
            f"{path} needs the network {brief(name)}: give it as `network`, or install the package that offers it"
        ) from error


def _check_layers(config: ModelConfig, weights: int) -> None:
    """Raise ValueError for sizes that would take long to make a network of, even one without memory."""
    if type(config.picture_size) is not int or not 0 <= config.picture_size <= MAX_PIXELS:
        raise ValueError(f"picture_size is {brief(config.picture_size)}, expected 0 to {MAX_PIXELS}")
    if config.sentence and not 0 < config.sentence.layers <= weights:
        raise ValueError(f"sentence.layers is {brief(config.sentence.layers)}, expected at most {weights}")
    if config.towers and config.towers.text["num_hidden_layers"] > weights:
        raise ValueError(f"the text tower has {config.towers.text['num_hidden_layers']} layers, expected fewer")


def _check_sizes(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the weights have the configured sizes, before a network of these sizes is made."""
    _check_layers(config, len(weights))
    if config.backbone is not None:
        _check_layers(config.backbone, len(weights))
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in Camp(config).named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items() if isinstance(weight, Tensor)}
    faults = [
        f"{name} is {found.get(name, 'missing')}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name) != shape
    ]
    if faults:
        raise ValueError("; ".join(faults))
