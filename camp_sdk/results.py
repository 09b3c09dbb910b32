"""What encode, rank and explain return: frozen results, plain numbers and arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.pictures import read_picture
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.manifest import PixelSpec

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Skipped:
    """A picture that `encode_images` left out: its place in what was given, what it is called, and why, in words."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Match:
    """One answer of a ranking.

    corpus_id: index in the gallery, of what it holds (skipped pictures do not count); score: what the model says, 0..1 for
    sigmoid models, higher is better; logit: the same before the activation, which is what the ranking sorts by; rank: from
    1; document: the gallery's name for the item (a path, a caption), or None. Fields also read as ``match["score"]``.
    """

    corpus_id: int
    score: float
    logit: float
    rank: int
    document: str | None = None

    def __getitem__(self, field: str) -> Any:
        if field not in self.__dataclass_fields__:
            raise KeyError(field)
        return getattr(self, field)


@dataclass(frozen=True)
class Explanation:
    """What the network looked at when it scored one pair: R regions, N words (markers included), weights float32.

    to_words [R, N]: for each word, a distribution over regions (columns sum to 1); to_regions [R, N]: for each region, a
    distribution over words (rows sum to 1); region_gates [R] and word_gates [N]: 0..1, how much of each message was let
    in, None in variants without gates; grid: rows and columns of the regions where they tile the picture, otherwise None;
    pixels: how the picture was fitted, for models of pictures.
    """

    words: tuple[str, ...]
    score: float
    to_words: FloatArray
    to_regions: FloatArray
    region_gates: FloatArray | None
    word_gates: FloatArray | None
    grid: tuple[int, int] | None
    pixels: PixelSpec | None = None

    def word_map(self, word: int) -> FloatArray:
        """Where one word looks, on the picture as it was fitted: [rows, columns], summing to 1.

        Raises InputError if the regions do not tile the picture, or there is no such word.
        """
        if self.grid is None:
            raise InputError("the regions of this model do not tile the picture: read to_words instead")
        if not 0 <= word < len(self.words):
            raise InputError(f"word {word}: expected 0 to {len(self.words) - 1}")
        return self.to_words[:, word].reshape(self.grid)

    def plot(self, path: str | Path, picture: Any = None) -> None:
        """Draw every word's map over the picture, as `encode_images` takes it, into an image file, a PNG if its name has no
        ending. The picture is shown as the network saw it: stretched, letterboxed or cropped.

        Raises InputError for an ending that no image format has, MissingExtraError without matplotlib (extra `plot`).
        """
        try:
            from matplotlib.backend_bases import FigureCanvasBase
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtraError("matplotlib", "plot") from None
        target = Path(path) if Path(path).suffix else Path(f"{path}.png")
        endings = FigureCanvasBase.get_supported_filetypes()
        if target.suffix[1:].lower() not in endings:
            raise InputError(f"{target} ends in {target.suffix}: expected one of .{', .'.join(sorted(endings))}")
        spec = self.pixels
        seen = None
        if picture is not None and spec is not None:  # twice as sharp as the network saw it
            name = str(picture) if isinstance(picture, (str, Path)) else "the picture"
            seen = read_picture(picture, 2 * spec.height, 2 * spec.width, name, spec.fit, math.inf)
        shown = range(1, len(self.words) - 1)  # without the markers
        figure = Figure(figsize=(1.5 * len(shown), 1.9), layout="constrained")
        for k, axes in zip(shown, np.atleast_1d(figure.subplots(1, len(shown))), strict=True):
            if seen is not None:
                axes.imshow(seen, extent=(0, 1, 0, 1))
            axes.imshow(self.word_map(k), extent=(0, 1, 0, 1), alpha=0.6, cmap="magma", vmin=0, interpolation="bicubic")
            axes.set_title(self.words[k], fontsize=9, parse_math=False)
            axes.axis("off")
        with write_aside(target) as aside:
            figure.savefig(aside, dpi=120)
