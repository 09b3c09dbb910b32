"""CAMP for one image and one text: sections 3.2 to 3.5 of the paper in plain numpy float64, without any factoring.

The paper's letters and layout: V [d, R] holds the regions as columns, T [d, N] the words; weights go by the names of
the network's `state_dict`. The texts are never padded here, so nothing is masked either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Weights = dict[str, Array]


@dataclass(frozen=True)
class Fusion:
    """One pair: its logit, to_words [N, R], to_regions [R, N], and the mean gate of each region [R] and word [N]."""

    logit: float
    to_words: Array
    to_regions: Array
    region_gates: Array
    word_gates: Array


def weights_of(network: nn.Module) -> Weights:
    """The weights of a network as float64 arrays."""
    return {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def linear(weights: Weights, name: str, x: Array) -> Array:
    """W x + b, for a vector or for every column of a matrix."""
    bias = weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"])))
    return weights[f"{name}.weight"] @ x + (bias if x.ndim == 1 else bias[:, None])


def encode_image(weights: Weights, features: Array) -> Array:
    """Features [R, D] -> V [d, R]: one linear layer."""
    return linear(weights, "image_encoder.fc", features.T)


def encode_text(weights: Weights, tokens: list[int]) -> Array:
    """Word indices, no padding -> T [d, N]: embedding, a GRU each way, the mean of both directions."""
    words = [weights["text_encoder.embed.weight"][token] for token in tokens]
    forward = run_gru(weights, "l0", words)
    backward = run_gru(weights, "l0_reverse", words[::-1])[::-1]
    return np.stack([(f + b) / 2 for f, b in zip(forward, backward, strict=True)], axis=1)


def run_gru(weights: Weights, suffix: str, words: list[Array]) -> list[Array]:
    """h_t = (1 - z) n + z h_(t-1), word by word, from h_0 = 0; the gates are stored in the order reset, update, new."""
    W_i, W_h = (weights[f"text_encoder.rnn.weight_{side}_{suffix}"] for side in ("ih", "hh"))
    b_i, b_h = (weights[f"text_encoder.rnn.bias_{side}_{suffix}"] for side in ("ih", "hh"))
    h = np.zeros(W_h.shape[1])
    states = []
    for x in words:
        r_i, z_i, n_i = np.split(W_i @ x + b_i, 3)
        r_h, z_h, n_h = np.split(W_h @ h + b_h, 3)
        r, z = sigmoid(r_i + r_h), sigmoid(z_i + z_h)
        n = np.tanh(n_i + r * n_h)
        h = (1 - z) * n + z * h
        states.append(h)
    return states


def gate(variant: str, own: Array, message: Array) -> Array:
    """g [d]: sigmoid of the elementwise product (paper), or of the dot product, repeated (scalar)."""
    if variant == "paper":
        return sigmoid(own * message)
    return np.full(len(own), sigmoid(own @ message))


def fuse_pair(weights: Weights, variant: str, V: Array, T: Array) -> Fusion:
    """Sections 1-4: messages, gated fusion, aggregation, and the logit whose sigmoid is m(I, T)."""
    (d, R), N = V.shape, T.shape[1]
    A = linear(weights, "scorer.W_v", V).T @ linear(weights, "scorer.W_t", T)  # [R, N]
    to_words = np.array([softmax(A[:, j] / math.sqrt(d)) for j in range(N)])  # [N, R]
    to_regions = np.array([softmax(A[i] / math.sqrt(d)) for i in range(R)])  # [R, N]
    V_tilde = np.array([sum(to_words[j, i] * V[:, i] for i in range(R)) for j in range(N)])  # [N, d]
    T_tilde = np.array([sum(to_regions[i, j] * T[:, j] for j in range(N)) for i in range(R)])  # [R, d]
    G_v = np.stack([gate(variant, V[:, i], T_tilde[i]) for i in range(R)], axis=1)  # [d, R]
    H_t = np.stack([gate(variant, T[:, j], V_tilde[j]) for j in range(N)], axis=1)  # [d, N]
    V_hat = np.maximum(linear(weights, "scorer.F_v", G_v * (V + T_tilde.T)), 0) + V
    T_hat = np.maximum(linear(weights, "scorer.F_t", H_t * (T + V_tilde.T)), 0) + T
    v_star = V_hat @ softmax(linear(weights, "scorer.pool_v", V_hat)[0] / math.sqrt(d))
    t_star = T_hat @ softmax(linear(weights, "scorer.pool_t", T_hat)[0] / math.sqrt(d))
    hidden = np.maximum(linear(weights, "scorer.mlp.0", v_star + t_star), 0)
    logit = float(linear(weights, "scorer.mlp.2", hidden)[0])
    return Fusion(logit, to_words, to_regions, G_v.mean(0), H_t.mean(0))
