"""Encoded images and texts: the tensors the one-sided graphs made, kept as the scorer will want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import GLOBAL_SUFFIX, TensorSpec

FLOAT32_BYTES = 4
Indices = slice | Sequence[int] | NDArray[np.integer[Any]]
GALLERY_PRECISIONS = ("float32", "float16", "int8")


def narrow(tensors: Arrays, precision: str) -> Arrays:
    """Image tensors in fewer bits; `widen` undoes it, but for the rounding.

    float16: name.float16. int8: name.int8 [I, R, d], and name.scale [I, 1, d] with one float32 number for each column of an
    image, whose largest value becomes 127. (The largest of 36 regions stands out less than the largest of a region's 1,024
    numbers: steps are smaller than with a scale for each region. A tensor [I, d] has that, [I, 1].) Vectors for a shortlist
    (name.global) stay as they are. Raises InputError for values that float16 cannot hold.
    """
    if precision == "float32":
        return {name: array.astype(np.float32, copy=False) for name, array in tensors.items()}
    narrowed: Arrays = {}
    for name, array in tensors.items():
        if name.endswith(GLOBAL_SUFFIX):
            narrowed[name] = array
        elif precision == "float16":
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if not np.isfinite(half).all():
                raise InputError(f"{name} holds {np.abs(array).max():g}, more than float16 can: use float32 or int8")
            narrowed[f"{name}.float16"] = half
        else:
            largest = np.abs(array).max(axis=_one_scale(array.ndim), keepdims=True).astype(np.float32)
            scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
            narrowed[f"{name}.int8"] = np.rint(array / scale).astype(np.int8)
            narrowed[f"{name}.scale"] = scale
    return narrowed


def narrow_specs(specs: Iterable[TensorSpec], precision: str) -> list[TensorSpec]:
    """What `narrow` makes of image tensors as a contract has them."""
    narrowed = []
    for spec in specs:
        if precision == "float32" or spec.name.endswith(GLOBAL_SUFFIX):
            narrowed.append(spec)
            continue
        narrowed.append(TensorSpec(f"{spec.name}.{precision}", precision, spec.shape))
        if precision == "int8":
            axis = _one_scale(len(spec.shape))
            narrowed.append(
                TensorSpec(f"{spec.name}.scale", "float32", (*spec.shape[:axis], 1, *spec.shape[axis + 1 :]))
            )
    return narrowed


def widen(tensors: Arrays) -> Arrays:
    """Float32 image tensors of narrowed ones; others as they are."""
    widened: Arrays = {}
    for name, array in tensors.items():
        if name.endswith(".float16"):
            # numpy's own cast takes three times as long. Exponent and fraction go where float32 has them, copies of the sign
            # go, and a power of two makes up for the other bias of the exponent: exact for every finite number.
            bits = array.view(np.int16).astype(np.int32)
            bits <<= 13
            bits &= ~0x70000000
            wide = bits.view(np.float32)
            wide *= np.float32(2.0**112)
            widened[name.removesuffix(".float16")] = wide
        elif name.endswith(".int8"):
            wide = array.astype(np.float32)
            wide *= tensors[name.removesuffix(".int8") + ".scale"]
            widened[name.removesuffix(".int8")] = wide
        elif name.removesuffix(".scale") + ".int8" not in tensors:
            widened[name] = array
    return widened


def _one_scale(axes: int) -> int:
    """The axis whose numbers share a scale: the regions of [I, R, d], the columns of [I, d]."""
    return max(1, axes - 2)


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: arrays have no equality of their own
class EncodedImages:
    """Image tensors by name, each [I, ...] (R is the same for all); may be memory-mapped, or narrowed (`narrow`)."""

    tensors: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, indices: Indices) -> Arrays:
        """The tensors of some images; a slice copies nothing."""
        return {name: array[indices] for name, array in self.tensors.items()}

    def select(self, indices: Indices) -> EncodedImages:
        """A part of these images, as encoded images."""
        return EncodedImages(self.take(indices))

    @cached_property
    def halves(self) -> EncodedImages:
        """Images narrowed to float16, under the names that a graph of that precision reads them by.

        Always the same object: engines know by it what they hold already.
        """
        return EncodedImages({name.removesuffix(".float16"): array for name, array in self.tensors.items()})

    @property
    def narrowed(self) -> bool:
        """Whether engines read them only widened."""
        return any(name.endswith((".float16", ".int8")) for name in self.tensors)

    @property
    def item_bytes(self) -> int:
        """Bytes of the largest tensor of one image in float32: what a pair costs on this side, about."""
        return max(FLOAT32_BYTES * int(array[0].size) for array in self.tensors.values())


@dataclass(frozen=True)
class EncodedTexts:
    """Text tensors by name and the number of words of each text, lengths [T].

    A tensor with an axis N in the contract is kept without padding, the words of all texts in a row: [sum of lengths, ...];
    the others are [T, ...].
    """

    tensors: Arrays
    lengths: NDArray[np.int64]
    per_word: frozenset[str]

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: Indices) -> Arrays:
        """The tensors of some texts, padded with zeros (masks with false) to the longest of them."""
        chosen = np.arange(len(self))[indices]
        lengths = self.lengths[chosen]
        starts = (np.cumsum(self.lengths) - self.lengths)[chosen]
        return {
            name: _padded(array, starts, lengths) if name in self.per_word else array[chosen]
            for name, array in self.tensors.items()
        }

    def select(self, indices: Indices) -> EncodedTexts:
        """A part of these texts, as encoded texts."""
        chosen = np.arange(len(self))[indices]
        starts = (np.cumsum(self.lengths) - self.lengths)[chosen]
        rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, self.lengths[chosen], strict=True)])
        tensors = {name: array[rows if name in self.per_word else chosen] for name, array in self.tensors.items()}
        return EncodedTexts(tensors, self.lengths[chosen], self.per_word)

    @property
    def item_bytes(self) -> int:
        """Bytes of the largest tensor of the longest text: what a pair costs on this side, about."""
        longest = int(self.lengths.max())
        sizes = [(FLOAT32_BYTES * int(array[0].size), name in self.per_word) for name, array in self.tensors.items()]
        return max(size * (longest if per_word else 1) for size, per_word in sizes)


def joined(parts: Sequence[EncodedImages | EncodedTexts]) -> EncodedImages | EncodedTexts:
    """The items of several of one kind, of the same tensors, in one."""
    tensors = {name: np.concatenate([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    texts = [part for part in parts if isinstance(part, EncodedTexts)]
    if texts:
        return EncodedTexts(tensors, np.concatenate([part.lengths for part in texts]), texts[0].per_word)
    return EncodedImages(tensors)


def _padded(array: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
    out = np.zeros((len(starts), int(lengths.max()), *array.shape[1:]), array.dtype)
    for row, start, length in zip(out, starts, lengths, strict=True):
        row[:length] = array[start : start + length]
    return out


def words_axis(spec: TensorSpec) -> bool:
    """Whether a text tensor has one entry a word: [T, N, ...] rather than [T, ...]."""
    return len(spec.shape) > 1 and spec.shape[1] == "N"
