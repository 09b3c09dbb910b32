"""From the settings of a published image processor to the pixels of a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.messages import brief

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# By default on in the processors of CLIP and SigLIP; a file need not repeat it.
STEPS = ("do_resize", "do_rescale", "do_normalize")


def pixel_spec(raw: Mapping[str, Any], grid: tuple[int, int]) -> PixelSpec:
    """The pixels that a published image processor makes.

    Args:
        raw: the processor's settings.
        grid: rows and columns of the regions, or (0, 0).

    Raises:
        BundleError: a setting is not one that the runtime can follow.
    """
    if off := [name for name in STEPS if not raw.get(name, True)]:
        raise BundleError(f"the image processor has {', '.join(off)} off: expected scaled, normalised pixels")
    factor = raw.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise BundleError(f"the image processor has rescale_factor {brief(factor)}: expected 1/255")
    if not isinstance(number := raw.get("resample", 3), int) or number not in INTERPOLATIONS:
        raise BundleError(f"the image processor has resample {brief(number)}: expected 2 (bilinear) or 3 (bicubic)")
    (height, width), fit = _size(raw)
    try:
        values = {"height": height, "width": width, "grid": grid, "fit": fit, "resample": INTERPOLATIONS[number]}
        return PixelSpec.from_dict(values | {"mean": raw["image_mean"], "std": raw["image_std"]})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"the image processor's settings make no pixels: {error}") from None


def _size(raw: Mapping[str, Any]) -> tuple[tuple[int, int], str]:
    """The size, and whether pictures are stretched to it or cut."""
    size, cut = raw.get("size"), raw.get("crop_size")
    shown = f"the image processor has size {brief(size)} and crop_size {brief(cut)}"
    crops = bool(raw.get("do_center_crop", cut is not None))
    if isinstance(size, int):  # of old files: with a cut, the shorter side
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if isinstance(cut, int):
        cut = {"height": cut, "width": cut}
    if not isinstance(size, dict):
        raise BundleError(f"{shown}: expected sizes")
    if not crops and type(size.get("height")) is type(size.get("width")) is int:
        return (size["height"], size["width"]), "stretch"
    edge = size.get("shortest_edge")
    if crops and type(edge) is int and cut == {"height": edge, "width": edge}:
        return (edge, edge), "crop"
    raise BundleError(f"{shown}: expected a height and a width, or a shortest_edge that is also cut out as a square")
