"""golden.npz of a bundle: a few real inputs and PyTorch's outputs for them.

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
DTYPES = {"tokens": "int64", "lengths": "int64", "features": "float32", "logits": "float32", "pixels": "float32"}
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
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    pixels: NDArray[np.float32] | None = None


def read_golden(bundle: Bundle) -> Golden:
    """Read the golden examples of a bundle.

    Args:
        bundle: the bundle.

    Raises:
        BundleError: the bundle has no golden examples, or they are invalid: pickled objects, too many bytes, shapes
            that differ from the contract, or values that are not finite.
    """
    file = bundle.file(GOLDEN_FILE)
    wanted = [name for name in DTYPES if name != "pixels" or "vision" in bundle.manifest.graphs]
    try:
        if file.nbytes > len(wanted) * BYTES_LIMIT:
            raise ValueError(f"it has {file.nbytes} bytes")
        with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            arrays = {name: _read_array(archive, name) for name in wanted}
        _check(arrays, bundle.manifest)
    except Exception as error:  # unpacking raises a dozen types, some of which derive only from Exception
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise BundleError(f"{file.path} is not what was exported ({reason}); {EXPORT_AGAIN}") from None
    return Golden(**arrays)


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    array = read_member(archive, name, BYTES_LIMIT)
    if array.dtype != DTYPES[name]:
        raise ValueError(f"{name} is of type {array.dtype}, expected {DTYPES[name]}")
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
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, expected {shape}")
    if arrays["lengths"].min() < 1 or arrays["lengths"].max() > words or arrays["tokens"].min() < 0:
        raise ValueError(f"lengths from 1 to {words} and words from 0 on were expected")
    if not all(np.isfinite(arrays[name]).all() for name in arrays):
        raise ValueError("it holds values that are not finite numbers")
