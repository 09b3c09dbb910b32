"""The results of encoding, ranking and explaining: frozen dataclasses of plain numbers and arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.picture_files import path_name
from camp_sdk.pictures import read_picture
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.manifest import PixelSpec

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Skipped:
    """A picture that `Retriever.encode_images` left out.

    Args:
        index: Its position among the images that were passed.
        name: Its name in messages: the name given for it, its path, or "image 3".
        reason: Why it was left out, in words.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Match(Mapping[str, Any]):
    """One result of a ranking. It is also a mapping of its fields: ``match["score"]``, ``json.dumps(dict(match))``.

    Args:
        corpus_id: Index of the item in the gallery; skipped pictures are not in the gallery and do not count. In an
            `Index`, which changes, it is the position at the time of the ranking: ``key`` names the item.
        score: The model's score, 0 to 1 for sigmoid models; higher is better.
        logit: The score before the activation; rankings are sorted by it.
        rank: Position in the ranking, starting at 1.
        document: The gallery's name for the item (a path, a caption), or None.
        key: The item's key in an `Index`; None in a gallery.
        metadata: The item's metadata in an `Index`; None in a gallery.
    """

    corpus_id: int
    score: float
    logit: float
    rank: int
    document: str | None = None
    key: str | None = None
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)


class Ranking(list[Match]):
    """The matches of one query, best first: a list, and what the model did not understand of the query.

    Parts and copies of it are plain lists.

    Args:
        matches: The matches, best first.
        unknown_words: The words of the query that are not in the model's vocabulary, each once. They count for nothing
            in the scores: for the query "a red zebra", a score is no evidence of a zebra. Empty if the query is an
            image.
        shortlist: The number of items that were scored, those nearest by global vector; None if all were.
        missing: The parts of an index on several machines that did not answer, whose items are missing.
    """

    def __init__(
        self,
        matches: Iterable[Match] = (),
        unknown_words: Iterable[str] = (),
        shortlist: int | None = None,
        missing: Iterable[str] = (),
    ) -> None:
        super().__init__(matches)
        self.unknown_words, self.shortlist, self.missing = tuple(unknown_words), shortlist, tuple(missing)


@dataclass(frozen=True)
class Explanation:
    """What the network looked at when it scored one pair: R regions and N words, both markers included.

    Args:
        words: The N words, with the start marker first and the end marker last; ``<unk>`` for a word that the model
            does not know.
        score: The score of the pair, 0 to 1 for sigmoid models; higher is better.
        to_words: float32 [R, N]: for each word, a distribution over regions; each column sums to 1.
        to_regions: float32 [R, N]: for each region, a distribution over words; each row sums to 1.
        region_gates: float32 [R], 0 to 1: how much of its message each region let in; None in variants without gates.
        word_gates: float32 [N], 0 to 1: how much of its message each word let in; None in variants without gates.
        grid: Rows and columns of the regions if they tile the picture, otherwise None.
        pixels: How the picture was fitted and normalised; None for a model of ready features.
    """

    words: tuple[str, ...]
    score: float
    to_words: FloatArray
    to_regions: FloatArray
    region_gates: FloatArray | None
    word_gates: FloatArray | None
    grid: tuple[int, int] | None
    pixels: PixelSpec | None = None

    @classmethod
    def of(
        cls, outputs: Mapping[str, FloatArray], words: tuple[str, ...], score: float, pixels: PixelSpec | None
    ) -> Explanation:
        """The explanation of one pair.

        Args:
            outputs: What the explainer's graph made of the pair.
            words: The N words.
            score: The score of the pair.
            pixels: How the picture was fitted; None for a model of ready features.
        """
        regions = outputs["attention.to_words"].shape[2]
        return cls(
            words=words,
            score=score,
            to_words=outputs["attention.to_words"][0, 0],
            to_regions=outputs["attention.to_regions"][0, 0],
            region_gates=outputs["gates.regions"][0, 0] if "gates.regions" in outputs else None,
            word_gates=outputs["gates.words"][0, 0] if "gates.words" in outputs else None,
            grid=pixels.grid if pixels and pixels.grid[0] * pixels.grid[1] == regions else None,
            pixels=pixels,
        )

    def word_map(self, word: int) -> FloatArray:
        """Show where one word looks, on the picture as it was fitted.

        Args:
            word: Index of the word in ``words``.

        Returns:
            float32 [rows, columns], which sums to 1.

        Raises:
            InputError: The regions do not tile the picture, or there is no such word.
        """
        if self.grid is None:
            raise InputError("the regions of this model do not tile the picture: read to_words instead")
        if not 0 <= word < len(self.words):
            raise InputError(f"word {word}: expected 0 to {len(self.words) - 1}")
        return self.to_words[:, word].reshape(self.grid)

    def plot(self, path: str | Path, picture: Any = None) -> None:
        """Draw the map of every word into an image file.

        Args:
            path: The file to write. Its ending names the format; without an ending it is a PNG.
            picture: The picture to draw the maps on, as `Retriever.encode_images` takes it. It is shown as the network
                saw it: stretched, letterboxed or cropped. None draws the maps alone.

        Raises:
            InputError: The ending is not that of an image format, the regions do not tile the picture, or the picture
                cannot be read.
            MissingExtraError: matplotlib is not installed (extra ``plot``).
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
            name = path_name(picture) or "the picture"
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
