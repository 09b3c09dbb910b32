"""A pretrained sentence encoder in place of learned word vectors: a frozen BERT (Devlin et al., arXiv 1810.04805).

Its weights, configuration and tokenizer come from a separate package and are saved in the checkpoint.

Shapes: T texts of N word pieces (padded; `mask` is true for real ones), w the width of their vectors, h attention
heads.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.network.camp import masked_softmax
from camp_sdk.export.network.encoders import word_mask
from camp_sdk.export.network.vocabulary import LEARNED, PACKAGES, piece_tokenizer
from camp_sdk.runtime.errors import BundleError, InputError, MissingExtraError

EXTRA = "sentences"
# Parts of the published weights' names, and the names here.
NAMES = {
    r"^embeddings\.LayerNorm": "norm",
    r"^embeddings\.word_embeddings": "pieces",
    r"^embeddings\.position_embeddings": "positions",
    r"^encoder\.layer\.": "layers.",
    r"attention\.self\.": "",
    r"attention\.output\.dense": "out",
    r"attention\.output\.LayerNorm": "attention_norm",
    r"intermediate\.dense": "widen",
    r"output\.dense": "narrow",
    r"output\.LayerNorm": "norm",
}
UNUSED = ("pooler.", "embeddings.position_ids", "embeddings.token_type_embeddings.")


@dataclass(frozen=True)
class SentenceConfig:
    """The sizes of a BERT, apart from its vocabulary and w.

    Args:
        layers: the number of layers.
        heads: h.
        inner_width: the width of the hidden layer inside a layer.
        positions: the length of the longest text, in word pieces.
        epsilon: the number added to a variance before its square root is taken.
    """

    layers: int
    heads: int
    inner_width: int
    positions: int
    epsilon: float


class SentenceLayer(nn.Module):
    """One BERT layer: self-attention and a two-layer map, each with a residual connection and layer normalisation."""

    def __init__(self, width: int, config: SentenceConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, config.inner_width), nn.Linear(config.inner_width, width)
        self.attention_norm, self.norm = (nn.LayerNorm(width, config.epsilon) for _ in range(2))

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        """X [T, N, w] and mask [T, N] -> [T, N, w]."""
        Q, K, V = (self._by_head(part(X)) for part in (self.query, self.key, self.value))  # [T, h, N, w / h]
        logits = Q @ K.transpose(2, 3) / math.sqrt(Q.shape[3])  # [T, h, N, N]
        attention = masked_softmax(logits, mask[:, None, None, :])
        messages = (attention @ V).transpose(1, 2).flatten(2)  # [T, N, w]
        X = self.attention_norm(X + self.out(messages))
        return cast(Tensor, self.norm(X + self.narrow(F.gelu(self.widen(X)))))

    def _by_head(self, X: Tensor) -> Tensor:
        texts, pieces, width = X.shape
        return X.reshape(texts, pieces, self.heads, width // self.heads).transpose(1, 2)


class SentenceEncoder(nn.Module):
    """Word pieces [T, N] int64 and lengths [T] -> contextual vectors [T, N, w]. Not trained.

    Args:
        vocabulary_size: the number of word pieces.
        width: w.
        config: the other sizes.
    """

    def __init__(self, vocabulary_size: int, width: int, config: SentenceConfig) -> None:
        super().__init__()
        self.pieces = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(config.positions, width)
        self.norm = nn.LayerNorm(width, config.epsilon)
        self.layers = nn.ModuleList(SentenceLayer(width, config) for _ in range(config.layers))
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        X: Tensor = self.norm(self.pieces(tokens) + self.positions(places))  # [T, N, w]
        mask = word_mask(lengths, tokens.shape[1])  # [T, N]
        for layer in self.layers:
            X = layer(X, mask)
        return X


def read_config(words: str) -> tuple[int, SentenceConfig]:
    """Read w and the other sizes of a pretrained encoder.

    Args:
        words: the name of the encoder, a key of `PACKAGES`.

    Raises:
        BundleError: the package holds a different kind of network.
        InputError: the name is unknown.
        MissingExtraError: the package of the encoder is not installed.
    """
    path = folder_of(words) / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    kind = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    if found := {name: raw.get(name) for name, value in kind.items() if raw.get(name, value) != value}:
        raise BundleError(f"{path} has {found}: expected {kind}")
    return raw["hidden_size"], SentenceConfig(
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        inner_width=raw["intermediate_size"],
        positions=raw["max_position_embeddings"],
        epsilon=raw["layer_norm_eps"],
    )


def read_tokenizer(words: str) -> str:
    """The text of a pretrained encoder's tokenizer.json, with truncation set by `piece_tokenizer`.

    Args:
        words: the name of the encoder, a key of `PACKAGES`.

    Raises:
        InputError: the name is unknown.
        MissingExtraError: the package of the encoder is not installed.
    """
    return piece_tokenizer(folder_of(words) / "tokenizer.json").to_str()


def load_pretrained(encoder: nn.Module, words: str) -> None:
    """Load the published weights into a `SentenceEncoder`.

    Args:
        encoder: the encoder, with the sizes of `read_config`.
        words: its name, a key of `PACKAGES`.

    Raises:
        InputError: the name is unknown.
        MissingExtraError: the package of the encoder, or safetensors, is not installed.
    """
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("safetensors", EXTRA) from None
    published = load_file(folder_of(words) / "model.safetensors")
    weights = {own_name(name): tensor for name, tensor in published.items() if not name.startswith(UNUSED)}
    # BERT adds a vector for the first or second text of a pair. There is only one text, so it is always the first.
    weights["positions.weight"] += published["embeddings.token_type_embeddings.weight"][0]
    encoder.load_state_dict(weights)


def own_name(name: str) -> str:
    """The name of a published weight in `SentenceEncoder`."""
    for theirs, own in NAMES.items():
        name = re.sub(theirs, own, name)
    return name


def folder_of(words: str) -> Path:
    """The folder in which an installed package keeps a pretrained encoder.

    Args:
        words: the name of the encoder, a key of `PACKAGES`.

    Raises:
        InputError: the name is unknown.
        MissingExtraError: the package of the encoder is not installed.
    """
    if words not in PACKAGES:
        raise InputError(f"words {words!r}: expected one of {', '.join([LEARNED, *PACKAGES])}")
    found = importlib.util.find_spec(PACKAGES[words].replace("-", "_"))  # importing it would load its libraries
    if found is None or found.origin is None:
        raise MissingExtraError(PACKAGES[words], EXTRA)
    return Path(found.origin).parent / "model"
