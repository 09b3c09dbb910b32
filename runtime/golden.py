"""golden.npz of a bundle: a few real inputs and PyTorch's outputs for them, a caption with its tokens, and a picture.

The file may come from anywhere, so the size of each array is checked before it is unpacked. Axis letters are those of
manifest.py.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.arrays import read_member
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, Manifest

GOLDEN_FILE = "golden.npz"
BYTES_LIMIT = 128 << 20  # for one array; eight pictures of 1024 x 1024 take 101 million bytes
AXIS_LIMITS = {"I": 64, "T": 64, "N": 1024, "R": 1024}
CAPTION_BYTES, PICTURE_BYTES = 40_000, 16 << 20  # 10,000 characters of four bytes; a picture file
DTYPES = {"tokens": "int64", "lengths": "int64", "features": "float32", "logits": "float32", "pixels": "float32"}
CAPTION = {"caption": "uint8", "caption_tokens": "int64"}  # bundles of older versions lack both,
PICTURE = {"picture": "uint8", "picture_pixels": "float32"}  # and both of these
LIMITS = {"caption": CAPTION_BYTES, "caption_tokens": 8 * AXIS_LIMITS["N"], "picture": PICTURE_BYTES}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    """Example inputs and PyTorch's logits for them.

    Args:
        tokens: word indices [T, N], int64.
        lengths: the number of words of each text [T], int64, both markers counted.
        features: region features [I, R, D], float32.
        logits: PyTorch's logits [I, T], float32.
        pixels: normalised pictures [I, 3, H, W], float32; None if the bundle has no vision graph.
        caption: a text; None if the bundle has none, as those of older versions.
        caption_tokens: the word indices that the tokenizer must give for it [N], int64, with both markers.
        picture: the bytes of a picture file [n], uint8; None if the bundle has none.
        picture_pixels: the normalised pixels that it must become [3, H, W], float32.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    pixels: NDArray[np.float32] | None = None
    caption: str | None = None
    caption_tokens: NDArray[np.int64] | None = None
    picture: NDArray[np.uint8] | None = None
    picture_pixels: NDArray[np.float32] | None = None


def read_golden(bundle: Bundle) -> Golden:
    """Read the golden examples of a bundle.

    Args:
        bundle: the bundle.

    Raises:
        BundleError: the bundle has no golden examples, or they are invalid: pickled objects, too many bytes, shapes
            that differ from the contract, or values that are not finite.
    """
    file = bundle.file(GOLDEN_FILE)
    pictures = "vision" in bundle.manifest.graphs
    wanted = {name: dtype for name, dtype in DTYPES.items() if name != "pixels" or pictures}
    try:
        if file.nbytes > len(wanted) * BYTES_LIMIT:
            raise ValueError(f"it has {file.nbytes} bytes")
        with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            held = set(archive.namelist())
            for pair in (CAPTION, PICTURE) if pictures else (CAPTION,):
                wanted |= pair if held.intersection(f"{name}.npy" for name in pair) else {}
            arrays = {name: _read_array(archive, name, dtype) for name, dtype in wanted.items()}
        _check(arrays, bundle.manifest)
        values: dict[str, Any] = dict(arrays)
        if "caption" in arrays:
            values["caption"] = arrays["caption"].tobytes().decode()
    except Exception as error:  # unpacking raises a dozen types, some of which derive only from Exception
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise BundleError(f"{file.path} is not what was exported ({reason}); {EXPORT_AGAIN}") from None
    return Golden(**values)


def _read_array(archive: zipfile.ZipFile, name: str, dtype: str) -> NDArray[Any]:
    array = read_member(archive, name, LIMITS.get(name, BYTES_LIMIT))
    if array.dtype != dtype:
        raise ValueError(f"{name} is of type {array.dtype}, expected {dtype}")
    return array


def _check(arrays: Arrays, manifest: Manifest) -> None:
    texts, words = arrays["tokens"].shape
    images, regions, _ = arrays["features"].shape
    for letter, size in (("I", images), ("T", texts), ("N", words), ("R", regions)):
        if size > AXIS_LIMITS[letter]:
            raise ValueError(f"axis {letter} has {size} entries, expected at most {AXIS_LIMITS[letter]}")
    shapes = {"lengths": (texts,), "features": (images, regions, manifest.feature_width), "logits": (images, texts)}
    if (pixels := manifest.pixels) is not None:
        shapes["pixels"] = (images, 3, pixels.height, pixels.width)
        shapes["picture_pixels"] = (3, pixels.height, pixels.width)
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, expected {shape}")
    if arrays["lengths"].min() < 1 or arrays["lengths"].max() > words or arrays["tokens"].min() < 0:
        raise ValueError(f"lengths from 1 to {words} and words from 0 on were expected")
    if not all(np.isfinite(arrays[name]).all() for name in arrays):
        raise ValueError("it holds values that are not finite numbers")
    for name in {"caption", "caption_tokens", "picture"} & arrays.keys():
        if arrays[name].ndim != 1:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, expected one axis")
