"""Encoded images and texts: the outputs of the image and text graphs, stored in the form that the scorer reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.contract import GLOBAL_SUFFIX, TensorSpec
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import InputError

FLOAT32_BYTES = 4
Indices = slice | Sequence[int] | NDArray[np.integer[Any]]
GALLERY_PRECISIONS = ("float32", "float16", "int8")
# Vectors [M_k, d], one part after another, and the ascending indices of the items' own among them; None for all.
GlobalParts = tuple[list[NDArray[np.float32]], NDArray[np.intp] | None]


def narrow(tensors: Arrays, specs: Iterable[TensorSpec], precision: str) -> Arrays:
    """Convert image tensors to fewer bits; `widen` reverses it up to rounding.

    "float16" stores name.float16. "int8" stores name.int8 [I, R, d] and name.scale [I, 1, d], one float32 scale for
    each column of an image, chosen so that the column's largest absolute value becomes 127. A scale per column gives
    smaller steps than a scale per region, because the largest of 36 regions stands out less than the largest of a
    region's 1,024 numbers. A tensor without an axis of regions has one scale for each row of its last axis, such as
    [I, 1] for [I, d]. Masks, and vectors for a shortlist (name.global), are not converted.

    Args:
        tensors: image tensors by name.
        specs: their contract.
        precision: "float32", "float16" or "int8".

    Returns:
        The converted tensors by their new names.

    Raises:
        InputError: float16 cannot represent a value.
    """
    narrowed: Arrays = {}
    for spec in specs:
        name, array = spec.name, tensors[spec.name]
        if not _is_narrowed(spec, precision):
            narrowed[name] = array.astype(spec.dtype, copy=False)
        elif precision == "float16":
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if not np.isfinite(half).all():
                raise InputError(f"{name} holds {np.abs(array).max():g}, more than float16 can: use float32 or int8")
            narrowed[f"{name}.float16"] = half
        else:
            largest = np.abs(array).max(axis=_one_scale(spec), keepdims=True).astype(np.float32)
            scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
            narrowed[f"{name}.int8"] = np.rint(array / scale).astype(np.int8)
            narrowed[f"{name}.scale"] = scale
    return narrowed


def narrow_specs(specs: Iterable[TensorSpec], precision: str) -> list[TensorSpec]:
    """The tensors that `narrow` returns for the image tensors of a contract.

    Args:
        specs: the image tensors.
        precision: "float32", "float16" or "int8".
    """
    narrowed = []
    for spec in specs:
        if not _is_narrowed(spec, precision):
            narrowed.append(spec)
            continue
        narrowed.append(TensorSpec(f"{spec.name}.{precision}", precision, spec.shape))
        if precision == "int8":
            axis = _one_scale(spec)
            narrowed.append(
                TensorSpec(f"{spec.name}.scale", "float32", (*spec.shape[:axis], 1, *spec.shape[axis + 1 :]))
            )
    return narrowed


def widen(tensors: Arrays) -> Arrays:
    """Convert narrowed image tensors back to float32; others are returned unchanged.

    Args:
        tensors: image tensors by name, as `narrow` returned them.
    """
    widened: Arrays = {}
    for name, array in tensors.items():
        if name.endswith(".float16"):
            # numpy's own cast takes three times as long. The shift moves exponent and fraction to their place in
            # float32, the mask clears the copies of the sign bit, and the power of two corrects the exponent's bias.
            # The result is exact for every finite number.
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


def _is_narrowed(spec: TensorSpec, precision: str) -> bool:
    """Whether a tensor is converted: more than a number an image, neither a mask nor a vector for a shortlist."""
    converted = spec.dtype == "float32" and len(spec.shape) > 1 and not spec.name.endswith(GLOBAL_SUFFIX)
    return precision != "float32" and converted


def _one_scale(spec: TensorSpec) -> int:
    """The axis along which values share a scale: the regions of [I, R, d], the columns of [I, d]."""
    return spec.shape.index("R") if "R" in spec.shape else len(spec.shape) - 1


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: arrays have no equality of their own
class EncodedImages:
    """Encoded images.

    Args:
        tensors: image tensors by name, each [I, ...], with the same number of regions R for all images. They may be
            memory-mapped, or converted by `narrow`.
    """

    tensors: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, indices: Indices) -> Arrays:
        """The tensors of the chosen images; a slice copies nothing."""
        return {name: array[indices] for name, array in self.tensors.items()}

    def select(self, indices: Indices) -> EncodedImages:
        """The chosen images, as `EncodedImages`."""
        return EncodedImages(self.take(indices))

    def global_parts(self) -> GlobalParts:
        """The vectors for a shortlist; the contract has some."""
        return [global_vectors(self.tensors)], None

    def near(self, queries: NDArray[np.float32], count: int) -> NDArray[np.intp] | None:
        """Rows of the vectors to choose shortlists from, ascending; None for all."""
        return None

    @cached_property
    def halves(self) -> EncodedImages:
        """Images converted to float16, under the names by which a float16 graph reads them.

        The property always returns the same object, by which engines recognise images that they hold already.
        """
        return EncodedImages({name.removesuffix(".float16"): array for name, array in self.tensors.items()})

    @property
    def streamed(self) -> bool:
        """Whether `take` reads the tensors from a store, and ``tensors`` does not hold them."""
        return False

    @property
    def narrowed(self) -> bool:
        """Whether the tensors must be widened before an engine reads them."""
        return any(name.endswith((".float16", ".int8")) for name in self.tensors)

    @property
    def item_bytes(self) -> int:
        """Bytes of one image's largest tensor in float32, the approximate cost of the image's side of a pair."""
        return max(FLOAT32_BYTES * int(array[0].size) for array in self.tensors.values())


@dataclass(frozen=True)
class EncodedTexts:
    """Encoded texts.

    Args:
        tensors: text tensors by name. A tensor with an axis N in the contract is stored without padding, with the
            words of all texts one after another, [sum of lengths, ...]; the others are [T, ...].
        lengths: the number of words of each text, [T], int64, both markers counted.
        per_word: the names of the tensors with an axis N.
    """

    tensors: Arrays
    lengths: NDArray[np.int64]
    per_word: frozenset[str]

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: Indices) -> Arrays:
        """The tensors of the chosen texts, padded with zeros (masks with false) to the longest of them."""
        chosen = np.arange(len(self))[indices]
        lengths = self.lengths[chosen]
        starts = (np.cumsum(self.lengths) - self.lengths)[chosen]
        return {
            name: _padded(array, starts, lengths) if name in self.per_word else array[chosen]
            for name, array in self.tensors.items()
        }

    def select(self, indices: Indices) -> EncodedTexts:
        """The chosen texts, as `EncodedTexts`."""
        chosen = np.arange(len(self))[indices]
        starts = (np.cumsum(self.lengths) - self.lengths)[chosen]
        rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, self.lengths[chosen], strict=True)])
        tensors = {name: array[rows if name in self.per_word else chosen] for name, array in self.tensors.items()}
        return EncodedTexts(tensors, self.lengths[chosen], self.per_word)

    def global_parts(self) -> GlobalParts:
        """The vectors for a shortlist; the contract has some."""
        return [global_vectors(self.tensors)], None

    def near(self, queries: NDArray[np.float32], count: int) -> NDArray[np.intp] | None:
        """Rows of the vectors to choose shortlists from, ascending; None for all."""
        return None

    @property
    def item_bytes(self) -> int:
        """Bytes of the longest text's largest tensor in float32, the approximate cost of the text's side of a pair."""
        longest = int(self.lengths.max())
        sizes = [(FLOAT32_BYTES * int(array[0].size), name in self.per_word) for name, array in self.tensors.items()]
        return max(size * (longest if per_word else 1) for size, per_word in sizes)


def global_vectors(tensors: Arrays) -> NDArray[np.float32]:
    """The global vectors [I, d] or [T, d] among the tensors of encoded items; there are some."""
    return next(array for name, array in tensors.items() if name.endswith(GLOBAL_SUFFIX))


def joined(parts: Sequence[EncodedImages | EncodedTexts]) -> EncodedImages | EncodedTexts:
    """Concatenate encoded images, or encoded texts.

    Args:
        parts: one or more objects of one kind, with tensors of the same names.
    """
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
    """Whether a text tensor has one entry per word: [T, N, ...] rather than [T, ...]."""
    return len(spec.shape) > 1 and spec.shape[1] == "N"
