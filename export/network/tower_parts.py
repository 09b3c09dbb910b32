"""The parts of a two-tower model, on modules of `transformers`: vision, pooling, text and the product of both sides.

Shapes as in camp.py; D is the width of a tower's tokens, d that of the vectors that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors


class TowerVision(nn.Module):
    """Normalised pixels [B, 3, S, S] -> the tokens of the last layer [B, R, D].

    Args:
        tower: the vision tower of a model of `transformers`.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.size: tuple[int, int] = (tower.config.image_size, tower.config.image_size)
        self.grid: int = tower.config.image_size // tower.config.patch_size
        self.embeddings, self.encoder = tower.embeddings, tower.encoder
        self.before = getattr(tower, "pre_layrnorm", None) or nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.before(self.embeddings(pixels))  # [B, R, D]
        return cast(Tensor, self.encoder(inputs_embeds=tokens).last_hidden_state)


class TowerPooling(nn.Module):
    """What makes one vector [I, 1, d] of a picture's tokens [I, R, D]."""

    def patches(self, features: Tensor) -> Tensor:
        """The normalised tokens of the patches alone, row by row: [I, R, D] -> [I, grid * grid, D]."""
        raise NotImplementedError


class ClassToken(TowerPooling):
    """CLIP's pooling: tokens [I, R, D] -> the first of them, projected, [I, 1, d]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm, self.project = model.vision_model.post_layernorm, model.visual_projection

    def patches(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.norm(features[:, 1:]))

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.project(self.norm(features[:, :1])))


class TowerText(nn.Module):
    """A text tower: tokens [T, N] and lengths [T], int64 -> one vector [T, 1, d]."""

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The normalised states of the last layer, [T, M, w]; a text's own may begin at any place."""
        raise NotImplementedError

    def own_states(self, states: Tensor, lengths: Tensor, words: int) -> Tensor:
        """The states of a text's own tokens [T, N, w]; what lies beyond its length is arbitrary.

        Args:
            states: as `states` returns them.
            lengths: [T].
            words: N.
        """
        raise NotImplementedError

    def pooled(self, states: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each text [T, 1, d], from `states` and lengths [T]."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.pooled(self.states(tokens, lengths), lengths)


class CausalText(TowerText):
    """CLIP's text tower: tokens [T, N] and lengths [T] -> the state of the end marker, projected, [T, 1, d].

    A word piece sees those before it alone, so that padding changes nothing.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.text_model
        self.embeddings, self.encoder, self.norm = tower.embeddings, tower.encoder, tower.final_layer_norm
        self.project = model.text_projection
        self.longest = int(tower.config.max_position_embeddings)

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.embeddings.position_embedding(places.clamp(max=self.longest - 1))  # padding may lie beyond
        pieces = self.embeddings.token_embedding(tokens) + positions  # [T, N, D]
        hidden = (places[None, :] > places[:, None]).to(self.norm.weight.dtype)  # [N, N]
        mask = (hidden * torch.finfo(torch.float16).min)[None, None]  # [1, 1, N, N]; float16 holds it, too
        return cast(Tensor, self.norm(self.encoder(inputs_embeds=pieces, attention_mask=mask).last_hidden_state))

    def own_states(self, states: Tensor, lengths: Tensor, words: int) -> Tensor:
        return states

    def pooled(self, states: Tensor, lengths: Tensor) -> Tensor:
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
        return cast(Tensor, self.project(states.gather(1, last)))


class AttentionPooling(TowerPooling):
    """SigLIP's pooling: a learned query attends to the tokens [I, R, D], a map with a residual follows, [I, 1, d = D].

    `torch.nn.MultiheadAttention`, which holds the weights, cannot be exported for any number of images and tokens.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.vision_model
        self.tokens_norm, self.probe = tower.post_layernorm, tower.head.probe
        self.attention, self.norm, self.mlp = tower.head.attention, tower.head.layernorm, tower.head.mlp

    def patches(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.tokens_norm(features))

    def forward(self, features: Tensor) -> Tensor:
        images, regions, width = features.shape
        heads = self.attention.num_heads
        by_head = (heads, width // heads)
        (W_q, W_k, W_v), (b_q, b_k, b_v) = (part.chunk(3) for part in self._projections())
        tokens = self.patches(features)  # [I, R, D]
        K = F.linear(tokens, W_k, b_k).reshape(images, regions, *by_head).transpose(1, 2)  # [I, heads, R, D / heads]
        V = F.linear(tokens, W_v, b_v).reshape(images, regions, *by_head).transpose(1, 2)  # [I, heads, R, D / heads]
        Q = F.linear(self.probe, W_q, b_q).reshape(1, 1, *by_head).transpose(1, 2)  # [1, heads, 1, D / heads]
        weights = (Q @ K.transpose(2, 3) / math.sqrt(by_head[1])).softmax(-1)  # [I, heads, 1, R]
        pooled = (weights @ V).transpose(1, 2).reshape(images, 1, width)
        pooled = self.attention.out_proj(pooled)  # [I, 1, D]
        return cast(Tensor, pooled + self.mlp(self.norm(pooled)))

    def _projections(self) -> tuple[Tensor, Tensor]:
        return self.attention.in_proj_weight, self.attention.in_proj_bias


class PaddedText(TowerText):
    """SigLIP's text tower: tokens [T, N] and lengths [T] -> the state of the last place, mapped, [T, 1, d].

    The tower was trained on texts of one length, filled up with a token that it reads like any other. The graph fills
    them up itself, from the lengths; what lies beyond a text's length in its input is ignored.

    Args:
        model: the model of `transformers`.
        pad: the token for padding.
        pad_left: whether it comes before the text.
    """

    def __init__(self, model: Any, pad: int, pad_left: bool) -> None:
        super().__init__()
        tower = model.text_model
        self.embeddings, self.encoder, self.norm = tower.embeddings, tower.encoder, tower.final_layer_norm
        self.project = tower.head
        self.longest, self.pad, self.pad_left = int(tower.config.max_position_embeddings), pad, pad_left

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(self.longest, device=tokens.device)[None]
        if self.pad_left:
            places = places - (self.longest - lengths)[:, None]  # [T, longest]; negative before the text
        inside = (places >= 0) & (places < lengths[:, None])  # [T, longest]
        own = tokens.gather(1, torch.minimum(places.clamp(min=0), lengths[:, None] - 1))
        filled = torch.where(inside, own, torch.full_like(own, self.pad))  # [T, longest]
        return cast(Tensor, self.norm(self.encoder(inputs_embeds=self.embeddings(filled)).last_hidden_state))

    def own_states(self, states: Tensor, lengths: Tensor, words: int) -> Tensor:
        places = torch.arange(words, device=states.device)[None].expand(len(lengths), -1)  # [T, N]
        if self.pad_left:
            places = places + (self.longest - lengths)[:, None]
        chosen = places.clamp(max=self.longest - 1)[:, :, None].expand(-1, -1, states.shape[2])
        return states.gather(1, chosen)

    def pooled(self, states: Tensor, lengths: Tensor) -> Tensor:
        return cast(Tensor, self.project(states[:, -1:]))


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


class BiasedScorer(TowerScorer):
    """SigLIP's logits [I, T]: as CLIP's, with a learned bias; their sigmoid is the probability that both match."""

    activation = "sigmoid"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.bias = model.logit_bias

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        return cast(Tensor, super().forward(image, text) + self.bias)
