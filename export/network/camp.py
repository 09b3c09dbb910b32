"""CAMP, Cross-Modal Adaptive Message Passing (Wang et al., ICCV 2019, arXiv 1909.05506).

The code follows the paper's order and uses its letters.

Shapes: I images of R regions, T texts of N words (padded; `mask` is true for real words), D the width of a region's
features, d the width of the network. V [I, R, d] are the encoded regions, T [T, N, d] the encoded words.

The network is split into parts that can be deployed separately. Each side has an encoder that runs once per image or
once per text and returns every tensor that the scorer needs from that side. The scorer combines all image tensors with
all text tensors and returns the logits [I, T]. Nothing that depends on one side alone is computed per pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.encoders import ImageEncoder, TextEncoder

Tensors = dict[str, Tensor]

DISTANCE = 40.0  # d * c in `CampScorer.begin_as_distance`: makes a new network's logits differ by a few units


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis, ignoring the entries where the (broadcast) mask is false."""
    # The lowest finite number gives the same zeros as -inf, and never NaN in a half-precision graph.
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)


def products(rows: Tensor, others: Tensor) -> Tensor:
    """All dot products of two sets of vectors, as one matrix product: [I, R, d] and [T, N, d] -> [I, R, T, N]."""
    (i, r, d), (t, n, _) = rows.shape, others.shape
    return (rows.reshape(i * r, d) @ others.reshape(t * n, d).T).reshape(i, r, t, n)


def messages(attention: Tensor, vectors: Tensor) -> Tensor:
    """Weighted sums of one side's vectors for every pair: [A, B, x, y] and [A, y, d] -> [A, B, x, d]."""
    a, b, x, y = attention.shape
    return (attention.reshape(a, b * x, y) @ vectors).reshape(a, b, x, vectors.shape[-1])


def match_logits(mlp: nn.Module, pairs: Tensor) -> Tensor:
    """The logits of all pairs: an MLP, and the fused pairs [I, T, d] -> [I, T].

    The pairs become the rows of one matrix. OpenVINO 2026 multiplies a tensor of three axes image by image, a few rows
    at a time, at 0.4 of the rate.
    """
    i, t, d = pairs.shape
    return cast(Tensor, mlp(pairs.reshape(i * t, d)).reshape(i, t))


def scalar_gates(image: Tensors, text: Tensors, to_words: Tensor, to_regions: Tensor) -> tuple[Tensor, Tensor]:
    """Scalar gates, g = sigmoid(own . message).

    A message is sum_j a_j y_j, so its product with x is sum_j a_j (x . y_j). One matrix of products serves all gates.

    Args:
        image: the image's tensors, with image.V [I, R, d].
        text: the text's tensors, with text.T [T, N, d].
        to_words: attention weights [I, T, N, R] over regions.
        to_regions: attention weights [T, I, R, N] over words.

    Returns:
        The gates of the regions [T, I, R] and of the words [I, T, N], in 0..1.
    """
    S = products(image["image.V"], text["text.T"])  # [I, R, T, N]
    # The summed axis is dropped after the sigmoid: TensorRT-RTX 1.7 fails if a sum that drops its axis leads to one of
    # the graph's outputs.
    g = (to_regions * S.permute(2, 0, 1, 3)).sum(-1, keepdim=True).sigmoid().squeeze(-1)
    h = (to_words * S.permute(0, 2, 3, 1)).sum(-1, keepdim=True).sigmoid().squeeze(-1)
    return g, h


class Scorer(nn.Module):
    """The interface of all scorers: the tensors that each side keeps for its pairs, and the logits of all pairs.

    Region-side intermediates have the layout [T, I, R, ...], word-side ones [I, T, N, ...], so that each message is one
    batched matrix product.

    Class attributes:

    - ``activation``: the function from logits to scores; "none" if the logits are cosines.
    - ``fusion``: the names of the submodules that fuse and match. They stay trainable when encoders and attention are
      frozen.
    - ``image_encoder`` and ``text_encoder``: the classes of the encoders, which are made and called as `ImageEncoder`
      and `TextEncoder` are.
    - ``axes``: the axes of every tensor that the two sides return, by its name, separated by spaces: `I` images, `T`
      texts, `R` regions, `N` words, which vary; numbers, for fixed sizes; other names, for sizes that the network's
      configuration fixes. "I R d" is [I, R, d]. An image's tensors begin with `I`, a text's with `T`; a text's words
      are its second axis.
    """

    activation: ClassVar[str] = "sigmoid"
    fusion: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[Mapping[str, str]] = {}
    image_encoder: ClassVar[type[nn.Module]] = ImageEncoder
    text_encoder: ClassVar[type[nn.Module]] = TextEncoder

    @property
    def logit_unit(self) -> float:
        """What the checks of an export measure logits in: the factor, if logits are cosines times a factor; else 1."""
        return 1.0

    def image_side(self, V: Tensor) -> Tensors:
        """All that a pair needs from its image, V [I, R, d] -> named tensors, each [I, ...]."""
        raise NotImplementedError

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        """All that a pair needs from its text, T [T, N, d] and mask [T, N] -> named tensors, each [T, ...]."""
        raise NotImplementedError

    def attention(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor] | None:
        """The weights of the messages: to_words [I, T, N, R] over regions, to_regions [T, I, R, N] over words.

        None for a scorer without attention, whose bundles have no explainer.
        """
        return None

    def gates(self, image: Tensors, text: Tensors) -> tuple[Tensor, Tensor] | None:
        """Mean gates in 0..1 of every region [I, T, R] and every word [I, T, N]; None for a scorer without gates."""
        return None

    def explain(self, image: Tensors, text: Tensors) -> Tensors:
        """Attention and gates of every pair.

        Args:
            image: the tensors of `image_side`.
            text: the tensors of `text_side`.

        Returns:
            attention.to_words [I, T, R, N]: for each word, weights over the regions.
            attention.to_regions [I, T, R, N]: for each region, weights over the words.
            gates.regions [I, T, R] and gates.words [I, T, N]: how much of each message passes, in 0..1; absent if the
            scorer has no gates.
            Nothing if the scorer has no attention.
        """
        weights = self.attention(image, text)
        if weights is None:
            return {}
        to_words, to_regions = weights
        attention = {"attention.to_words": to_words.transpose(2, 3), "attention.to_regions": to_regions.transpose(0, 1)}
        gates = self.gates(image, text)
        return attention if gates is None else attention | {"gates.regions": gates[0], "gates.words": gates[1]}


class CampScorer(Scorer):
    """Attention (section 3.2), pooling (3.4) and match probability (3.5), which both fusions of the paper share."""

    fusion = ("F_v", "F_t", "pool_v", "pool_t", "mlp")
    axes: ClassVar[Mapping[str, str]] = {"image.V": "I R d", "text.K": "T N d", "text.T": "T N d", "text.mask": "T N"}

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
        """Initialise the weights so that the logits are 2 - c * sum_j |q_j . (v* + t*)|, with q_j orthonormal.

        The sum measures the distance of v* from -t* along d / 2 directions. Both sides are hardly fused at first. The
        MLP sees only v* + t*; with random weights, it needs epochs to learn how to compare the sides from their sum.
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

        K contains both key maps and the scale: (W_v v) . (W_t t) / sqrt(d) = v . K.
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
        return match_logits(self.mlp, v_star.transpose(0, 1) + t_star)


class PaperScorer(CampScorer):
    """The paper's fusion, with vector gates of width d: g_i = sigmoid(v_i * t~_i)."""

    def _gated(self, image: Tensors, text: Tensors) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The own vectors, the messages and the gates of each side; regions first, then words."""
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
    """Fusion with scalar gates, g_i = sigmoid(v_i . t~_i), which makes everything before the ReLU linear in each side.

    P = F X and Q = F Y are computed once per side. Then F(g (x + sum_j a_j y_j)) = g (P + sum_j a_j Q_j), and the dot
    product inside the gate is sum_j a_j (x . y_j). The only d x d product left per pair is the final MLP.
    """

    axes: ClassVar[Mapping[str, str]] = {
        **CampScorer.axes,
        "image.P": "I R d",
        "image.Q": "I R d",
        "text.P": "T N d",
        "text.Q": "T N d",
    }

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
