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
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors
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


class TowerVision(nn.Module):
    """Normalised pixels [B, 3, S, S] -> the tokens of the last layer [B, R, D].

    Args:
        tower: the vision tower of a model of `transformers`.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.size: tuple[int, int] = (tower.config.image_size, tower.config.image_size)
        self.embeddings, self.encoder = tower.embeddings, tower.encoder
        self.before = getattr(tower, "pre_layrnorm", None) or nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.before(self.embeddings(pixels))  # [B, R, D]
        return cast(Tensor, self.encoder(inputs_embeds=tokens).last_hidden_state)


class ClassToken(nn.Module):
    """CLIP's pooling: tokens [I, R, D] -> the first of them, projected, [I, 1, d]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm, self.project = model.vision_model.post_layernorm, model.visual_projection

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.project(self.norm(features[:, :1])))


class CausalText(nn.Module):
    """CLIP's text tower: tokens [T, N] and lengths [T] -> the state of the end marker, projected, [T, 1, d].

    A word piece sees those before it alone, so that padding changes nothing.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.text_model
        self.embeddings, self.encoder, self.norm = tower.embeddings, tower.encoder, tower.final_layer_norm
        self.project = model.text_projection
        self.longest = int(tower.config.max_position_embeddings)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.embeddings.position_embedding(places.clamp(max=self.longest - 1))  # padding may lie beyond
        pieces = self.embeddings.token_embedding(tokens) + positions  # [T, N, D]
        hidden = (places[None, :] > places[:, None]).to(self.norm.weight.dtype)  # [N, N]
        mask = (hidden * torch.finfo(torch.float16).min)[None, None]  # [1, 1, N, N]; float16 holds it, too
        states = self.encoder(inputs_embeds=pieces, attention_mask=mask).last_hidden_state
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
        return cast(Tensor, self.project(self.norm(states.gather(1, last))))


class AttentionPooling(nn.Module):
    """SigLIP's pooling: a learned query attends to the tokens [I, R, D], a map with a residual follows, [I, 1, d = D].

    `torch.nn.MultiheadAttention`, which holds the weights, cannot be exported for any number of images and tokens.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.vision_model
        self.tokens_norm, self.probe = tower.post_layernorm, tower.head.probe
        self.attention, self.norm, self.mlp = tower.head.attention, tower.head.layernorm, tower.head.mlp

    def forward(self, features: Tensor) -> Tensor:
        images, regions, width = features.shape
        heads = self.attention.num_heads
        by_head = (heads, width // heads)
        (W_q, W_k, W_v), (b_q, b_k, b_v) = (part.chunk(3) for part in self._projections())
        tokens = self.tokens_norm(features)  # [I, R, D]
        K = F.linear(tokens, W_k, b_k).reshape(images, regions, *by_head).transpose(1, 2)  # [I, heads, R, D / heads]
        V = F.linear(tokens, W_v, b_v).reshape(images, regions, *by_head).transpose(1, 2)  # [I, heads, R, D / heads]
        Q = F.linear(self.probe, W_q, b_q).reshape(1, 1, *by_head).transpose(1, 2)  # [1, heads, 1, D / heads]
        weights = (Q @ K.transpose(2, 3) / math.sqrt(by_head[1])).softmax(-1)  # [I, heads, 1, R]
        pooled = (weights @ V).transpose(1, 2).reshape(images, 1, width)
        pooled = self.attention.out_proj(pooled)  # [I, 1, D]
        return cast(Tensor, pooled + self.mlp(self.norm(pooled)))

    def _projections(self) -> tuple[Tensor, Tensor]:
        return self.attention.in_proj_weight, self.attention.in_proj_bias


class PaddedText(nn.Module):
    """SigLIP's text tower: tokens [T, N] and lengths [T] -> the state of the last place, mapped, [T, 1, d].

    The tower was trained on texts of one length, filled up with a token that it reads like any other. The graph fills
    them up itself, from the lengths; what lies beyond a text's length in its input is ignored.

    Args:
        model: the model of `transformers`.
        config: the token for padding, and where it stands.
    """

    def __init__(self, model: Any, config: TowersConfig) -> None:
        super().__init__()
        tower = model.text_model
        self.embeddings, self.encoder, self.norm = tower.embeddings, tower.encoder, tower.final_layer_norm
        self.project = tower.head
        self.longest, self.config = int(tower.config.max_position_embeddings), config

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(self.longest, device=tokens.device)[None]
        if self.config.pad_left:
            places = places - (self.longest - lengths)[:, None]  # [T, longest]; negative before the text
        inside = (places >= 0) & (places < lengths[:, None])  # [T, longest]
        own = tokens.gather(1, torch.minimum(places.clamp(min=0), lengths[:, None] - 1))
        filled = torch.where(inside, own, torch.full_like(own, self.config.pad))  # [T, longest]
        states = self.encoder(inputs_embeds=self.embeddings(filled)).last_hidden_state
        return cast(Tensor, self.project(self.norm(states[:, -1:])))


class TowerScorer(Scorer):
    """CLIP's logits [I, T]: the cosine of the two vectors times a learned factor.

    The scorer reads the vectors of the first stage themselves, so that each is stored once.
    """

    activation = "none"
    axes: ClassVar[Mapping[str, str]] = {"image.global": "I d", "text.global": "T d"}

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.scale = model.logit_scale

    @property
    def logit_unit(self) -> float:
        return math.exp(float(self.scale.detach()))

    def image_side(self, V: Tensor) -> Tensors:
        return {"image.global": F.normalize(V.squeeze(1), dim=-1)}  # [I, d]

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return {"text.global": F.normalize(T.squeeze(1), dim=-1)}  # [T, d]

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        return cast(Tensor, image["image.global"] @ text["text.global"].T * self.scale.exp())


def transformers_library() -> Any:
    """The package `transformers`, whose types differ between its versions.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise MissingExtraError("transformers", EXTRA) from None


class BiasedScorer(TowerScorer):
    """SigLIP's logits [I, T]: as CLIP's, with a learned bias; their sigmoid is the probability that both match."""

    activation = "sigmoid"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.bias = model.logit_bias

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        return cast(Tensor, super().forward(image, text) + self.bias)


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
    text = PaddedText(model, config)
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
