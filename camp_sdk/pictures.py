"""Pictures to pixels: decode, stretch, normalise, as the bundle's manifest says. Training uses the same code."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import PixelSpec
from camp_sdk.runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 80_000_000  # below Pillow's own limit, which only warns


def find_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, by their suffix, sorted by name. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected a folder of pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{folder} holds no pictures: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def read_picture(picture: Any, height: int, width: int, name: str) -> NDArray[np.uint8]:
    """A path, PIL image or uint8 array [H, W, 3] -> uint8 RGB [height, width, 3], stretched (bilinear).

    Raises InputError as `open_picture` does.
    """
    from PIL import Image

    upright = open_picture(picture, name)
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def open_picture(picture: Any, name: str) -> Image.Image:
    """A path, PIL image or uint8 array [H, W, 3] -> RGB, upright by its EXIF orientation, transparency over white.

    Raises InputError, naming the picture, if it cannot be read, has another dtype or shape, or over 80 megapixels.
    """
    from PIL import Image, ImageOps

    try:
        with _open(picture, name) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(
                    f"{name} has {opened.width} x {opened.height} pixels: at most {MAX_PIXELS // 10**6} million"
                )
            return _flatten(ImageOps.exif_transpose(opened))
    except InputError:
        raise
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} cannot be read as a picture: {error}") from None


def _open(picture: Any, name: str) -> AbstractContextManager[Image.Image]:
    from PIL import Image

    if isinstance(picture, Image.Image):
        return nullcontext(picture)  # the caller's own: not ours to close
    if isinstance(picture, (str, Path)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            return Image.open(picture)
    pixels = (
        isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    )
    if pixels and picture.size:
        return Image.fromarray(picture)
    found = f"{picture.dtype} array {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise InputError(
        f"{name} is a {found}: expected a path, a PIL image, a uint8 array [H, W, 3] or float features [R, D]"
    )


def _flatten(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if picture.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def normalise(pixels: NDArray[np.uint8], spec: PixelSpec) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: scaled to 0..1, minus the mean, divided by the deviation."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return (scaled - mean) / std
