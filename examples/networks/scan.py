"""SCAN, Stacked Cross Attention (Lee et al., ECCV 2018, arXiv 1803.08024), in both of its directions.

Shapes and letters as in camp_sdk.export.network.camp. V [I, R, d] and T [T, N, d] have unit length here, so that their
products S are the cosines s_ij of equation 1: [I, T, N, R] for text-image, [T, I, R, N] for image-text. An attended
vector a = sum_j w_j y_j (equation 2) is not computed: its product with x is sum_j w_j (x . y_j), read off S, and its
length is sqrt(w G w), where G holds the products of all y.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors, masked_softmax, messages, products

LEAK = 0.1  # the paper cuts cosines at zero; its authors' code leaves this slope below
TO_WORDS, TO_REGIONS, LSE = 9.0, 4.0, 5.0  # their lambda_1, text-image and image-text, and the latter's lambda_2


def word_attention(S: Tensor) -> Tensor:
    """Text-image: each word's weights over regions, [I, T, N, R], from cosines of norm one over the words."""
    return (TO_WORDS * F.normalize(F.leaky_relu(S, LEAK), dim=2)).softmax(-1)


def region_attention(S: Tensor, mask: Tensor) -> Tensor:
    """Image-text (equation 3): each region's weights over words, [T, I, R, N], likewise with one over the regions."""
    return masked_softmax(TO_REGIONS * F.normalize(F.leaky_relu(S, LEAK), dim=2), mask[:, None, None, :])


def relevance(weights: Tensor, S: Tensor, gram: Tensor) -> Tensor:
    """Cosines of vectors and what they attend to (equation 4): [A, B, x, y] twice and [A, y, y] -> [A, B, x]."""
    return (weights * S).sum(-1) / (messages(weights, gram) * weights).sum(-1).clamp(min=1e-12).sqrt()


class Scan(Scorer):
    """What both directions share. There are no weights here. An explanation shows the attention of both directions."""

    activation = "none"
    axes: ClassVar[Mapping[str, str]] = {"image.V": "I R d", "text.T": "T N d", "text.mask": "T N"}

    def __init__(self, width: int) -> None:
        super().__init__()

    def image_side(self, V: Tensor) -> Tensors:
        return {"image.V": F.normalize(V, dim=-1)}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return {"text.T": F.normalize(T, dim=-1), "text.mask": mask}

    def attention(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        S = products(image["image.V"], text["text.T"])  # [I, R, T, N]
        return word_attention(S.permute(0, 2, 3, 1)), region_attention(S.permute(2, 0, 1, 3), text["text.mask"])


class ScanT2I(Scan):
    """Text-image: the mean cosine over words (AVG), which the paper found better here than LogSumExp."""

    axes: ClassVar[Mapping[str, str]] = {**Scan.axes, "image.G": "I R R"}

    def image_side(self, V: Tensor) -> Tensors:
        V = F.normalize(V, dim=-1)
        return {"image.V": V, "image.G": V @ V.transpose(1, 2)}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        S, mask = products(image["image.V"], text["text.T"]).permute(0, 2, 3, 1), text["text.mask"]
        found = relevance(word_attention(S), S, image["image.G"])  # [I, T, N]
        return (found * mask).sum(-1) / mask.sum(-1)


class ScanI2T(Scan):
    """Image-text: LogSumExp over regions (LSE, equation 5). With text-image AVG, it is the paper's best pair."""

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        S, T = products(image["image.V"], text["text.T"]).permute(2, 0, 1, 3), text["text.T"]
        found = relevance(region_attention(S, text["text.mask"]), S, T @ T.transpose(1, 2))  # [T, I, R]
        return (LSE * found).logsumexp(-1).T / LSE
