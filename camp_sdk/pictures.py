"""Pictures to pixels: decode, fit, normalise, as the bundle's manifest says. Training uses the same code."""

from __future__ import annotations

import io
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS, PixelSpec

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]  # width, height, as Pillow has it
Box = tuple[float, float, float, float]  # left, top, right, bottom

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_MEGAPIXELS = 80.0  # below Pillow's own limits, of which one only warns
ORIENTATION = 0x0112  # the EXIF tag, and what makes each of its values upright, by Pillow's names.
# Pillow's exif_transpose also writes the EXIF anew, and fails where other tags are odd.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
TURNED = (5, 6, 7, 8)  # Of its values, those that ... store the picture's rows as columns,
FROM_RIGHT = (2, 3, 6, 7)  # ... begin at its right side,
FROM_BOTTOM = (3, 4, 7, 8)  # ... begin at its bottom


EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow keeps what it has not read yet


def find_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, by their suffix, sorted by name, links that lead nowhere included; without its
    subfolders. Raises InputError if there are none."""
    from PIL import features

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected a folder of pictures")
    suffixes = SUFFIXES | ({".avif"} if "avif" in features.get_supported() else set())
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and (path.is_file() or not path.exists())
    )
    if not found:
        raise InputError(
            f"{folder} holds no pictures (its subfolders are not read): expected files ending in {', '.join(sorted(suffixes))}"
        )
    return found


def read_picture(
    picture: Any,
    height: int,
    width: int,
    name: str,
    fit: str = "stretch",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> NDArray[np.uint8]:
    """A path, encoded bytes, PIL image or uint8 array [H, W, 3] -> uint8 RGB [height, width, 3].

    Upright by its EXIF orientation, transparency over white, fitted (`PixelSpec.fit`) by bilinear interpolation with
    antialiasing. A JPEG is decoded at an eighth, a quarter or half of its size where that leaves at least twice the pixels
    needed in both directions: for a smooth one of 12 megapixels and 224 x 224, a quarter of the processor time or less, with
    pixels that differ by 0.15 of 255 on average and by 2 at most. The caller's own PIL image is not altered. Raises
    InputError, naming the picture, if it is of another type, dtype or shape, and PictureError if it cannot be read or has over
    max_megapixels; its header tells, before anything is decoded.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}: expected one of {', '.join(FITS)}")
    check_picture(picture, name)
    try:
        with _open(picture) as opened:
            if opened.width * opened.height > max_megapixels * 1e6:
                raise PictureError(
                    f"{name} has {opened.width} x {opened.height} pixels: at most {max_megapixels:g} megapixels are "
                    "decoded; encode_images and camp rank take max_megapixels"
                )
            upright, box = _decode(opened, (width, height), fit, opened is not picture)
            return np.asarray(_fitted(upright, box, (width, height), fit))
    except (InputError, MemoryError):  # too little memory is not the picture's fault: never left out
        raise
    except Exception as error:  # decoders raise a dozen types for a broken file
        raise PictureError(f"{name} cannot be read as a picture: {_reason(error)}") from None


class PictureError(InputError):
    """A picture that cannot be read, or is too large: what `skip_broken` leaves out."""


def check_picture(picture: Any, name: str) -> None:
    """Raise InputError, naming the picture, for what is none by its type, dtype or shape. Nothing is opened."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
            return
        found = f"{picture.dtype} array {picture.shape}"
    elif isinstance(picture, (str, Path, bytes, Image.Image)):
        return
    else:
        found = type(picture).__name__
    raise InputError(
        f"{name} is a {found}: expected a path, the bytes of a picture file, a PIL image, a uint8 array [H, W, 3] or "
        "float features [R, D]"
    )


def is_lazy(picture: Any) -> bool:
    """Whether a picture must be read before the caller goes on: a PIL image that was opened from a file.

    It decodes itself when first used, which is not safe in two threads, and its file may be closed, or another frame be
    current, a moment later. Pillow builds palettes and reads EXIF when first used, too.
    """
    from PIL import Image, ImageFile

    return isinstance(picture, ImageFile.ImageFile) or (
        isinstance(picture, Image.Image)
        and (picture.mode in ("P", "PA") or not picture.info.keys().isdisjoint(EXIF_KEYS))
    )


def _open(picture: Any) -> AbstractContextManager[Image.Image]:
    from PIL import Image

    Image.init()  # otherwise Pillow does it when a format is new to it, and other threads' files are unknown meanwhile
    if isinstance(picture, Image.Image):
        return nullcontext(picture)  # the caller's own: not ours to close
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    formats = [name for name in Image.ID if name != "EPS"]  # a program, which Pillow would have Ghostscript run
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=formats)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own message shows an address in memory where bytes were given
        return "it is in no format that Pillow knows"
    return str(error) or type(error).__name__


def _decode(opened: Image.Image, size: Size, fit: str, own: bool) -> tuple[Image.Image, Box]:
    """RGB, upright, and the box in it that is the picture; if it is our own, at a reduced scale where the format has one.

    At a reduced scale the last row and column may be there only in part: the box tells.
    """
    from PIL import Image

    orientation = _orientation(opened)
    turned = orientation in TURNED
    drafted = opened.draft(None, _least_size(opened.size, size[::-1] if turned else size, fit)) if own else None
    opened.load()  # some formats tell their mode only now
    turn = UPRIGHT.get(_orientation(opened))  # again: TIFFs are upright once they are loaded
    upright = _flatten(opened.transpose(Image.Transpose[turn]) if turn else opened)
    if drafted is None:
        return upright, (0, 0, *upright.size)
    _, (_, _, across, down) = drafted
    across, down = (down, across) if turned else (across, down)
    left = upright.width - across if orientation in FROM_RIGHT else 0
    top = upright.height - down if orientation in FROM_BOTTOM else 0
    return upright, (left, top, left + across, top + down)


def _orientation(opened: Image.Image) -> Any:
    """The EXIF tag; 1, upright, where there is none that can be read: a picture is not broken for its EXIF."""
    try:
        return opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises whatever its parser meets
        return 1


def _least_size(picture: Size, size: Size, fit: str) -> Size:
    """The smallest size to decode a picture at: twice what it will be scaled to."""
    scales = _scales(picture, size, fit)
    across, down = (max(1, math.ceil(2 * have * scale - 1e-6)) for have, scale in zip(picture, scales, strict=True))
    return across, down


def _scales(picture: tuple[float, float], size: Size, fit: str) -> tuple[float, float]:
    """By how much a picture's width and height are scaled to fit a size."""
    across, down = size[0] / picture[0], size[1] / picture[1]
    if fit == "stretch":
        return across, down
    both = min(across, down) if fit == "letterbox" else max(across, down)
    return both, both


def _flatten(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(_eight_bits(picture)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 bits, or floats of 0..1 or 0..255, as 0..255: Pillow would cut at 255 instead of scaling. [H, W]"""
    values = np.asarray(picture)
    if picture.mode == "F":
        numbers: NDArray[np.float32] = np.nan_to_num(values)
        scale = np.float32(255 if numbers.max() <= 1 else 1)
        return np.rint(numbers.clip(0, 255) * scale).astype(np.uint8)
    grey: NDArray[np.uint8] = (values.clip(0, 65535) >> 8).astype(np.uint8)
    grey[values == picture.info.get("transparency", -1)] = 255
    return grey


def _fitted(upright: Image.Image, box: Box, size: Size, fit: str) -> Image.Image:
    if fit == "letterbox":
        return _letterboxed(upright, box, size)
    return _resized(upright, _middle(box, size) if fit == "crop" else box, size)


def _letterboxed(upright: Image.Image, box: Box, size: Size) -> Image.Image:
    from PIL import Image

    across, down = box[2] - box[0], box[3] - box[1]
    scale, _ = _scales((across, down), size, "letterbox")
    inner = max(1, round(across * scale)), max(1, round(down * scale))
    whole = Image.new("RGB", size, "white")
    whole.paste(_resized(upright, box, inner), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return whole


def _middle(box: Box, size: Size) -> Box:
    """The largest box of a size's proportions in the middle of another."""
    left, top, right, bottom = box
    across, down = right - left, bottom - top
    scale, _ = _scales((across, down), size, "crop")
    sides, ends = max(0.0, across - size[0] / scale) / 2, max(0.0, down - size[1] / scale) / 2
    return left + sides, top + ends, right - sides, bottom - ends


def _resized(picture: Image.Image, box: Box, size: Size) -> Image.Image:
    from PIL import Image

    return picture.resize(size, Image.Resampling.BILINEAR, box)


def normalise(pixels: NDArray[np.uint8], spec: PixelSpec) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: scaled to 0..1, minus the mean, divided by the deviation."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return (scaled - mean) / std
