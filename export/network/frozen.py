"""A frozen pretrained network under CAMP: it gives the regions, the words and the global vectors.

Shapes as in camp.py: B pictures, R regions, D the width of a region's features, T texts of N words, w the width of a
word's state, d the width of the network's global vectors.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from camp_sdk.export.network.backbones import OnnxVision, boxes_of
from camp_sdk.export.network.encoders import VisionNet
from camp_sdk.export.network.tower_parts import TowerPooling, TowerText

VECTOR = "vector"  # the columns of an image's features that hold its global vector
MAX_SIDE = 7  # rows and columns of regions, at most: 49 regions
BOX_WIDTH = 4


class FrozenNetwork(nn.Module):
    """The frozen network below one that is trained: normalised pixels [B, 3, S, S] -> [B, R, D + d].

    The last d columns of every region repeat the picture's global vector, of unit length, which the frozen network
    would give. The columns before are the frozen network's regions: the patch tokens of a published model with the box
    of each, or the features of a network trained here, which have a position of their own. More than 7 x 7 regions are
    averaged over the cells of a grid of 7 x 7.

    Args:
        network: the `Camp` network, with a vision network and with global vectors. Its weights are frozen.

    Raises:
        ValueError: it has no vision network, or one that is an ONNX graph.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if network.vision is None or isinstance(network.vision, OnnxVision):
            raise ValueError("the frozen network has no vision network of this package")
        self.network = network.requires_grad_(False)
        self.size: tuple[int, int] = network.vision.size
        side = network.vision.GRID if isinstance(network.vision, VisionNet) else network.vision.grid
        self.grid = min(side, MAX_SIDE)
        self.register_buffer("cells", _cells(side, self.grid), persistent=False)
        self.register_buffer("boxes", boxes_of(self.grid), persistent=False)

    @property
    def width(self) -> int:
        """D + d."""
        boxes = BOX_WIDTH if isinstance(self.network.image_encoder, TowerPooling) else 0
        return int(self.network.config.feature_width) + boxes + self.vector_width

    @property
    def vector_width(self) -> int:
        """d."""
        return int(self.network.config.width)

    @property
    def word_width(self) -> int:
        """w."""
        config = self.network.config
        return int(config.word_width if config.towers else config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.network.vision(pixels)
        vector = self.network.encode_images(features)["image.global"]  # [B, d]
        regions = cast(Tensor, self.cells) @ self._patches(features)  # [B, R, D]
        if isinstance(self.network.image_encoder, TowerPooling):
            boxes = cast(Tensor, self.boxes).expand(pixels.shape[0], -1, -1)
            regions = torch.cat([regions, boxes], dim=2)
        return torch.cat([regions, vector[:, None].expand(-1, self.grid**2, -1)], dim=2)

    def _patches(self, features: Tensor) -> Tensor:
        encoder = self.network.image_encoder
        return encoder.patches(features) if isinstance(encoder, TowerPooling) else features

    def read(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [T, N] and lengths [T], int64 -> the words' states [T, N, w] and the global vectors [T, d]."""
        encoder, count = self.network.text_encoder, tokens.shape[1]
        if not isinstance(encoder, TowerText):
            states = encoder(tokens, lengths)
            return states, self.network.text_tensors(states, lengths, count)["text.global"]
        states = encoder.states(tokens, lengths)
        tensors = self.network.text_tensors(encoder.pooled(states, lengths), lengths, count)
        return encoder.own_states(states, lengths, count), tensors["text.global"]


class GivenWords(nn.Module):
    """The words of a text encoder on a frozen network: it is given their states [T, N, w] in place of tokens."""

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        return states


def _cells(side: int, grid: int) -> Tensor:
    """The matrix [grid^2, side^2] that averages the regions of a square over the cells of a coarser one.

    Where the sides do not divide, cells overlap by a region.
    """
    rows = torch.zeros(grid, side)
    for cell in range(grid):
        first, last = cell * side // grid, math.ceil((cell + 1) * side / grid)
        rows[cell, first:last] = 1 / (last - first)
    return torch.kron(rows, rows)
