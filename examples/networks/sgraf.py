"""SGRAF, Similarity Graph Reasoning and Attention Filtration (Diao et al., AAAI 2021, arXiv 2101.01368): reasoning.

Shapes and letters as in scan.py; m is the width of a similarity vector. The paper trains its two modules as networks of
their own: SGR is here, SAF in saf.py. Scores are sigmoids of logits, trained with cross-entropy, not with a margin.

A scorer has neither dropout nor batch statistics. In use, batch normalisation is an affine map of a linear layer's
output, which that layer's weight and bias express.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import Tensors, masked_softmax, messages, products
from examples.networks.scan import Scan, word_attention


class Whole(nn.Module):
    """Section 3.1: one vector a side, [B, d], by attention whose query is the mean of its vectors X [B, n, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.weigh = nn.Linear(width, 1, bias=False)  # a softmax does not change with a bias

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        mean = X.sum(1, keepdim=True) / mask.sum(1)[:, None, None]  # [B, 1, d]; padded rows are zero
        weights = masked_softmax(self.weigh(self.rows(X).tanh() * self.query(mean).tanh()).squeeze(-1), mask)
        return F.normalize((weights.unsqueeze(1) @ X).squeeze(1), dim=-1)


class Sgraf(Scan):
    """Section 3.2, which both modules share: similarity vectors of the global vectors, and of each word with SCAN's."""

    activation = "sigmoid"
    axes: ClassVar[Mapping[str, str]] = {**Scan.axes, "image.v": "I d", "text.t": "T d"}

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.m = max(1, width // 4)  # 256 at the paper's d = 1024
        self.whole_v, self.whole_t, self.score = Whole(width), Whole(width), nn.Linear(self.m, 1)
        self.W_g, self.W_l = nn.Linear(width, self.m, bias=False), nn.Linear(width, self.m, bias=False)

    def image_side(self, V: Tensor) -> Tensors:
        kept = super().image_side(V)
        return kept | {"image.v": self.whole_v(kept["image.V"], torch.ones_like(V[..., 0], dtype=torch.bool))}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        kept = super().text_side(T, mask)
        return kept | {"text.t": self.whole_t(kept["text.T"], mask)}

    def nodes(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """Unit vectors along W |x - y|^2 (equation 1) [I, T, 1 + N, m], the global one first, and which are real."""
        V, T, mask = image["image.V"], text["text.T"], text["text.mask"]
        a = messages(word_attention(products(V, T).permute(0, 2, 3, 1)), V)  # [I, T, N, d] (equation 3)
        s_g = self.W_g((image["image.v"].unsqueeze(1) - text["text.t"]).square())  # [I, T, m] (equation 2)
        s = F.normalize(torch.cat([s_g.unsqueeze(2), self.W_l((a - T).square())], 2), dim=-1)  # equation 4
        return s, torch.cat([mask[:, :1], mask], 1)  # the first word is always real


class Sgr(Sgraf):
    """Section 3.3, graph reasoning: in each of 3 steps, every node attends to all; the global one gives the score."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.steps = nn.ModuleList(nn.ModuleList(nn.Linear(self.m, self.m) for _ in range(3)) for _ in range(3))

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        s, mask = self.nodes(image, text)
        for W_in, W_out, W_r in cast("Iterable[nn.ModuleList]", self.steps):
            edges = masked_softmax(W_in(s) @ W_out(s).transpose(-1, -2), mask[:, None, :])  # equation 5
            s = F.relu(W_r(edges @ s))  # equations 6 and 7
        return cast(Tensor, self.score(s[:, :, 0]).squeeze(-1))
