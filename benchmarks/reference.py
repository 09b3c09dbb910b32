"""Each scorer as the paper and the released code compute it, in plain PyTorch.

It scores one caption at a time against a batch of images, as the released evaluation does. Captions are padded to 50
words, and nothing is computed in advance. The weights are those of this project's networks, so that scores can be
compared; the order of operations is the publication's. No class of export/ is used.

The letters: I images, R regions, T texts, N words, d the width; n, x and y are any number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
PADDED = 50


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """W x + b; b is optional."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def attend(query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) X for every image: [I, x, d], [I, y, d], [I, y, d] -> [I, x, d].

    Keys whose ``mask`` is false get no attention.
    """
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    return (logits if mask is None else logits.masked_fill(~mask, -1e9)).softmax(-1) @ values


def fused(weights: Weights, name: str, gate: Tensor, own: Tensor, message: Tensor) -> Tensor:
    """The paper's F(gate (own + message)) + own."""
    return F.relu(linear(weights, name, gate * (own + message))) + own


def pooled(weights: Weights, name: str, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """The paper's weighted sum of fused rows, [I, n, d] -> [I, d]; rows whose ``mask`` is false get no weight."""
    logits = linear(weights, name, rows).squeeze(-1) / math.sqrt(rows.shape[-1])  # [I, n]
    shares = (logits if mask is None else logits.masked_fill(~mask, -1e9)).softmax(-1)
    return (shares[:, None] @ rows).squeeze(1)


def fusion(weights: Weights, V: Tensor, t: Tensor, mask: Tensor, scalar: bool) -> Tensor:
    """Logits [I] of one caption, sections 3.2 to 3.5 of the paper; with ``scalar``, each gate is one number."""
    T = t.expand(len(V), -1, -1)
    K_v, K_t = linear(weights, "W_v", V), linear(weights, "W_t", T)
    T_tilde, V_tilde = attend(K_v, K_t, T, mask), attend(K_t, K_v, V)
    g, h = V * T_tilde, T * V_tilde
    if scalar:
        g, h = g.sum(-1, keepdim=True), h.sum(-1, keepdim=True)
    v = pooled(weights, "pool_v", fused(weights, "F_v", g.sigmoid(), V, T_tilde))
    return linear(
        weights,
        "mlp.2",
        F.relu(
            linear(
                weights, "mlp.0", v + pooled(weights, "pool_t", fused(weights, "F_t", h.sigmoid(), T, V_tilde), mask)
            )
        ),
    ).squeeze(-1)


def paper(weights: Weights, V: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """Logits [I] of the paper's fusion."""
    return fusion(weights, V, t, mask, scalar=False)


def scalar(weights: Weights, V: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """Logits [I] of the paper's fusion with one number per gate, not factored."""
    return fusion(weights, V, t, mask, scalar=True)


def unit(x: Tensor) -> Tensor:
    """Rows of unit length."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / (length + 1e-8)


def summary(weights: Weights, name: str, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention pooling with four heads, [I, n, d] -> [I, d]."""
    logits = linear(weights, f"{name}.linear.2", F.relu(linear(weights, f"{name}.linear.0", rows)))  # [I, n, 4]
    shares = (logits if mask is None else logits.masked_fill(~mask[..., None], -1e9)).softmax(1)
    return (shares.transpose(1, 2) @ rows).mean(1)


def gate_fusion_new(weights: Weights, V: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """Logits [I] of the released full model: two attentions, unit messages, scalar gates, summaries."""
    T = t.expand(len(V), -1, -1)
    to_v = attend(linear(weights, "img_query_fc", V), linear(weights, "txt_key_fc", T), T, mask)
    to_t = attend(linear(weights, "txt_query_fc", T), linear(weights, "img_key_fc", V), V)
    to_v = attend(linear(weights, "weighted_txt_query_fc", to_v), linear(weights, "weighted_txt_key_fc", to_v), to_v)
    to_t = attend(
        linear(weights, "weighted_img_query_fc", to_t), linear(weights, "weighted_img_key_fc", to_t), to_t, mask
    )

    def side(name: str, own: Tensor, message: Tensor) -> Tensor:
        message = unit(message)
        gate = (own * message).sum(-1, keepdim=True).sigmoid()
        return F.relu(linear(weights, name, gate * torch.cat([own, message], dim=-1))) + own

    x_1 = unit(summary(weights, "final_reduce_1", side("fc_1.0", V, to_v)))
    x_2 = unit(summary(weights, "final_reduce_2", side("fc_2.0", T, to_t), mask))
    return linear(weights, "fc_out.3", F.relu(linear(weights, "fc_out.0", torch.cat([x_1, x_2], dim=-1)))).squeeze(-1)


REFERENCES: dict[str, Callable[[Weights, Tensor, Tensor, Tensor], Tensor]] = {
    "paper": paper,
    "scalar": scalar,
    "gate_fusion_new": gate_fusion_new,
}


@torch.no_grad()
def reference_logits(variant: str, weights: Weights, V: Tensor, T: Tensor, lengths: Tensor) -> Tensor:
    """Logits [I, T] of all images V [I, R, d] against all captions T [T, N, d], each padded to 50 words."""
    padded = F.pad(T, (0, 0, 0, PADDED - T.shape[1]))
    masks = torch.arange(PADDED) < lengths[:, None]
    columns = [REFERENCES[variant](weights, V, t[None], mask[None]) for t, mask in zip(padded, masks, strict=True)]
    return torch.stack(columns, dim=1)
