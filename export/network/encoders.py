"""The encoders of both sides: from pixels to region features, from features to V, and from words to T.

Shapes and letters as in camp.py: I images of R regions, T texts of N words, D the width of a region's features, d the
width of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from camp_sdk.runtime.errors import InputError


class VisionNet(nn.Module):
    """A small convolutional network for drawn scenes: normalised pixels [B, 3, S, S] -> features [B, 36, D].

    The regions are the cells of a 6 x 6 grid. One further convolution mixes each region with its neighbours, and a
    learned position is added. The network is trained together with the rest of the model.

    Args:
        feature_width: D.
        picture_size: S in pixels; a multiple of 96.

    Raises:
        InputError: ``picture_size`` is not a multiple of 96.
    """

    GRID = 6

    def __init__(self, feature_width: int, picture_size: int) -> None:
        super().__init__()
        self.size = (picture_size, picture_size)
        if picture_size % (16 * self.GRID):
            raise InputError(f"picture size {picture_size}: expected a multiple of {16 * self.GRID} pixels")
        widths = [3, 16, 48, 96, feature_width]
        layers = [layer for narrow, wide in itertools.pairwise(widths) for layer in self._convolution(narrow, wide, 2)]
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(picture_size // (16 * self.GRID)))
        self.around = nn.Sequential(*self._convolution(feature_width, feature_width, 1))
        ramp = torch.linspace(-1.5, 1.5, self.GRID)
        # Learned, starting from coordinates: "left of" is then one linear map away. Starting from noise, training needs
        # a long time to find it.
        self.position = nn.Parameter(torch.cartesian_prod(ramp, ramp) @ torch.randn(2, feature_width))

    @staticmethod
    def _convolution(narrow: int, wide: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.layers(pixels)  # [B, D, 6, 6]
        grid = grid + self.around(grid)
        return cast(Tensor, grid.flatten(2).transpose(1, 2) + self.position)  # [B, 36, D]


class ImageEncoder(nn.Module):
    """Section 3.1: one linear layer from region features [I, R, D] to V [I, R, d].

    Args:
        feature_width: D.
        width: d.

    Class attributes:

    - ``inputs``: what `forward` takes, in this order: the features, and further inputs of fixed width that an encoder
      may read, such as boxes "I R 4", by name. They are the last columns of an image's features, in this order.
    """

    inputs: ClassVar[Mapping[str, str]] = {"features": "I R D"}

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0)  # training sets the rate
        self.fc = nn.Linear(feature_width, width)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:  # one dropout mask for all regions of an image: other regions could reveal a dropped feature
            features = features * self.dropout(torch.ones_like(features[:, :1]))
        return cast(Tensor, self.fc(features))


class WordVectors(nn.Embedding):
    """One learned vector per word: tokens [T, N] int64 -> [T, N, word_width]. The lengths are ignored."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # shared by all `words`
        return super().forward(tokens)


class BidirectionalGRU(nn.GRU):
    """Both directions of a GRU over the real words of each text; rows beyond a text's length are zero.

    `forward` maps words [T, N, word_width] and lengths [T] int64 to [T, N, 2d], the forward direction first. The export
    replaces this module by ONNX operators wherever a text encoder holds it.

    Args:
        word_width: the width of the word vectors.
        width: d.
    """

    def __init__(self, word_width: int, width: int) -> None:
        super().__init__(word_width, width, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # takes lengths, not a state
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(super().forward(packed)[0], batch_first=True, total_length=words.shape[1])[0]


class TextEncoder(nn.Module):
    """Section 3.1: word vectors, a bidirectional GRU, and the mean of its two directions.

    `forward` maps tokens [T, N] int64 and lengths [T] int64 to T [T, N, d]. Rows beyond a text's length are zero.

    Args:
        words: a module from tokens and lengths to vectors [T, N, word_width].
        word_width: the width of these vectors.
        width: d.
    """

    def __init__(self, words: nn.Module, word_width: int, width: int) -> None:
        super().__init__()
        self.embed = words
        self.dropout = nn.Dropout(0)
        self.rnn = BidirectionalGRU(word_width, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = self.dropout(self.embed(tokens, lengths))
        forward, backward = self.rnn(words, lengths).chunk(2, dim=-1)
        return cast(Tensor, (forward + backward) / 2)  # [T, N, d]


def word_mask(lengths: Tensor, words: int) -> Tensor:
    """True for the real words of each text: lengths [T] -> [T, words] bool."""
    return torch.arange(words, device=lengths.device)[None, :] < lengths[:, None]
