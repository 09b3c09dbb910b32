"""The attention filtration (SAF) of SGRAF (Diao et al., AAAI 2021, arXiv 2101.01368); what it shares is in sgraf.py."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from camp_sdk.export.network.camp import Tensors
from examples.networks.sgraf import Sgraf


class Saf(Sgraf):
    """Section 3.4, attention filtration: a weighted mean of the nodes."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.W_f = nn.Linear(self.m, 1)

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        s, mask = self.nodes(image, text)
        beta = self.W_f(s).squeeze(-1).sigmoid() * mask  # [I, T, 1 + N]
        filtered = (beta.unsqueeze(-2) @ s).squeeze(-2) / beta.sum(-1, keepdim=True)  # equations 8 and 9
        return cast(Tensor, self.score(filtered).squeeze(-1))
