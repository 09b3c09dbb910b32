"""The scorers of the released research code: equal to what that code computed, and to a plain transcription of it.

tests/released holds four small checkpoints of that code, with its outputs and scores on 4 images and 6 captions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from camp_sdk.export.network.released import RELEASED, ReleasedScorer

FOLDER = Path(__file__).parent / "released"
PADDED = 50
Weights = dict[str, Tensor]

every_variant = pytest.mark.parametrize("variant", RELEASED)


def recorded() -> dict[str, Tensor]:
    with np.load(FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def weights_of(variant: str) -> Weights:
    """The scorer's weights of a checkpoint; its option dictionary is of a class that need not be installed."""
    with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):  # type: ignore[list-item]  # a pair
        states: Any = torch.load(FOLDER / f"{variant}.pth.tar", weights_only=True)["model"]
    return {name.removeprefix("module."): tensor for name, tensor in states[2].items()}


def scorer_of(variant: str, dtype: torch.dtype) -> ReleasedScorer:
    weights = weights_of(variant)
    scorer = RELEASED[variant](weights["img_key_fc.weight"].shape[0])
    scorer.load_state_dict(weights)
    return scorer.to(dtype)


@torch.no_grad()
def scores_of(scorer: ReleasedScorer, V: Tensor, T: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(T.shape[1])[None, :] < lengths[:, None]
    logits = scorer(scorer.image_side(V), scorer.text_side(T, mask))
    return logits.sigmoid() if scorer.activation == "sigmoid" else logits


@every_variant
@pytest.mark.parametrize("words", [49, 50, 57])
def test_scores_are_those_of_the_released_code(variant: str, words: int) -> None:
    data = recorded()
    T = F.pad(data["T"], (0, 0, 0, max(0, words - 50)))[:, :words]
    found = scores_of(scorer_of(variant, torch.float32), data["V"], T, data["lengths"])
    # Both are float32, the sums in another order.
    torch.testing.assert_close(found, data[f"scores_{variant}"], rtol=0, atol=1e-6)


@every_variant
def test_a_text_alone_scores_what_it_scores_among_others(variant: str) -> None:
    data, scorer = recorded(), scorer_of(variant, torch.float64)
    V, T, lengths = data["V"].double(), data["T"].double(), data["lengths"]
    whole = scores_of(scorer, V, T, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = scores_of(scorer, V[:1], T[[index], :length], lengths[[index]])
        torch.testing.assert_close(alone, whole[:1, [index]], rtol=0, atol=1e-12)  # float64, padding left out


# The released code, one pair at a time, every caption padded to 50 rows, nothing folded


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(1, dtype=x.dtype))


def attend(query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = query @ key.T / math.sqrt(query.shape[-1])
    return (logits if mask is None else logits.masked_fill(~mask, -1e9)).softmax(-1) @ values


def summary(weights: Weights, name: str, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = linear(weights, f"{name}.linear.2", F.relu(linear(weights, f"{name}.linear.0", rows)))  # [n, 4]
    shares = (logits if mask is None else logits.masked_fill(~mask[:, None], -1e9)).softmax(0)
    return (shares.T @ rows).mean(0)


def unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


def one_attention(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    key_v, key_t = linear(weights, "img_key_fc", v), linear(weights, "txt_key_fc", t)
    return attend(key_v, key_t, t, mask), attend(key_t, key_v, v)


def two_attentions(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    to_v = attend(linear(weights, "img_query_fc", v), linear(weights, "txt_key_fc", t), t, mask)
    to_t = attend(linear(weights, "txt_query_fc", t), linear(weights, "img_key_fc", v), v)
    pairs = (("weighted_txt", to_v, None), ("weighted_img", to_t, mask))
    second = [
        attend(linear(weights, f"{name}_query_fc", x), linear(weights, f"{name}_key_fc", x), x, m)
        for name, x, m in pairs
    ]
    return second[0], second[1]


def cross_attention(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    to_v, to_t = one_attention(weights, v, t, mask)
    x_1, x_2 = summary(weights, "reduce_layer_1", to_v), summary(weights, "reduce_layer_2", to_t, mask)
    return F.cosine_similarity(x_1, x_2, dim=0)


def cross_attention_new(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    to_v, to_t = two_attentions(weights, v, t, mask)
    return F.cosine_similarity(to_v.mean(0), to_t.mean(0), dim=0)


def fused(weights: Weights, name: str, own: Tensor, message: Tensor) -> Tensor:
    gate = (own * message).sum(-1, keepdim=True).sigmoid()
    return F.relu(linear(weights, name, gate * torch.cat([own, message], dim=-1))) + own


def match(weights: Weights, x_1: Tensor, x_2: Tensor) -> Tensor:
    hidden = F.relu(linear(weights, "fc_out.0", torch.cat([x_1, x_2])))
    return linear(weights, "fc_out.3", hidden).sigmoid().squeeze()


def gate_fusion(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    to_v, to_t = one_attention(weights, v, t, mask)
    x_1 = summary(weights, "reduce_layer_1", fused(weights, "fc_1.0", v, to_v))
    return match(weights, x_1, summary(weights, "reduce_layer_2", fused(weights, "fc_2.0", t, to_t), mask))


def gate_fusion_new(weights: Weights, v: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    to_v, to_t = two_attentions(weights, v, t, mask)
    x_1 = summary(weights, "final_reduce_1", fused(weights, "fc_1.0", v, unit(to_v)))
    x_2 = summary(weights, "final_reduce_2", fused(weights, "fc_2.0", t, unit(to_t)), mask)
    return match(weights, unit(x_1), unit(x_2))


PLAIN: dict[str, Callable[[Weights, Tensor, Tensor, Tensor], Tensor]] = {
    "cross_attention": cross_attention,
    "cross_attention_new": cross_attention_new,
    "gate_fusion": gate_fusion,
    "gate_fusion_new": gate_fusion_new,
}


@every_variant
# Float64: rounding, through a dozen sums. Float32: the same, of numbers below one.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_factored_equals_plain(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    width, lengths = 24, torch.tensor([7, 2, 5, 11])
    torch.manual_seed(3)
    scorer = RELEASED[variant](width).to(dtype)
    weights = {name: tensor.detach() for name, tensor in scorer.state_dict().items()}
    mask = torch.arange(11)[None, :] < lengths[:, None]
    V, T = torch.randn(3, 6, width, dtype=dtype), torch.randn(4, 11, width, dtype=dtype) * mask[..., None]
    found = scores_of(scorer, V, T, lengths)
    padded, long_mask = F.pad(T, (0, 0, 0, PADDED - 11)), F.pad(mask, (0, PADDED - 11))
    rows = [[PLAIN[variant](weights, v, t, m) for t, m in zip(padded, long_mask, strict=True)] for v in V]
    expected = torch.stack([torch.stack(row) for row in rows])
    assert expected.std() > 100 * tolerance  # they differ from pair to pair
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@every_variant
def test_the_names_are_those_of_the_checkpoints(variant: str) -> None:
    weights = weights_of(variant)
    own = RELEASED[variant](24).state_dict()
    assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in weights.items()}
