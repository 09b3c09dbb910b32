"""golden.npz of a bundle: a few real inputs and PyTorch's outputs. Read as what it may be, a file from anywhere.

Axis letters as in bundle.py.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, Manifest

GOLDEN_FILE = "golden.npz"
BYTES_LIMIT = 128 << 20  # of one array; eight pictures of 1024 x 1024 have 101 million
AXIS_LIMITS = {"I": 64, "T": 64, "N": 1024, "R": 1024}
DTYPES = {"tokens": "int64", "lengths": "int64", "features": "float32", "logits": "float32", "pixels": "float32"}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    """Inputs, tokens [T, N], lengths [T], features [I, R, D] and, of a bundle of pictures, pixels [I, 3, H, W]; and the
    logits [I, T] that PyTorch gave for them."""

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    pixels: NDArray[np.float32] | None = None


def read_golden(bundle: Bundle) -> Golden:
    """The golden examples of a bundle. Raises BundleError if it has none, or such as cannot be golden examples: objects,
    too many bytes, other shapes than the contract's, values that are no numbers."""
    path = bundle.path(GOLDEN_FILE)
    wanted = [name for name in DTYPES if name != "pixels" or "vision" in bundle.manifest.graphs]
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _read_array(archive, name) for name in wanted}
        _check(arrays, bundle.manifest)
    except Exception as error:  # what unpacks it has a dozen types, some of which derive from Exception alone
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise BundleError(f"{path} is not what was exported ({reason}); {EXPORT_AGAIN}") from None
    return Golden(**arrays)


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, its size checked before a byte of it is unpacked."""
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read_header(file)
        if dtype != DTYPES[name]:
            raise ValueError(f"{name} is of type {dtype}, expected {DTYPES[name]}")
        nbytes = math.prod(shape) * dtype.itemsize
        if not 0 < nbytes <= BYTES_LIMIT or min(shape) < 1:
            raise ValueError(f"{name} has the shape {shape}: expected 1 to {BYTES_LIMIT} bytes")
        content = file.read(nbytes)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


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
        raise ValueError("it holds values that are no finite numbers")
