"""CAMP, Cross-Modal Adaptive Message Passing (Wang et al., ICCV 2019, arXiv 1909.05506), in the paper's order and letters.

Shapes: I images of R regions, T texts of N words (padded; `mask` is true for real words), D the width of a region's
features, d the width of the network. V [I, R, d] are the encoded regions, T [T, N, d] the encoded words.

The network is cut where deployment needs it cut. Each side has an encoder that runs once per image or once per text and
returns every tensor the other half of a pair will ever need from it; the scorer takes all image tensors against all text
tensors and returns the logits [I, T]. What depends on one side alone is therefore never computed per pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from camp_sdk.runtime.errors import InputError

Tensors = dict[str, Tensor]

DISTANCE = 40.0  # d * c of `CampScorer.begin_as_distance`: logits of a new network then differ by a few units


class VisionNet(nn.Module):
    """A small convolutional network: pixels [B, 3, S, S], normalised, -> features [B, 36, D] of a 6 x 6 grid.

    For drawn scenes, trained with the rest. S must be a multiple of 96; each region looks once around itself, and adds a
    learned position.
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
        # Learned, but from coordinates on: "left of" is then a linear map away. From noise it is not found for a long time.
        self.position = nn.Parameter(torch.cartesian_prod(ramp, ramp) @ torch.randn(2, feature_width))

    @staticmethod
    def _convolution(narrow: int, wide: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.layers(pixels)  # [B, D, 6, 6]
        grid = grid + self.around(grid)
        return cast(Tensor, grid.flatten(2).transpose(1, 2) + self.position)  # [B, 36, D]


class ImageEncoder(nn.Module):
    """Section 3.1: one linear layer from region features [I, R, D] to V [I, R, d]."""

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0)  # training may set its part
        self.fc = nn.Linear(feature_width, width)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:  # the same numbers of all regions of an image: others of them would tell what is left out
            features = features * self.dropout(torch.ones_like(features[:, :1]))
        return cast(Tensor, self.fc(features))


class WordVectors(nn.Embedding):
    """One learned vector a word: tokens [T, N] int64 -> [T, N, word_width], whatever the lengths are."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # the face of every `words`
        return super().forward(tokens)


class TextEncoder(nn.Module):
    """Section 3.1: word vectors, bidirectional GRU, mean of its two directions.

    tokens [T, N] int64 and lengths [T] int64 -> T [T, N, d]; rows beyond a text's length are zero. ``words`` makes vectors
    [T, N, word_width] of both.
    """

    def __init__(self, words: nn.Module, word_width: int, width: int) -> None:
        super().__init__()
        self.embed = words
        self.dropout = nn.Dropout(0)
        self.rnn = nn.GRU(word_width, width, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = self.dropout(self.embed(tokens, lengths))
        forward, backward = self.directions(words, lengths).chunk(2, dim=-1)
        return (forward + backward) / 2  # [T, N, d]

    def directions(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Both directions of the GRU, each over the real words alone: [T, N, word_width] -> [T, N, 2d]."""
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=words.shape[1])[0]


def word_mask(lengths: Tensor, words: int) -> Tensor:
    """True for the real words of each text: lengths [T] -> [T, words] bool."""
    return torch.arange(words, device=lengths.device)[None, :] < lengths[:, None]


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis, without the entries where the (broadcast) mask is false."""
    # The lowest number rather than -inf: it gives the same zeros, and no NaN anywhere in a half-precision graph.
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)


def products(rows: Tensor, others: Tensor) -> Tensor:
    """All dot products of two sets of vectors: [I, R, d] and [T, N, d] -> [I, R, T, N], as one matrix product."""
    (i, r, d), (t, n, _) = rows.shape, others.shape
    return (rows.reshape(i * r, d) @ others.reshape(t * n, d).T).reshape(i, r, t, n)


def messages(attention: Tensor, vectors: Tensor) -> Tensor:
    """Weighted sums of one side's vectors for every pair: [A, B, x, y] and [A, y, d] -> [A, B, x, d]."""
    a, b, x, y = attention.shape
    return (attention.reshape(a, b * x, y) @ vectors).reshape(a, b, x, vectors.shape[-1])


def scalar_gates(image: Tensors, text: Tensors, to_words: Tensor, to_regions: Tensor) -> tuple[Tensor, Tensor]:
    """Gates of one number, g = sigmoid(own . message): of regions [T, I, R] and of words [I, T, N].

    A message is sum_j a_j y_j, so its product with x is sum_j a_j (x . y_j), read off one matrix of products.
    """
    S = products(image["image.V"], text["text.T"])  # [I, R, T, N]
    # The summed axis goes after the sigmoid: TensorRT-RTX 1.7 fails where a sum that drops one ends as a graph's output.
    g = (to_regions * S.permute(2, 0, 1, 3)).sum(-1, keepdim=True).sigmoid().squeeze(-1)
    h = (to_words * S.permute(0, 2, 3, 1)).sum(-1, keepdim=True).sigmoid().squeeze(-1)
    return g, h


class Scorer(nn.Module):
    """The face of every variant's scorer: what each side keeps for its pairs, and the logits of all pairs.

    Region-side intermediates are laid out [T, I, R, ...] and word-side ones [I, T, N, ...], so that each message is one
    batched matrix product. ``activation`` turns logits into scores, "none" where logits are cosines. ``fusion`` names the
    parts that fuse and match: what is left to train when encoders and attention are frozen. ``square`` names the tensors
    of an image that are [I, R, R].
    """

    activation: ClassVar[str] = "sigmoid"
    fusion: ClassVar[tuple[str, ...]] = ()
    square: ClassVar[frozenset[str]] = frozenset()

    def image_side(self, V: Tensor) -> Tensors:
        """All that a pair needs from its image, V [I, R, d] -> named tensors, each [I, ...]."""
        raise NotImplementedError

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        """All that a pair needs from its text, T [T, N, d] and mask [T, N] -> named tensors, each [T, ...]."""
        raise NotImplementedError

    def attention(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """What each message is made of: to_words [I, T, N, R] over regions, to_regions [T, I, R, N] over words."""
        raise NotImplementedError

    def gates(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor] | None:
        """Mean gates in 0..1, of every region [I, T, R] and of every word [I, T, N]; None where there are none."""
        return None

    def explain(self, image: Tensors, text: Tensors) -> Tensors:
        """What the network looked at, for every pair.

        attention.to_words [I, T, R, N]: for each word, weights over regions; attention.to_regions [I, T, R, N]: for each
        region, weights over words; gates.regions [I, T, R], gates.words [I, T, N]: how much of each message was let in.
        """
        to_words, to_regions = self.attention(image, text)
        looks = {"attention.to_words": to_words.transpose(2, 3), "attention.to_regions": to_regions.transpose(0, 1)}
        gates = self.gates(image, text)
        return looks if gates is None else looks | {"gates.regions": gates[0], "gates.words": gates[1]}


class CampScorer(Scorer):
    """What both fusions of the paper share: attention (3.2), pooling (3.4) and match probability (3.5)."""

    fusion = ("F_v", "F_t", "pool_v", "pool_t", "mlp")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.W_v = nn.Linear(width, width, bias=False)
        self.W_t = nn.Linear(width, width, bias=False)
        self.F_v = nn.Linear(width, width)
        self.F_t = nn.Linear(width, width)
        self.pool_v = nn.Linear(width, 1, bias=False)
        self.pool_t = nn.Linear(width, 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    @torch.no_grad()
    def begin_as_distance(self) -> None:
        """Weights to begin a training with: logits 2 - c * sum_j |q_j . (v* + t*)|, q_j orthonormal, of hardly fused sides.

        That is how far v* is from -t*, along d / 2 directions. The MLP sees the sides' sum alone; a random one has to find out
        first how to compare them by it, which takes it epochs.
        """
        first, last = cast(nn.Linear, self.mlp[0]), cast(nn.Linear, self.mlp[2])
        directions = nn.init.orthogonal_(first.weight.new_empty((self.width + 1) // 2, self.width))
        first.weight.copy_(torch.cat([directions, -directions])[: self.width])
        first.bias.zero_()
        last.weight.fill_(-DISTANCE / self.width)
        last.bias.fill_(2.0)
        self.F_v.weight.mul_(0.1)
        self.F_t.weight.mul_(0.1)

    def image_side(self, V: Tensor) -> Tensors:
        """All that a pair needs from its image, V [I, R, d] -> named tensors, each [I, ...]."""
        return {"image.V": V}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        """All that a pair needs from its text, T [T, N, d] and mask [T, N] -> named tensors, each [T, ...].

        K folds both key maps and the scale into the text: (W_v v) . (W_t t) / sqrt(d) = v . K.
        """
        folded = self.W_t.weight.T @ self.W_v.weight / math.sqrt(self.width)  # [d, d]
        K = T @ folded  # [T, N, d]
        return {"text.K": K, "text.T": T, "text.mask": mask}

    def attention(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """Section 3.2: to_words [I, T, N, R], softmax over regions; to_regions [T, I, R, N], softmax over words."""
        A = products(image["image.V"], text["text.K"])  # [I, R, T, N]
        to_words = A.permute(0, 2, 3, 1).softmax(-1)  # [I, T, N, R]
        to_regions = masked_softmax(A.permute(2, 0, 1, 3), text["text.mask"][:, None, None, :])  # [T, I, R, N]
        return to_words, to_regions

    def fuse(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        """Section 3.3: fused regions V_hat [T, I, R, d] and fused words T_hat [I, T, N, d]."""
        raise NotImplementedError

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Logits [I, T]; their sigmoid is the match probability m(I, T) of section 3.5."""
        V_hat, T_hat = self.fuse(image, text)
        scale = math.sqrt(self.width)
        a_v = (self.pool_v(V_hat).squeeze(-1) / scale).softmax(-1)  # [T, I, R]
        a_t = masked_softmax(self.pool_t(T_hat).squeeze(-1) / scale, text["text.mask"])  # [I, T, N]
        v_star = (a_v.unsqueeze(-2) @ V_hat).squeeze(-2)  # [T, I, d]
        t_star = (a_t.unsqueeze(-2) @ T_hat).squeeze(-2)  # [I, T, d]
        return cast(Tensor, self.mlp(v_star.transpose(0, 1) + t_star).squeeze(-1))


class PaperScorer(CampScorer):
    """The paper's fusion: gates of d numbers, g_i = sigmoid(v_i * t~_i)."""

    def _gated(self, image: Tensors, text: Tensors) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Own vectors, messages and gates; regions first."""
        to_words, to_regions = self.attention(image, text)
        V, T = image["image.V"], text["text.T"]
        T_tilde = messages(to_regions, T)  # [T, I, R, d]
        yield V, T_tilde, (V * T_tilde).sigmoid()
        V_tilde = messages(to_words, V)  # [I, T, N, d]
        yield T, V_tilde, (T * V_tilde).sigmoid()

    def fuse(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        (V, T_tilde, G), (T, V_tilde, H) = self._gated(image, text)
        V_hat = F.relu(self.F_v(G * (V + T_tilde))) + V  # [T, I, R, d]
        T_hat = F.relu(self.F_t(H * (T + V_tilde))) + T  # [I, T, N, d]
        return V_hat, T_hat

    def gates(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        (_, _, G), (_, _, H) = self._gated(image, text)
        return G.mean(-1).transpose(0, 1), H.mean(-1)


class ScalarScorer(CampScorer):
    """One number a gate, g_i = sigmoid(v_i . t~_i), which makes everything before the ReLU linear in one side.

    With P = F X and Q = F Y computed once a side, F(g (x + sum_j a_j y_j)) = g (P + sum_j a_j Q_j), and the gate's own dot
    product is sum_j a_j (x . y_j): no d x d product is left per pair but the final MLP.
    """

    def image_side(self, V: Tensor) -> Tensors:
        return super().image_side(V) | {"image.P": V @ self.F_v.weight.T, "image.Q": V @ self.F_t.weight.T}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return super().text_side(T, mask) | {"text.P": T @ self.F_t.weight.T, "text.Q": T @ self.F_v.weight.T}

    def fuse(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        to_words, to_regions = self.attention(image, text)
        g, h = scalar_gates(image, text, to_words, to_regions)
        fused_v = g.unsqueeze(-1) * (image["image.P"] + messages(to_regions, text["text.Q"])) + self.F_v.bias
        fused_t = h.unsqueeze(-1) * (text["text.P"] + messages(to_words, image["image.Q"])) + self.F_t.bias
        return F.relu(fused_v) + image["image.V"], F.relu(fused_t) + text["text.T"]

    def gates(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor]:
        g, h = scalar_gates(image, text, *self.attention(image, text))
        return g.transpose(0, 1), h
