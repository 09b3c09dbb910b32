"""From pictures to pixels: decode, fit and normalise, as the bundle's manifest says. Training uses the same code."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from camp_sdk.colours import flatten, samples_of
from camp_sdk.fitting import WITHIN, Box, Fitting, fitted, least_size
from camp_sdk.picture_files import in_memory, is_one_picture, open_picture, open_without_metadata, reason_of
from camp_sdk.png_chunks import is_metadata_limit
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import FITS, PixelSpec

if TYPE_CHECKING:
    from PIL import Image

Result = TypeVar("Result")
# What is done with an opened picture; the second argument is whether it was opened here, and so may be changed.
Use = Callable[["Image.Image", bool], Result]

MAX_MEGAPIXELS = 80.0  # below both limits of Pillow, of which the lower only warns
ORIENTATION = 0x0112  # the EXIF tag
# The transposition, by Pillow's name, that turns a picture with each value of the tag upright. Pillow's own
# exif_transpose also rewrites the EXIF data, and fails if other tags are malformed.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Values of the tag for which the file ...
TURNED = (5, 6, 7, 8)  # stores the rows of the upright picture as columns,
FROM_RIGHT = (2, 3, 6, 7)  # starts at the right edge of the upright picture,
FROM_BOTTOM = (3, 4, 7, 8)  # starts at its bottom edge.

EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # hold EXIF data not parsed yet
REDUCED = ("JPEG", "MPO")  # formats that can be decoded at a part of their size, and whose EXIF data come before
FAILED = "_camp_sdk_failed"  # an attribute of a caller's image: the frame that could not be read, and why


def read_picture(
    picture: Any,
    height: int,
    width: int,
    name: str,
    fit: str = "stretch",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> NDArray[np.uint8]:
    """Decode a picture and fit it to a size.

    The picture is turned upright by its EXIF orientation, transparency is laid over white, and the picture is resized
    by bilinear interpolation with antialiasing. A JPEG is decoded at an eighth, a quarter or half of its size if that
    leaves at least twice the pixels needed in both directions. For a smooth picture of 12 megapixels and a size of
    224 x 224, this takes at most a quarter of the processor time; pixels differ by 0.15 of 255 on average and by at
    most 2.

    Args:
        picture: A path, a file object (read from where it stands, and not closed), the bytes of a picture file, a PIL
            image (whose pixels are not altered) or a uint8 array [H, W, 3].
        height: In pixels.
        width: In pixels.
        name: The picture's name in messages.
        fit: "stretch", "letterbox" or "crop", as in `PixelSpec`.
        max_megapixels: A picture with more megapixels is not decoded; its header holds the size.

    Returns:
        RGB pixels [height, width, 3] uint8.

    Raises:
        InputError: The picture has another type, dtype or shape, or ``fit`` is unknown.
        PictureError: The picture cannot be read, or is too large.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}: expected one of {', '.join(FITS)}")
    return _fitted_picture(picture, _Wanted(Fitting((width, height), fit), name, max_megapixels))


def read_pixels(picture: Any, spec: PixelSpec, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Decode a picture and fit it to a size, as a bundle's manifest says.

    As `read_picture`, unless the specification names another interpolation than "fast": a JPEG is then decoded whole,
    and the pixels are those of the pretrained model's own preprocessing.

    Args:
        picture: As in `read_picture`.
        spec: The size, the fit and the interpolation.
        name: The picture's name in messages.
        max_megapixels: A picture with more megapixels is not decoded.

    Returns:
        RGB pixels [height, width, 3] uint8.

    Raises:
        InputError: The picture has another type, dtype or shape.
        PictureError: The picture cannot be read, or is too large.
    """
    fitting = Fitting((spec.width, spec.height), spec.fit, spec.resample)
    return _fitted_picture(picture, _Wanted(fitting, name, max_megapixels))


def read_shrunk(picture: Any, longest: int, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Decode a picture and scale it down, in its own proportions.

    Args:
        picture: As in `read_picture`.
        longest: The most pixels a side. A smaller picture is not scaled.
        name: The picture's name in messages.
        max_megapixels: A picture with more megapixels is not decoded.

    Returns:
        RGB pixels [height, width, 3] uint8.

    Raises:
        InputError: The picture has another type, dtype or shape.
        PictureError: The picture cannot be read, or is too large.
    """
    return _fitted_picture(picture, _Wanted(Fitting((longest, longest), WITHIN), name, max_megapixels))


def upright_size(picture: Any, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """The width and height of a picture that is turned upright; most formats are not decoded for that.

    Args:
        picture: As in `read_picture`.
        name: The picture's name in messages.
        max_megapixels: A picture with more megapixels is refused.

    Raises:
        InputError: The picture has another type, dtype or shape.
        PictureError: The picture cannot be read, or is too large.
    """
    wanted = _Wanted(Fitting((1, 1), WITHIN), name, max_megapixels)
    return _opened_as(picture, name, lambda opened, own: _upright_size(opened, wanted))


def _fitted_picture(picture: Any, wanted: _Wanted) -> NDArray[np.uint8]:
    return _opened_as(picture, wanted.name, lambda opened, own: _pixels(opened, wanted, own))


def _opened_as(picture: Any, name: str, use: Use[Result]) -> Result:
    """What a function makes of an opened picture; every error in between is a `PictureError`."""
    check_picture(picture, name)
    try:
        return _read(held(picture, name), use)
    except (InputError, MemoryError):  # running out of memory does not mean that the picture is broken
        raise
    except Exception as error:  # decoders raise a dozen types of errors for broken files
        reason = reason_of(error)
        _remember(picture, reason)
        raise _broken(name, reason) from None


class PictureError(InputError):
    """A picture that cannot be read or is too large; ``skip_broken`` leaves such pictures out."""


def check_picture(picture: Any, name: str) -> None:
    """Check the type of a picture, without opening it.

    Args:
        picture: The value that the caller passed as a picture.
        name: Its name in messages.

    Raises:
        InputError: It is not a picture by its type, dtype or shape.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
            return
        found = f"{picture.dtype} array {picture.shape}"
    elif isinstance(picture, io.TextIOBase):
        found = "file opened as text"
    elif is_one_picture(picture) or isinstance(picture, Image.Image):
        return
    else:
        found = type(picture).__name__
    raise InputError(
        f"{name} is a {found}: expected a path, a file opened with 'rb', the bytes of a picture file, a PIL image, a "
        "uint8 array [H, W, 3] or float features [R, D]"
    )


def held(picture: Any, name: str) -> Any:
    """A picture that can be read later and in another thread: file objects and buffers are read into memory now.

    Args:
        picture: A picture as `check_picture` accepts it.
        name: Its name in messages.

    Raises:
        PictureError: The file object cannot be read.
    """
    try:
        return in_memory(picture)
    except MemoryError:
        raise
    except Exception as error:  # file objects of any kind
        raise _broken(name, reason_of(error)) from None


def _broken(name: str, reason: str) -> PictureError:
    return PictureError(f"{name} cannot be read as a picture: {reason}")


def is_lazy(picture: Any) -> bool:
    """Whether a picture must be read before the caller goes on.

    True for a PIL image that was opened from a file: Pillow decodes it on first use, which is not safe in two threads,
    and the caller may close its file or move on to another frame. True also for an image with a palette or unparsed
    EXIF data, which Pillow likewise processes on first use.
    """
    from PIL import Image, ImageFile

    return isinstance(picture, ImageFile.ImageFile) or (
        isinstance(picture, Image.Image)
        and (picture.mode in ("P", "PA") or not picture.info.keys().isdisjoint(EXIF_KEYS))
    )


class _Wanted(NamedTuple):
    fitting: Fitting
    name: str
    max_megapixels: float


def _read(picture: Any, use: Use[Result]) -> Result:
    try:
        with _open(picture) as opened:
            return use(opened, opened is not picture)
    except ValueError as error:
        file = getattr(picture, "fp", picture)  # a caller's image was refused at the end of its file
        if not is_metadata_limit(error) or file is None or getattr(picture, "is_animated", False):
            raise
        refused = error
    with open_without_metadata(file, refused) as opened:
        return use(opened, True)


def _open(picture: Any) -> AbstractContextManager[Image.Image]:
    from PIL import Image

    if isinstance(picture, Image.Image):
        frame, reason = getattr(picture, FAILED, (None, ""))
        if frame == picture.tell():  # Pillow takes a picture whose decoder failed for one that is decoded
            raise OSError(reason)
        return nullcontext(picture)  # the caller closes it
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    return open_picture(picture)


def _remember(picture: Any, reason: str) -> None:
    """Note that a caller's image cannot be read, so that it is refused again if it is passed again."""
    from PIL import ImageFile

    if isinstance(picture, ImageFile.ImageFile):
        setattr(picture, FAILED, (picture.tell(), reason))


def _pixels(opened: Image.Image, wanted: _Wanted, own: bool) -> NDArray[np.uint8]:
    _check_pixels(opened, wanted)
    upright, box = _decode(opened, wanted.fitting, own)
    return np.asarray(fitted(upright, box, wanted.fitting))


def _upright_size(opened: Image.Image, wanted: _Wanted) -> tuple[int, int]:
    _check_pixels(opened, wanted)
    return opened.size[::-1] if _orientation(opened) in TURNED else opened.size


def _check_pixels(opened: Image.Image, wanted: _Wanted) -> None:
    if not opened.width * opened.height:
        raise OSError(f"it has {opened.width} x {opened.height} pixels")
    if opened.width * opened.height > wanted.max_megapixels * 1e6:
        raise PictureError(
            f"{wanted.name} has {opened.width} x {opened.height} pixels: at most {wanted.max_megapixels:g} megapixels "
            "are decoded; raise the limit with `max_megapixels`"
        )


def _decode(opened: Image.Image, wanted: Fitting, own: bool) -> tuple[Image.Image, Box]:
    """Decode to upright RGB; an image that we opened ourselves is decoded at a reduced scale if its format offers one.

    Not where the pixels are to be exactly those of another program, which decodes the whole picture.

    Returns:
        The pixels, and the box in them that the picture fills: at a reduced scale, the last row and column may be only
        partly filled.
    """
    from PIL import Image

    drafted = None
    if own and opened.format in REDUCED and wanted.resample == "fast":
        size = wanted.size[::-1] if _orientation(opened) in TURNED else wanted.size
        drafted = opened.draft(None, least_size(opened.size, size, wanted.fit))
    samples = samples_of(opened)
    opened.load()  # before anything that loads it in passing: only the first attempt raises what is wrong with it
    orientation = _orientation(opened)
    turn = UPRIGHT.get(orientation)
    upright = flatten(opened.transpose(Image.Transpose[turn]) if turn else opened, samples)
    if drafted is None:
        return upright, (0, 0, *upright.size)
    _, (_, _, across, down) = drafted
    across, down = (down, across) if orientation in TURNED else (across, down)
    left = upright.width - across if orientation in FROM_RIGHT else 0
    top = upright.height - down if orientation in FROM_BOTTOM else 0
    return upright, (left, top, left + across, top + down)


def _orientation(opened: Image.Image) -> Any:
    """The EXIF orientation, or 1 (upright) if it cannot be read: bad EXIF data do not make a picture broken.

    Call it for a picture that is loaded, or whose format does not load it here, so that no other error is meant.
    """
    if opened.format == "HEIF":  # its decoder has turned it, as the container says; the EXIF data say so once more
        return 1
    try:
        return opened.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # Pillow's parser raises errors of any type
        return 1


def normalise(pixels: NDArray[np.uint8], spec: PixelSpec) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: scaled to 0..1, minus the mean, divided by the standard deviation."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (spec.mean, spec.std))
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return (scaled - mean) / std
