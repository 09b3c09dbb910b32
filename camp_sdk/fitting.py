"""How a picture is fitted to the size that a network takes: stretched, with borders, or cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # width, height: the order that Pillow uses
Box = tuple[float, float, float, float]  # left, top, right, bottom

WITHIN = "within"  # as large as "letterbox", but without borders, and never larger than the picture is
LONGEST_SCALED = 64  # times the size: a picture of one row is not scaled as a whole


class Fitting(NamedTuple):
    """What is wanted of a picture.

    Args:
        size: Its width and height.
        fit: "stretch", "letterbox" or "crop", as in `PixelSpec`, or `WITHIN`.
        resample: "fast", "bilinear" or "bicubic", as in `PixelSpec`.
    """

    size: Size
    fit: str
    resample: str = "fast"


def least_size(picture: Size, size: Size, fit: str) -> Size:
    """The smallest size to decode a picture at: twice the size that it will be scaled to.

    Args:
        picture: The picture's size.
        size: The size wanted.
        fit: How it is fitted.
    """
    scales = _scales(picture, size, fit)
    across, down = (max(1, math.ceil(2 * have * scale - 1e-6)) for have, scale in zip(picture, scales, strict=True))
    return across, down


def _scales(picture: tuple[float, float], size: Size, fit: str) -> tuple[float, float]:
    """The factors that scale a picture's width and height to fit a size."""
    across, down = size[0] / picture[0], size[1] / picture[1]
    if fit == "stretch":
        return across, down
    if fit == WITHIN:
        across, down = min(across, 1.0), min(down, 1.0)
    both = max(across, down) if fit == "crop" else min(across, down)
    return both, both


def fitted(upright: Image.Image, box: Box, wanted: Fitting) -> Image.Image:
    """Scale a picture to a size.

    Args:
        upright: The picture, in RGB.
        box: The part of it that the picture fills; all of it, unless the interpolation is "fast".
        wanted: The size, the fit and the interpolation.
    """
    if wanted.fit == "letterbox":
        return _letterboxed(upright, box, wanted)
    if wanted.fit == WITHIN:
        return _resized(upright, box, _inner(box, wanted), wanted.resample)
    if wanted.fit == "crop" and wanted.resample != "fast":  # then the picture is decoded whole
        return _cut_out(upright, wanted.size, wanted.resample)
    return _resized(upright, _middle(box, wanted.size) if wanted.fit == "crop" else box, wanted.size, wanted.resample)


def _letterboxed(upright: Image.Image, box: Box, wanted: Fitting) -> Image.Image:
    from PIL import Image

    size, inner = wanted.size, _inner(box, wanted)
    whole = Image.new("RGB", size, "white")
    resized = _resized(upright, box, inner, wanted.resample)
    whole.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return whole


def _inner(box: Box, wanted: Fitting) -> Size:
    """The size of a whole picture that is scaled to lie within another."""
    across, down = box[2] - box[0], box[3] - box[1]
    scale, _ = _scales((across, down), wanted.size, wanted.fit)
    return max(1, round(across * scale)), max(1, round(down * scale))


def _middle(box: Box, size: Size) -> Box:
    """The largest box with the proportions of ``size`` in the middle of ``box``."""
    left, top, right, bottom = box
    across, down = right - left, bottom - top
    scale, _ = _scales((across, down), size, "crop")
    sides, ends = max(0.0, across - size[0] / scale) / 2, max(0.0, down - size[1] / scale) / 2
    return left + sides, top + ends, right - sides, bottom - ends


def _cut_out(upright: Image.Image, size: Size, resample: str) -> Image.Image:
    """The middle of a picture scaled to cover a size; the scaled picture has whole numbers of pixels, rounded down.

    Scaling the middle alone is faster, but Pillow then may scale the rows before the columns where it otherwise scales
    the columns first. Between the two, it rounds and clips: pixels of noise then differ by up to 20 of 255.
    """
    across, down = upright.size
    if size[0] * down >= size[1] * across:  # the width decides the scale
        wide, high = size[0], size[0] * down // across
    else:
        wide, high = size[1] * across // down, size[1]
    if max(wide, high) > LONGEST_SCALED * max(size):
        return _resized(upright, _middle((0, 0, across, down), size), size, resample)
    left, top = (wide - size[0]) // 2, (high - size[1]) // 2
    scaled = _resized(upright, (0, 0, across, down), (wide, high), resample)
    return scaled.crop((left, top, left + size[0], top + size[1]))


def _resized(picture: Image.Image, box: Box, size: Size, resample: str) -> Image.Image:
    from PIL import Image

    return picture.resize(size, Image.Resampling.BICUBIC if resample == "bicubic" else Image.Resampling.BILINEAR, box)
