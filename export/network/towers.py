"""Two towers that others have trained: CLIP (Radford et al., arXiv 2103.00020) and SigLIP (Zhai et al., arXiv
2303.15343; SigLIP 2, arXiv 2502.14786), built by `transformers`.

A picture and a text each become one vector of unit length, and their logit is a scaled product. The regions that the
vision graph returns are the tokens of the last layer, before they are pooled: pooling is a part of the image graph.
Another network can then be trained on the same tokens, and the tokens of a picture are computed once for both.

Shapes: I images of R tokens (one a patch; CLIP has a class token before them), T texts of N word pieces, D the width of
a token, d the width of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.messages import brief

EXTRA = "clip"
MARKERS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # the towers here take lengths instead


@dataclass(frozen=True)
class TowersConfig:
    """What rebuilds the two towers before their weights are loaded.

    Args:
        kind: "clip" or "siglip" (SigLIP 2 of a fixed size is built alike).
        text: the text tower's sizes, by the names of `transformers`.
        vision: the vision tower's sizes, likewise.
        projection: d, where a projection follows both towers; 0 without.
        pad: the token that fills a text up to the tower's length; SigLIP's text tower reads it.
    """

    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    projection: int = 0
    pad: int = 0


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


class TowerScorer(Scorer):
    """Logits [I, T]: the product of the two vectors, scaled; SigLIP adds a bias.

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


class Towers(NamedTuple):
    """The parts of a network."""

    vision: TowerVision
    image_encoder: nn.Module
    text_encoder: nn.Module
    scorer: Scorer


def _clip(config: TowersConfig) -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = config.text | MARKERS
    whole = CLIPConfig(text_config=text, vision_config=config.vision, projection_dim=config.projection)
    return CLIPModel._from_config(whole, attn_implementation="eager")


def _clip_parts(model: Any) -> Towers:
    return Towers(TowerVision(model.vision_model), ClassToken(model), CausalText(model), TowerScorer(model))


MODELS: dict[str, tuple[Callable[[TowersConfig], Any], Callable[[Any], Towers]]] = {"clip": (_clip, _clip_parts)}


def build_model(config: TowersConfig) -> Any:
    """The model of `transformers` with random weights.

    Args:
        config: its kind and sizes.

    Raises:
        InputError: the kind is unknown.
        MissingExtraError: transformers is not installed.
    """
    if config.kind not in MODELS:
        raise InputError(f"towers {brief(config.kind)}: expected {' or '.join(MODELS)}")
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError("transformers", EXTRA) from None
    return MODELS[config.kind][0](config)


def open_towers(config: TowersConfig, model: Any = None) -> Towers:
    """The parts of a network from a model of `transformers`, without training-time randomness.

    Args:
        config: its kind and sizes.
        model: the model, with its weights; None builds one with random weights.

    Raises:
        InputError: the kind is unknown.
        MissingExtraError: transformers is not installed.
    """
    return MODELS[config.kind][1](build_model(config) if model is None else model)
