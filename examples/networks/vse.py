"""Two towers with generalized pooling, after VSE-infinity (Chen et al., CVPR 2021, arXiv 2011.04305).

Shapes and letters as in camp_sdk.export.network.camp: V [I, R, d] regions, T [T, N, d] words. Each side is pooled into
one vector, and the score of a pair is a cosine: nothing else is computed per pair.

Generalized pooling sorts each feature over a side's vectors, largest first, and takes a weighted sum: equal weights
are a mean, all weight on the first a maximum. The weights depend on the place k and the number of vectors n alone. The
paper computes them from the encoding of k with a bidirectional GRU, which learns of n from its length. This one
computes them from the encodings of k and n with a perceptron, so it is not the paper's network to the letter. The
encoders are the SDK's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Scorer, Tensors, masked_softmax

ENCODED = 32  # width of an encoded place and of the hidden layer, as in the paper


class GeneralizedPooling(nn.Module):
    """Section 3.2: vectors X [B, n, d] with mask [B, n], real ones first, to [B, d]."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        powers = 1e-4 ** (torch.arange(0, ENCODED, 2) / ENCODED)
        self.register_buffer("frequencies", powers, persistent=False)
        self.of_place, self.of_count = nn.Linear(ENCODED, ENCODED), nn.Linear(ENCODED, ENCODED, bias=False)
        self.weigh = nn.Linear(ENCODED, 1, bias=False)  # a softmax does not change with a bias

    def encode(self, numbers: Tensor) -> Tensor:
        """Sines and cosines of numbers [x]: [x, ENCODED]."""
        angles = numbers.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask.unsqueeze(-1)  # sorted to the end, and zero then: its weight of zero has a gradient
        largest = X.masked_fill(padding, torch.finfo(X.dtype).min).sort(dim=1, descending=True).values
        k = torch.arange(1, X.shape[1] + 1, device=X.device)
        hidden = self.of_place(self.encode(k)) + self.of_count(self.encode(mask.sum(1))).unsqueeze(1)  # [B, n, ENCODED]
        theta = masked_softmax(self.weigh(F.relu(hidden)).squeeze(-1), mask)  # [B, n], zero for padding
        return (theta.unsqueeze(1) @ largest.masked_fill(padding, 0)).squeeze(1)


class VseInfinity(Scorer):
    """The cosine of the two pooled vectors."""

    activation = "none"
    fusion = ("pool_v", "pool_t")
    axes: ClassVar[Mapping[str, str]] = {"image.v": "I d", "text.t": "T d"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool_v, self.pool_t = GeneralizedPooling(), GeneralizedPooling()

    def image_side(self, V: Tensor) -> Tensors:
        pooled = self.pool_v(V, torch.ones_like(V[..., 0], dtype=torch.bool))
        return {"image.v": F.normalize(pooled, dim=-1)}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return {"text.t": F.normalize(self.pool_t(T, mask), dim=-1)}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Cosines [I, T]."""
        return image["image.v"] @ text["text.t"].T
