"""Networks whose sides keep tensors of other shapes than CAMP's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network import networks
from camp_sdk.export.network.camp import PaperScorer, Scorer, Tensors, masked_softmax, products
from camp_sdk.export.network.encoders import BidirectionalGRU
from tests.helpers.tiny import save_tiny_checkpoint


@contextmanager
def known(classes: Mapping[str, type[Scorer]]) -> Iterator[None]:
    """Networks under names by which configurations find them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, network in classes.items():
            patch.setitem(networks.NETWORKS, name, network)
        yield


def exported_in_half(name: str, folder: Path) -> Path:
    """A bundle of random weights, with float16 graphs: both gates of the export have passed."""
    checkpoint = save_tiny_checkpoint(folder / "it.ckpt", name, False)
    return export_bundle(checkpoint, folder / "bundle", ["float16"]).folder


class TwoTowers(Scorer):
    """One vector a side, and their cosine; no attention."""

    activation = "none"
    fusion = ("map_v", "map_t")
    axes: ClassVar[Mapping[str, str]] = {"image.v": "I d", "text.t": "T d"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map_v, self.map_t = nn.Linear(width, width), nn.Linear(width, width)

    def image_side(self, V: Tensor) -> Tensors:
        return {"image.v": F.normalize(self.map_v(V).amax(1), dim=-1)}

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        mean = T.sum(1) / mask.sum(1, keepdim=True)  # words beyond the length are zero
        return {"text.t": F.normalize(self.map_t(mean), dim=-1)}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Cosines [I, T]."""
        return image["image.v"] @ text["text.t"].T


class Mixed(Scorer):
    """Every kind of tensor that a side may keep: vectors, an axis of one, two axes of regions, masks, numbers."""

    fusion = ("map",)
    axes: ClassVar[Mapping[str, str]] = {
        "image.V": "I R d",
        "image.mean": "I 1 d",
        "image.gram": "I R R",
        "image.shown": "I R",
        "text.t": "T d",
        "text.T": "T N d",
        "text.mask": "T N",
        "text.number": "T",
    }

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def image_side(self, V: Tensor) -> Tensors:
        gram = torch.tanh(V @ V.transpose(1, 2))
        return {
            "image.V": self.map(V),
            "image.mean": V.mean(1, keepdim=True),
            "image.gram": gram,
            "image.shown": V[..., 0] > 0,
        }

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        number = mask.sum(1).to(T.dtype)
        return {"text.t": T.sum(1) / number[:, None], "text.T": T, "text.mask": mask, "text.number": number}

    def forward(self, image: Tensors, text: Tensors) -> Tensor:
        """Logits [I, T]."""
        S = products(image["image.V"], text["text.T"])  # [I, R, T, N]
        over_words = masked_softmax(S.permute(2, 0, 1, 3), text["text.mask"][:, None, None, :])  # [T, I, R, N]
        best = (over_words * S.permute(2, 0, 1, 3)).sum(-1)  # [T, I, R]
        mixed = (best.unsqueeze(-2) @ image["image.gram"]).squeeze(-2)  # [T, I, R]
        shown = torch.where(image["image.shown"], mixed, 0.1 * mixed).mean(-1).T  # [I, T]
        whole = image["image.mean"].squeeze(1) @ text["text.t"].T
        return cast(Tensor, shown + whole / text["text.number"])


class BoxEncoder(nn.Module):
    """Regions with the boxes that they lie in, as a second input; no dropout."""

    inputs: ClassVar[Mapping[str, str]] = {"features": "I R D", "boxes": "I R 4"}

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.what, self.where = nn.Linear(feature_width, width), nn.Linear(4, width, bias=False)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return torch.tanh(self.what(features)) + self.where(boxes.clamp(0, 1))


class DeepEncoder(nn.Module):
    """Words by a GRU of this package, then a convolution over neighbouring words; words beyond the length stay zero."""

    def __init__(self, words: nn.Module, word_width: int, width: int) -> None:
        super().__init__()
        self.embed = words
        self.inner = nn.ModuleDict({"gru": BidirectionalGRU(word_width, width)})
        self.around = nn.Conv1d(2 * width, width, 3, padding=1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        both = self.inner["gru"](self.embed(tokens, lengths), lengths)  # [T, N, 2d]
        mixed = self.around(both.transpose(1, 2)).transpose(1, 2)  # [T, N, d]
        return torch.where((both != 0).any(-1, keepdim=True), mixed, torch.zeros_like(mixed))


class WithEncoders(PaperScorer):
    """The paper's scorer on encoders of its own."""

    image_encoder = BoxEncoder
    text_encoder = DeepEncoder
