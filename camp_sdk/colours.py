"""From the numbers that a decoder returns to RGB: grey of any depth, inks, palettes and transparency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO = 0  # a value of the tag PHOTOMETRIC
SIGNED = (2,)  # values of the tag SAMPLE_FORMAT
UNSIGNED = (1,)
WHITE = 0xFFFF
# Pillow scales grey of 2 and 4 bits to 0..255, but not the shade that a PNG declares transparent.
GREY_STEPS = {"L;2": 85, "L;4": 17}
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
WITH_A_CLEAR_COLOUR = ("1", "L", "P", "RGB")


class Samples(NamedTuple):
    """What Pillow does not apply to the numbers of a picture.

    Args:
        white: The number that shows as white, in the grey modes of more than 8 bits.
        inverted: Whether black and white are exchanged in these modes.
        unsigned: Whether numbers of 32 bits are stored without a sign: Pillow reads them with one.
        step: What to multiply a transparent shade of grey by.
    """

    white: int = WHITE
    inverted: bool = False
    unsigned: bool = False
    step: int = 1


def samples_of(opened: Image.Image) -> Samples:
    """How to read the numbers of a picture; ask before it is loaded, when Pillow forgets how it was stored."""
    tags = getattr(opened, "tag_v2", None)
    if tags is None:
        tile = getattr(opened, "tile", None)
        raw = tile[0][3] if tile and opened.format == "PNG" else None
        return Samples(step=GREY_STEPS.get(raw, 1) if isinstance(raw, str) else 1)
    bits, kind = tags.get(BITS, (1,))[0], tuple(tags.get(SAMPLE_FORMAT, UNSIGNED))
    white = (1 << (bits - 1 if kind == SIGNED else bits)) - 1
    return Samples(
        white=white if 8 < bits < 32 else WHITE,
        inverted=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
        unsigned=bits == 32 and kind == UNSIGNED,
    )


def flatten(picture: Image.Image, samples: Samples) -> Image.Image:
    """A loaded picture as RGB; what is transparent is laid over white."""
    from PIL import Image

    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        return Image.fromarray(_eight_bits(picture, samples)).convert("RGB")
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode in WITH_ALPHA or (mode in WITH_A_CLEAR_COLOUR and picture.has_transparency_data):
        straight = picture.convert("LA") if mode == "La" else _with_clear_colour(picture, samples.step)
        rgba = straight.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def _with_clear_colour(picture: Image.Image, step: int) -> Image.Image:
    """The picture, with the colour that is transparent as numbers of 0..255, which is how its pixels are."""
    clear: Any = picture.info.get("transparency")
    if isinstance(clear, int) and step > 1:
        clear *= step
    elif isinstance(clear, tuple) and max(clear, default=0) > 255:  # of 16 bits each
        clear = tuple(number >> 8 for number in clear)
    else:
        return picture
    copy = picture.copy()
    copy.info["transparency"] = clear
    return copy


def _eight_bits(picture: Image.Image, samples: Samples) -> NDArray[np.uint8]:
    """Scale deep grey, or floats of 0..1 or 0..255, to 0..255 [H, W]: Pillow would clip at 255 instead of scaling."""
    numbers = np.asarray(picture)
    if picture.mode == "F":
        finite: NDArray[np.float32] = np.nan_to_num(numbers)
        scale = np.float32(255 if finite.max() <= 1 else 1)
        grey = np.rint(finite.clip(0, 255) * scale).astype(np.uint8)
    else:
        stored = numbers.view(np.uint32) if samples.unsigned else numbers
        grey = (stored.clip(0, samples.white) >> (samples.white.bit_length() - 8)).astype(np.uint8)
    if samples.inverted:
        grey = 255 - grey
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[numbers == clear] = 255
    return grey
