"""The scorers of the released research code, with its parameter names, split into parts for deployment.

Shapes and letters as in camp.py: I images of R regions, T texts of N words, V [I, R, d], T [T, N, d]. Region-side
intermediates have the layout [T, I, R, ...], word-side ones [I, T, N, ...].

Everything that is linear in one side is computed with that side. A message is a weighted sum of one side's vectors, so
a linear map of a message is the same weighted sum of the mapped vectors. Its length and its products with other
messages follow from Gram matrices: [N, N] for a text and [R, R] for an image. Only the attention and, in the gated
variants, the hidden layer of the summary are computed per pair.

The scorer computes a text's Gram matrices, once for all images: every stored tensor of a text is [T, N, ...], so that
texts of different lengths can be kept without padding. The image encoder computes those of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors, masked_softmax, match_logits, messages, products, scalar_gates

HEADS = 4
PADDED_WORDS = 50  # the released code pads captions to 50 rows, and `cross_attention_new` averages over all of them
EPSILON = 1e-8


def first_of(layers: nn.Sequential) -> nn.Linear:
    """The first layer of a sequence, a linear map: released checkpoints number the layers."""
    return cast(nn.Linear, layers[0])


class Summary(nn.Module):
    """The weights of rows in attention pooling, averaged over four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, HEADS))

    def hidden(self, X: Tensor) -> Tensor:
        """The first linear map without its bias, so that it commutes with weighted sums: [..., d] -> [..., d]."""
        return X @ first_of(self.linear).weight.T

    def weights(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights [..., n] over n rows, from `hidden` [..., n, d]; rows where the mask is false have weight zero."""
        logits = self.linear[2](F.relu(hidden + first_of(self.linear).bias)).transpose(-1, -2)  # [..., heads, n]
        by_head = logits.softmax(-1) if mask is None else masked_softmax(logits, mask[..., None, :])
        return by_head.mean(-2)


class ReleasedScorer(Scorer):
    """The attention between words and regions, which all four released scorers share."""

    SECOND_ATTENTION = False
    activation = "none"
    axes: ClassVar[Mapping[str, str]] = {
        "image.V": "I R d",
        "text.T": "T N d",
        "text.mask": "T N",
        "text.K": "T N d",
    }
    SECOND_AXES: ClassVar[Mapping[str, str]] = {  # what `SECOND_ATTENTION` adds
        "image.G": "I R R",
        "text.L": "T N d",
        "text.M": "T N d",
    }

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        names = ["img_key_fc", "txt_key_fc"]
        if self.SECOND_ATTENTION:
            names += ["img_query_fc", "txt_query_fc", "weighted_img_key_fc", "weighted_img_query_fc"]
            names += ["weighted_txt_key_fc", "weighted_txt_query_fc"]
        for name in names:
            self.add_module(name, nn.Linear(width, width, bias=False))

    def _between(self, query: str, key: str) -> Tensor:
        """The matrix M [d, d] for which x M . y = (query x) . (key y) / sqrt(d)."""
        maps = [cast(nn.Linear, self.get_submodule(name)).weight for name in (query, key)]
        return maps[0].T @ maps[1] / math.sqrt(self.width)

    def image_side(self, V: Tensor) -> Tensors:
        if not self.SECOND_ATTENTION:
            return {"image.V": V}
        gram = V @ self._between("weighted_img_query_fc", "weighted_img_key_fc") @ V.transpose(1, 2)  # [I, R, R]
        return {"image.V": V, "image.G": gram}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        if not self.SECOND_ATTENTION:
            return {"text.T": T, "text.mask": mask, "text.K": T @ self._between("txt_key_fc", "img_key_fc")}
        return {
            "text.T": T,
            "text.mask": mask,
            "text.K": T @ self._between("img_query_fc", "txt_key_fc").T,  # the words as keys of the regions' queries
            "text.L": T @ self._between("txt_query_fc", "img_key_fc"),  # the words as queries
            "text.M": T @ self._between("weighted_txt_query_fc", "weighted_txt_key_fc"),  # M T^T is their Gram matrix
        }

    def attention(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """The weights of the messages: to_words [I, T, N, R] over regions, to_regions [T, I, R, N] over words.

        With `SECOND_ATTENTION`, the product of both attentions.
        """
        mask = text["text.mask"]
        A = products(image["image.V"], text["text.K"])  # [I, R, T, N]
        to_regions = masked_softmax(A.permute(2, 0, 1, 3), mask[:, None, None, :])  # [T, I, R, N]
        to_words = self.first_attention(image, text)
        if not self.SECOND_ATTENTION:
            return to_words, to_regions
        gram = text["text.M"] @ text["text.T"].transpose(1, 2)  # [T, N, N]
        among_words = messages(to_words, image["image.G"]) @ to_words.transpose(-1, -2)  # [I, T, N, N]
        among_regions = messages(to_regions, gram) @ to_regions.transpose(-1, -2)  # [T, I, R, R]
        return masked_softmax(among_words, mask[:, None, :]) @ to_words, among_regions.softmax(-1) @ to_regions

    def first_attention(self, image: Tensors, text: Tensors) -> Tensor:
        """The words' weights over regions, [I, T, N, R], before the messages attend to each other."""
        queries = text["text.L" if self.SECOND_ATTENTION else "text.K"]
        return products(image["image.V"], queries).permute(0, 2, 3, 1).softmax(-1)


class CrossAttention(ReleasedScorer):
    """`cross_attention`: the cosine of the summaries of the two messages."""

    axes: ClassVar[Mapping[str, str]] = {**ReleasedScorer.axes, "image.H": "I R d", "text.H": "T N d"}

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.reduce_layer_1 = Summary(width)
        self.reduce_layer_2 = Summary(width)

    def image_side(self, V: Tensor) -> Tensors:
        return super().image_side(V) | {"image.H": self.reduce_layer_2.hidden(V)}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return super().text_side(T, mask) | {"text.H": self.reduce_layer_1.hidden(T)}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Cosines [I, T]."""
        to_words, to_regions = self.attention(image, text)
        w_v = self.reduce_layer_1.weights(messages(to_regions, text["text.H"]))  # [T, I, R]
        w_t = self.reduce_layer_2.weights(messages(to_words, image["image.H"]), text["text.mask"])  # [I, T, N]
        return cosines(w_v.unsqueeze(-2) @ to_regions, w_t.unsqueeze(-2) @ to_words, image, text)


class CrossAttentionNew(ReleasedScorer):
    """`cross_attention_new`: the cosine of the two messages after a second attention, averaged over rows.

    The released code pads a caption to 50 rows and averages the message to the words over all of them. A padded row is
    a query of zeros, which attends to all regions equally. All padded rows are therefore the same.
    """

    SECOND_ATTENTION = True
    axes: ClassVar[Mapping[str, str]] = {**ReleasedScorer.axes, **ReleasedScorer.SECOND_AXES}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Cosines [I, T]."""
        mask = text["text.mask"]
        to_words, to_regions = self.attention(image, text)
        first = self.first_attention(image, text)
        uniform = image["image.G"].mean(1)[:, None, None, :]  # [I, 1, 1, R]: equal weights over all regions, times G
        padded = masked_softmax(uniform @ first.transpose(-1, -2), mask[:, None, :]) @ first  # [I, T, 1, R]
        words = mask.sum(-1)[:, None, None]  # [T, 1, 1]
        real = (to_words * mask[..., None]).sum(-2, keepdim=True)  # [I, T, 1, R]
        # The cosine below does not depend on the divisor.
        mean = (real + (PADDED_WORDS - words).clamp(min=0) * padded) / PADDED_WORDS
        return cosines(to_regions.mean(-2, keepdim=True), mean, image, text)


def cosines(to_text: Tensor, to_image: Tensor, image: Tensors, text: Tensors) -> Tensor:
    """Cosines [I, T] between a weighted sum of the words and a weighted sum of the regions.

    Args:
        to_text: weights over words [T, I, 1, N].
        to_image: weights over regions [I, T, 1, R].
        image: the image's tensors, with image.V.
        text: the text's tensors, with text.T.
    """
    x_1 = messages(to_text, text["text.T"]).squeeze(-2).transpose(0, 1)  # [I, T, d]
    x_2 = messages(to_image, image["image.V"]).squeeze(-2)  # [I, T, d]
    return F.cosine_similarity(x_1, x_2, dim=-1)


class GateFusion(ReleasedScorer):
    """`gate_fusion`: scalar gates, g = sigmoid(own . message), and an MLP on both summaries."""

    FC_BIAS = True
    SUMMARIES = ("reduce_layer_1", "reduce_layer_2")
    activation = "sigmoid"
    fusion = ("fc_1", "fc_2", "fc_out", *SUMMARIES)
    axes: ClassVar[Mapping[str, str]] = {
        **ReleasedScorer.axes,
        "image.P": "I R d",
        "image.Q": "I R d",
        "text.P": "T N d",
        "text.Q": "T N d",
    }

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.fc_1 = nn.Sequential(nn.Linear(2 * width, width, bias=self.FC_BIAS))
        self.fc_2 = nn.Sequential(nn.Linear(2 * width, width, bias=self.FC_BIAS))
        self.fc_out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Identity(), nn.Linear(width, 1))
        for name in self.SUMMARIES:
            self.add_module(name, Summary(width))

    def _halves(self, layer: nn.Sequential) -> tuple[Tensor, Tensor]:
        """The halves [d, d] of a map of concatenated vectors: for a row's own vector, and for its message."""
        weight = first_of(layer).weight  # sliced, not chunked: the export folds a slice into the weights
        return weight[:, : self.width], weight[:, self.width :]

    def image_side(self, V: Tensor) -> Tensors:
        own, message = self._halves(self.fc_1)[0], self._halves(self.fc_2)[1]
        return super().image_side(V) | {"image.P": V @ own.T, "image.Q": V @ message.T}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        own, message = self._halves(self.fc_2)[0], self._halves(self.fc_1)[1]
        return super().text_side(T, mask) | {"text.P": T @ own.T, "text.Q": T @ message.T}

    def gates(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        g, h = scalar_gates(image, text, *self.messages_of(image, text))
        return g.transpose(0, 1), h

    def fuse(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """Fused regions [T, I, R, d] and fused words [I, T, N, d]."""
        to_words, to_regions = self.messages_of(image, text)
        g, h = scalar_gates(image, text, to_words, to_regions)
        V_hat = g.unsqueeze(-1) * (image["image.P"] + messages(to_regions, text["text.Q"]))
        T_hat = h.unsqueeze(-1) * (text["text.P"] + messages(to_words, image["image.Q"]))
        if self.FC_BIAS:
            V_hat, T_hat = V_hat + first_of(self.fc_1).bias, T_hat + first_of(self.fc_2).bias
        return F.relu(V_hat) + image["image.V"], F.relu(T_hat) + text["text.T"]

    def messages_of(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """The weights of the messages: to words [I, T, N, R] and to regions [T, I, R, N]."""
        return self.attention(image, text)

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Logits [I, T]."""
        V_hat, T_hat = self.fuse(image, text)
        of_v, of_t = (cast(Summary, self.get_submodule(name)) for name in self.SUMMARIES)
        w_v = of_v.weights(of_v.hidden(V_hat))  # [T, I, R]
        w_t = of_t.weights(of_t.hidden(T_hat), text["text.mask"])  # [I, T, N]
        x_1 = (w_v.unsqueeze(-2) @ V_hat).squeeze(-2).transpose(0, 1)  # [I, T, d]
        x_2 = (w_t.unsqueeze(-2) @ T_hat).squeeze(-2)
        return match_logits(self.fc_out, torch.cat([self.scaled(x_1), self.scaled(x_2)], dim=-1))

    def scaled(self, summary: Tensor) -> Tensor:
        """The summary [I, T, d] as the final MLP takes it."""
        return summary


class GateFusionNew(GateFusion):
    """`gate_fusion_new`, the published full model: a second attention, and messages and summaries of unit length."""

    SECOND_ATTENTION = True
    FC_BIAS = False
    SUMMARIES = ("final_reduce_1", "final_reduce_2")
    fusion = ("fc_1", "fc_2", "fc_out", *SUMMARIES)
    axes: ClassVar[Mapping[str, str]] = {**GateFusion.axes, **ReleasedScorer.SECOND_AXES, "image.VV": "I R R"}

    def image_side(self, V: Tensor) -> Tensors:
        return super().image_side(V) | {"image.VV": V @ V.transpose(1, 2)}  # [I, R, R]

    def messages_of(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        to_words, to_regions = self.attention(image, text)
        gram = text["text.T"] @ text["text.T"].transpose(1, 2)  # [T, N, N]
        return unit(to_words, image["image.VV"]), unit(to_regions, gram)

    def scaled(self, summary: Tensor) -> Tensor:
        return summary / above_zero(summary.norm(dim=-1, keepdim=True))


def unit(weights: Tensor, gram: Tensor) -> Tensor:
    """Scale weights so that each weighted sum has unit length.

    Args:
        weights: weights of the vectors [A, B, x, y].
        gram: the dot products of the vectors [A, y, y].
    """
    squared = (messages(weights, gram) * weights).sum(-1, keepdim=True)
    # Clamped above zero, where a square root has no gradient.
    return weights / above_zero(squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt())


def above_zero(lengths: Tensor) -> Tensor:
    """Lengths plus 1e-8, to divide by."""
    # A row of one number: the exporter's optimiser takes a plain 1e-8 for zero, and leaves the addition out.
    return lengths + lengths.new_full((1,), EPSILON)


RELEASED: dict[str, type[ReleasedScorer]] = {
    "cross_attention": CrossAttention,
    "cross_attention_new": CrossAttentionNew,
    "gate_fusion": GateFusion,
    "gate_fusion_new": GateFusionNew,
}
