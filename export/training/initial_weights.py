"""The weights that a stage starts from: random ones as PyTorch or the released code draws them, files, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
from torch import nn

from camp_sdk.export.network.camp import CampScorer
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.encoders import WordVectors
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.released import ReleasedScorer
from camp_sdk.export.network.sentences import SentenceEncoder, load_pretrained
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.recipe import RELEASED
from camp_sdk.export.training.word_vectors import WordTable
from camp_sdk.runtime.errors import InputError

# The linear maps of the released scorers whose weights the released code draws; the others are PyTorch's.
DRAWN = ("img_key_fc", "txt_key_fc", "fc_1.0", "fc_2.0", "fc_out.0", "fc_out.3")


def set_initial_weights(model: Camp, config: TrainConfig, words: WordTable | None, start: Path | None) -> None:
    """Set the weights that a stage starts from.

    Args:
        model: The network, with random weights as PyTorch draws them.
        config: The options of the stage.
        words: Word vectors of a file, if the run has one.
        start: The checkpoint of the stage before, or the one that the run starts from; None for the first stage.

    Raises:
        InputError: The checkpoint has weights that the network lacks, or the network has no learned word vectors.
    """
    if config.init == RELEASED:
        draw_as_released(model)
    if start is not None:
        start_from(model, start)
        return
    for module in model.text_encoder.modules():
        if isinstance(module, SentenceEncoder):
            load_pretrained(module, model.config.words)
    if words is not None:
        _fill(_word_vectors(model), words, config)
    if config.begin_as_distance:
        cast(CampScorer, model.scorer).begin_as_distance()


@torch.no_grad()
def draw_as_released(model: Camp) -> None:
    """Draw the weights of a network as the released code does.

    The image encoder's weights are Xavier-uniform and its bias is zero. Word vectors are uniform in -0.1 to 0.1. In a
    released scorer, the maps in `DRAWN` are uniform within sqrt(6 / (d + d)), whatever their shape, and their biases
    are zero. The GRU, the other maps of these scorers and global vectors keep PyTorch's weights, as in the released
    code. It has no other scorers; in those, all linear maps are Xavier-uniform, with biases of zero.

    Args:
        model: The network.
    """
    for embed in _word_vectors(model):
        nn.init.uniform_(embed.weight, -0.1, 0.1)
    _draw(model.image_encoder)
    if not isinstance(model.scorer, ReleasedScorer):
        _draw(model.scorer)
        return
    for name, layer in model.scorer.named_modules():
        if name in DRAWN:
            _draw(layer, math.sqrt(6 / (model.config.width + model.config.width)))


def _word_vectors(model: Camp) -> list[WordVectors]:
    """The learned word vectors of a network; an own text encoder may have none."""
    return [module for module in model.text_encoder.modules() if isinstance(module, WordVectors)]


@torch.no_grad()
def _fill(embeds: list[WordVectors], words: WordTable, config: TrainConfig) -> None:
    if not embeds:
        raise InputError(f"`word_vectors` {config.word_vectors}: {config.variant} has no learned word vectors")
    for embed in embeds:
        embed.weight[words.rows] = torch.from_numpy(words.vectors)


def _draw(module: nn.Module, bound: float | None = None) -> None:
    """Draw the weights of all linear maps of a module; without a bound, they are Xavier-uniform."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            limit = bound or math.sqrt(6 / (layer.in_features + layer.out_features))
            nn.init.uniform_(layer.weight, -limit, limit)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def start_from(model: Camp, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a network of the same sizes.

    Args:
        model: The network. Weights that the checkpoint lacks stay as they are.
        checkpoint: The checkpoint.

    Raises:
        InputError: The checkpoint has weights that the network lacks; the message lists them.
    """
    weights, own = load_checkpoint(checkpoint)[0].state_dict(), model.state_dict()
    if not model.config.global_vectors:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("global_")}
    if surplus := [name for name, t in weights.items() if name not in own or own[name].shape != t.shape]:
        raise InputError(f"{checkpoint} holds weights that {model.config.variant} lacks: {', '.join(surplus)}")
    model.load_state_dict(weights, strict=False)
