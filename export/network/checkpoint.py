"""Self-contained checkpoints: weights, configuration, tokenizer, preprocessing, and a few real examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.sentences import SentenceConfig
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.tokenizer import Tokenizer

KEY = "camp"
FORMAT = 1
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


def load_plain(path: Path) -> Any:
    """Load a file written by torch.save that holds only tensors and plain values. No code in it is run.

    Raises:
        BundleError: the file is truncated, not written by torch, or holds anything else.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for files that are not checkpoints, torch raises a dozen types
        refused = re.search(r"GLOBAL (\S+)", str(error))
        whole = "expected a whole file written by torch.save"
        reason = f"it asks for {refused[1]}, which is not data: refused" if refused else f"{first_line(error)}; {whole}"
        released = "; import a checkpoint of the released code with camp import" if EASYDICT in reason else ""
        raise BundleError(f"{path} cannot be read as a checkpoint: {reason}{released}") from None
    return loaded


def first_line(error: Exception) -> str:
    """The first sentence of an error's first line: the rest of torch's messages advises running the file's code."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.split(". ")[0]


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
    """
    if not Path(path).is_file():
        raise BundleError(f"{path} not found: expected a checkpoint written by camp train")
    loaded = load_plain(Path(path))
    if not isinstance(loaded, dict) or not isinstance(loaded.get(KEY), dict) or loaded[KEY].get("format") != FORMAT:
        raise BundleError(
            f"{path} is not a checkpoint of camp train (format {FORMAT}): train with this version, or, if the released "
            "code wrote it, run camp import first"
        )
    try:
        origin = _parse(loaded[KEY])
        model = Camp(origin.model)
        weights = {k.removeprefix("model."): v for k, v in loaded["state_dict"].items() if k.startswith("model.")}
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BundleError(f"{path} does not fit its own configuration: {' '.join(str(error).split())}") from None
    return model.eval(), origin


def _parse(raw: Mapping[str, Any]) -> Origin:
    pixels = PixelSpec.from_dict(raw["pixels"]) if raw["pixels"] else None
    rest = {name: raw[name] for name in ("tokenizer", "example_images", "example_captions", "training")}
    sizes = raw["model"].get("sentence")  # missing in checkpoints that are older than sentence encoders
    model = ModelConfig(**(raw["model"] | {"sentence": SentenceConfig(**sizes) if sizes else None}))
    stop_words = [str(word) for word in raw.get("stop_words", [])]  # missing in older checkpoints
    return Origin(model, pixels, **rest, stop_words=stop_words)
