"""Two towers that others have trained: CLIP (Radford et al., arXiv 2103.00020) and SigLIP (Zhai et al., arXiv
2303.15343; SigLIP 2, arXiv 2502.14786), built by `transformers`.

A picture and a text each become one vector of unit length, and their logit is a scaled product. The regions that the
vision graph returns are the tokens of the last layer, before they are pooled: pooling is a part of the image graph.
Another network can then be trained on the same tokens, and the tokens of a picture are computed once for both.

Shapes: I images of R tokens (one a patch; CLIP has a class token before them), T texts of N word pieces, D the width of
a token, d the width of the vectors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from camp_sdk.export.network.camp import Scorer
from camp_sdk.export.network.tower_parts import (
    AttentionPooling,
    BiasedScorer,
    CausalText,
    ClassToken,
    PaddedText,
    TowerScorer,
    TowerVision,
)
from camp_sdk.runtime.errors import MissingExtraError
from camp_sdk.runtime.messages import brief

EXTRA = "clip"
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "silu")
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
VISION_SIZES = (*SIZES, "image_size", "patch_size")
TEXT_SIZES = {
    "clip": (*SIZES, "vocab_size", "max_position_embeddings"),
    "siglip": (*SIZES, "vocab_size", "max_position_embeddings", "projection_size"),
}
MAX_LAYERS, MAX_SIZE = 200, 1 << 24
MARKERS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # the towers here take lengths instead


@dataclass(frozen=True)
class TowersConfig:
    """What rebuilds the two towers before their weights are loaded.

    Args:
        kind: "clip" or "siglip" (SigLIP 2 of a fixed size is built alike).
        text: the text tower's sizes, by the names of `transformers`.
        vision: the vision tower's sizes, likewise.
        projection: d.
        pad: the token that fills a text up to the tower's length: SigLIP's text tower reads it.
        pad_left: whether it comes before the text.

    Raises:
        ValueError: a size is missing, unknown or not a plain value that a network can have.
    """

    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    projection: int
    pad: int = 0
    pad_left: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TEXT_SIZES:
            raise ValueError(f"towers {brief(self.kind)}: expected {' or '.join(TEXT_SIZES)}")
        # Other names could change what `transformers` loads.
        for sizes, names in ((self.text, TEXT_SIZES[self.kind]), (self.vision, VISION_SIZES)):
            if sizes.keys() != set(names):
                raise ValueError(f"sizes {brief(sorted(sizes))}: expected {', '.join(names)}")
        named = [*self.text.items(), *self.vision.items(), ("projection_dim", self.projection)]
        for name, value in named:
            if not _is_size(name, value):
                raise ValueError(f"{name} is {brief(value)}")
        for sizes in (self.text, self.vision):
            if sizes["hidden_size"] % sizes["num_attention_heads"]:
                shown = f"hidden_size is {sizes['hidden_size']}, num_attention_heads {sizes['num_attention_heads']}"
                raise ValueError(f"{shown}: expected a multiple")
        if type(self.pad) is not int or not 0 <= self.pad < self.text["vocab_size"]:
            raise ValueError(f"padding is {brief(self.pad)}, expected a token below {self.text['vocab_size']}")


def _is_size(name: str, value: Any) -> bool:
    if name == "hidden_act":
        return value in ACTIVATIONS
    if name == "layer_norm_eps":
        return isinstance(value, float) and 0 < value < 1
    return type(value) is int and 0 < value < (MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE)


def transformers_library() -> Any:
    """The package `transformers`, whose types differ between its versions.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise MissingExtraError("transformers", EXTRA) from None


class Towers(NamedTuple):
    """The parts of a network."""

    vision: TowerVision
    image_encoder: nn.Module
    text_encoder: nn.Module
    scorer: Scorer


def _clip(config: TowersConfig) -> Any:
    text, library = config.text | MARKERS, transformers_library()
    whole = library.CLIPConfig(text_config=text, vision_config=config.vision, projection_dim=config.projection)
    return library.CLIPModel._from_config(whole, attn_implementation="eager")


def _clip_parts(model: Any, config: TowersConfig) -> Towers:
    return Towers(TowerVision(model.vision_model), ClassToken(model), CausalText(model), TowerScorer(model))


def _siglip(config: TowersConfig) -> Any:
    text, library = config.text | MARKERS, transformers_library()
    whole = library.SiglipConfig(text_config=text, vision_config=config.vision)
    return library.SiglipModel._from_config(whole, attn_implementation="eager")


def _siglip_parts(model: Any, config: TowersConfig) -> Towers:
    text = PaddedText(model, config.pad, config.pad_left)
    return Towers(TowerVision(model.vision_model), AttentionPooling(model), text, BiasedScorer(model))


MODELS: dict[str, tuple[Callable[[TowersConfig], Any], Callable[[Any, TowersConfig], Towers]]] = {
    "clip": (_clip, _clip_parts),
    "siglip": (_siglip, _siglip_parts),
}


def build_model(config: TowersConfig) -> Any:
    """The model of `transformers` with random weights.

    Args:
        config: its kind and sizes.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return MODELS[config.kind][0](config)


def open_towers(config: TowersConfig, model: Any = None) -> Towers:
    """The parts of a network from a model of `transformers`, without training-time randomness.

    Args:
        config: its kind and sizes.
        model: the model, with its weights; None builds one with random weights.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return MODELS[config.kind][1](build_model(config) if model is None else model, config)
