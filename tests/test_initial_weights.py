"""Initial weights as the released code draws them, of every kind of scorer and in every stage."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.model import Camp
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.initial_weights import DRAWN, draw_as_released, set_initial_weights
from tests.helpers.tiny import WIDTH, save_tiny_checkpoint, tiny_origin


@pytest.mark.parametrize("variant", ["cross_attention_new", "gate_fusion", "gate_fusion_new"])
def test_released_weights_are_drawn_where_the_released_code_draws_them(variant: str) -> None:
    torch.manual_seed(0)
    model = Camp(tiny_origin(variant, False).model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    draw_as_released(model)
    after = model.state_dict()
    drawn = {name for name in after if not torch.equal(before[name], after[name])}
    layers = {f"scorer.{name}" for name in DRAWN} & {name.rpartition(".")[0] for name in after}
    expected = {name for name in after if name.rpartition(".")[0] in layers | {"image_encoder.fc"}}
    assert drawn == expected | {"text_encoder.embed.weight"}
    bounds = {name: math.sqrt(3 / WIDTH) for name in expected} | {"text_encoder.embed.weight": 0.1}
    bounds["image_encoder.fc.weight"] = math.sqrt(6 / sum(after["image_encoder.fc.weight"].shape))
    for name, bound in bounds.items():
        if name.endswith("bias"):
            assert (after[name] == 0).all()
        else:
            assert 0.8 * bound < after[name].abs().max() <= bound  # the largest of sixteen or more


def test_other_scorers_get_xavier_weights() -> None:
    torch.manual_seed(0)
    model = Camp(tiny_origin("paper", False).model)
    draw_as_released(model)
    layers = {name: layer for name, layer in model.scorer.named_modules() if isinstance(layer, nn.Linear)}
    assert len(layers) > 4
    for layer in layers.values():
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.7 * bound < layer.weight.abs().max() <= bound  # the largest of sixteen or more
        assert layer.bias is None or (layer.bias == 0).all()


def test_a_later_stage_draws_what_the_stage_before_lacks(tmp_path: Path) -> None:
    start = save_tiny_checkpoint(tmp_path / "start.ckpt", "cross_attention_new", False)
    torch.manual_seed(1)
    model = Camp(tiny_origin("gate_fusion_new", False).model)
    fusion = model.get_parameter("scorer.fc_1.0.weight").clone()
    set_initial_weights(model, TrainConfig(tmp_path, tmp_path, "gate_fusion_new", init="released"), None, start)
    known, own = load_checkpoint(start)[0].state_dict(), model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in known.items())
    assert not torch.equal(own["scorer.fc_1.0.weight"], fusion)
    assert own["scorer.fc_1.0.weight"].abs().max() > 1 / math.sqrt(2 * WIDTH)  # the bound of PyTorch's
