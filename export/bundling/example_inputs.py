"""Golden examples of what an app passes in: a caption with its tokens, and a picture file with its pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camp_sdk.pictures import normalise, read_picture
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.tokenizer import Tokenizer

Arrays = dict[str, NDArray[Any]]

CAPTION_CHARACTERS = 200
ENDING = " (Zyzzyva)!"  # capital letters, punctuation, and a word that no vocabulary of captions holds


def caption_example(tokenizer: Tokenizer, captions: Sequence[str]) -> Arrays:
    """A caption as UTF-8, and the tokens that it becomes.

    Args:
        tokenizer: the bundle's tokenizer.
        captions: example captions, of which the first is used.

    Returns:
        caption [n] uint8 and caption_tokens [N] int64, both markers included.
    """
    start = (list(captions) or [""])[0][:CAPTION_CHARACTERS]
    caption = f"{start[:1].upper()}{start[1:]}{ENDING}"
    tokens = tokenizer.encode([caption]).ids[0]  # [N]
    return {"caption": np.frombuffer(caption.encode(), np.uint8), "caption_tokens": tokens}


def picture_example(spec: PixelSpec) -> Arrays:
    """A picture file that is larger than the network's input and has other proportions, and the pixels it becomes.

    Args:
        spec: the input of the vision graph.

    Returns:
        picture [n] uint8, the bytes of a PNG, and picture_pixels [3, H, W] float32.
    """
    content = io.BytesIO()
    Image.fromarray(drawn(spec.width * 2 + 31, spec.height + 17)).save(content, "PNG")
    pixels = read_picture(content.getvalue(), spec.height, spec.width, "the golden picture", spec.fit)  # [H, W, 3]
    return {
        "picture": np.frombuffer(content.getvalue(), np.uint8),
        "picture_pixels": normalise(pixels[None], spec)[0],  # [3, H, W]
    }


def drawn(width: int, height: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] of whole numbers alone, equal on every machine: a ramp across, one down, and stripes.

    The stripes are hard edges of all distances from 1 to 7 pixels, which show how a resize weighs its neighbours.
    """
    x, y = np.arange(width), np.arange(height)[:, None]
    across = np.broadcast_to(x * 255 // (width - 1), (height, width))
    down = np.broadcast_to(y * 255 // (height - 1), (height, width))
    stripes = ((x + y) // (1 + 7 * y // height) % 2) * 255
    return np.stack([across, down, stripes], axis=2).astype(np.uint8)
