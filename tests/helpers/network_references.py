"""The networks of examples/networks in float64 numpy, one image and one text at a time, from the papers' equations.

They share no code with the scorers: no batches, no padding, no Gram matrices, and loops in place of products. Each
takes a scorer's weights by name, the regions V [R, d] and the words T [N, d] of a pair, and returns its logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def unit(x: Array) -> Array:
    return x / math.sqrt(sum(number * number for number in x))


def cosine(x: Array, y: Array) -> float:
    return float(np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)))


def shares(logits: list[float]) -> list[float]:
    """The softmax of a few numbers."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def linear(weights: Weights, name: str, x: Array) -> Array:
    bias = weights.get(f"{name}.bias", np.zeros(len(weights[f"{name}.weight"])))
    return np.array([np.dot(row, x) + b for row, b in zip(weights[f"{name}.weight"], bias, strict=True)])


# SCAN


def leaky(x: float) -> float:
    return x if x > 0 else 0.1 * x


def attended_regions(V: Array, T: Array) -> list[Array]:
    """For each word, the sum of the regions' unit vectors under its attention, temperature 9."""
    s = [[leaky(cosine(v, e)) for e in T] for v in V]
    found = []
    for j in range(len(T)):
        normed = [s[i][j] / math.sqrt(sum(s[i][k] ** 2 for k in range(len(T)))) for i in range(len(V))]
        alpha = shares([9 * x for x in normed])
        found.append(sum((a * unit(v) for a, v in zip(alpha, V, strict=True)), np.zeros(V.shape[1])))
    return found


def scan_t2i(weights: Weights, V: Array, T: Array) -> float:
    relevance = [cosine(e, a) for e, a in zip(T, attended_regions(V, T), strict=True)]
    return sum(relevance) / len(relevance)


def scan_i2t(weights: Weights, V: Array, T: Array) -> float:
    s = [[leaky(cosine(v, e)) for e in T] for v in V]
    total = 0.0
    for i, v in enumerate(V):
        normed = [s[i][j] / math.sqrt(sum(s[k][j] ** 2 for k in range(len(V)))) for j in range(len(T))]
        alpha = shares([4 * x for x in normed])
        attended = sum((a * unit(e) for a, e in zip(alpha, T, strict=True)), np.zeros(T.shape[1]))
        total += math.exp(5 * cosine(v, attended))
    return math.log(total) / 5


# SGRAF


def whole(weights: Weights, side: str, rows: list[Array]) -> Array:
    """The global vector of a side."""
    query = np.tanh(linear(weights, f"{side}.query", sum(rows, np.zeros(len(rows[0]))) / len(rows)))
    logits = [
        float(linear(weights, f"{side}.weigh", np.tanh(linear(weights, f"{side}.rows", x)) * query)[0]) for x in rows
    ]
    return unit(sum((w * x for w, x in zip(shares(logits), rows, strict=True)), np.zeros(len(rows[0]))))


def similarity(weights: Weights, name: str, x: Array, y: Array) -> Array:
    return unit(linear(weights, name, np.abs(x - y) ** 2))


def nodes(weights: Weights, V: Array, T: Array) -> list[Array]:
    """The global similarity vector, and that of each word."""
    regions, words = [unit(v) for v in V], [unit(t) for t in T]
    first = similarity(weights, "W_g", whole(weights, "whole_v", regions), whole(weights, "whole_t", words))
    attended = attended_regions(V, T)
    return [first, *(similarity(weights, "W_l", a, t) for a, t in zip(attended, words, strict=True))]


def sgr(weights: Weights, V: Array, T: Array) -> float:
    s = nodes(weights, V, T)
    for step in range(3):
        incoming, outgoing, result = (f"steps.{step}.{k}" for k in range(3))
        reasoned = []
        for p in s:
            edges = shares([float(np.dot(linear(weights, incoming, p), linear(weights, outgoing, q))) for q in s])
            mixed = sum((e * q for e, q in zip(edges, s, strict=True)), np.zeros(len(p)))
            reasoned.append(np.maximum(linear(weights, result, mixed), 0))
        s = reasoned
    return float(linear(weights, "score", s[0])[0])


def saf(weights: Weights, V: Array, T: Array) -> float:
    s = nodes(weights, V, T)
    beta = [sigmoid(float(linear(weights, "W_f", p)[0])) for p in s]
    filtered = sum((b / sum(beta) * p for b, p in zip(beta, s, strict=True)), np.zeros(len(s[0])))
    return float(linear(weights, "score", filtered)[0])


# Generalized pooling


def encoded(number: int) -> Array:
    """The position encoding of width 32: sines, then cosines."""
    angles = [number / 10000 ** (2 * j / 32) for j in range(16)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def pooled(weights: Weights, side: str, X: Array) -> Array:
    n = len(X)
    logits = []
    for k in range(1, n + 1):
        hidden = linear(weights, f"{side}.of_place", encoded(k)) + linear(weights, f"{side}.of_count", encoded(n))
        logits.append(float(linear(weights, f"{side}.weigh", np.maximum(hidden, 0))[0]))
    theta = shares(logits)
    columns = [sorted(column, reverse=True) for column in X.T]
    return np.array([sum(w * x for w, x in zip(theta, column, strict=True)) for column in columns])


def vse_infinity(weights: Weights, V: Array, T: Array) -> float:
    return cosine(pooled(weights, "pool_v", V), pooled(weights, "pool_t", T))


REFERENCES: dict[str, Callable[[Weights, Array, Array], float]] = {
    "ScanT2I": scan_t2i,
    "ScanI2T": scan_i2t,
    "Sgr": sgr,
    "Saf": saf,
    "VseInfinity": vse_infinity,
}
