"""How the tensors of one item stand in a blob: one after another, as a gallery stores them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.index.schema import State, shapes_of
from camp_sdk.runtime.contract import GLOBAL_SUFFIX, TensorSpec
from camp_sdk.runtime.encoded import FLOAT32_BYTES, EncodedTexts, narrow_specs, words_axis
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.manifest import Manifest

MAX_ITEM_BYTES = 1 << 28


@dataclass(frozen=True)
class Part:
    """One tensor of an item.

    Args:
        name: Its name.
        dtype: Its type.
        shape: Its shape, without the axis of items, and without that of words if it has one.
        per_word: Whether it has one entry for each word.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_word: bool

    @property
    def nbytes(self) -> int:
        """Bytes of an entry."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors of every item of a generation.

    Args:
        parts: The tensors in the blob, in order.
        vector: The name of the global vector, which is stored apart; None if there is none.
        width: The size d of the global vector; 0 if there is none.
    """

    parts: tuple[Part, ...]
    vector: str | None
    width: int

    def nbytes(self, length: int) -> int:
        """Bytes of the blob of an item.

        Args:
            length: Its number of words; any number for an image.
        """
        return sum(part.nbytes * (length if part.per_word else 1) for part in self.parts)

    def item_bytes(self, longest: int) -> int:
        """Bytes of the largest tensor in float32, as `EncodedImages.item_bytes` counts them."""
        sizes = [math.prod(part.shape) * (longest if part.per_word else 1) for part in self.parts]
        return FLOAT32_BYTES * max([*sizes, self.width])

    def pack(self, tensors: Mapping[str, NDArray[Any]], index: int, words: slice) -> bytes:
        """The blob of one item.

        Args:
            tensors: The tensors of several items, as `EncodedImages` or `EncodedTexts` hold them.
            index: The item.
            words: Its words among those of all items.
        """
        found = (tensors[part.name][words if part.per_word else index] for part in self.parts)
        return b"".join(np.ascontiguousarray(array).tobytes() for array in found)

    def unpack(self, blobs: Sequence[bytes], lengths: NDArray[np.int64]) -> Arrays:
        """The tensors of several items; those per word are concatenated.

        Args:
            blobs: The blobs, each of the right size.
            lengths: The number of words of each item.
        """
        if not any(part.per_word for part in self.parts):
            return self._unpack_alike(blobs)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        rows = {p.name: np.empty((total if p.per_word else len(blobs), *p.shape), p.dtype) for p in self.parts}
        for index, blob in enumerate(blobs):
            start = 0
            for part in self.parts:
                length = int(lengths[index]) if part.per_word else 1
                target = (
                    rows[part.name][ends[index] - length : ends[index]] if part.per_word else rows[part.name][index]
                )
                count = math.prod(target.shape)
                target[...] = np.frombuffer(blob, part.dtype, count, start).reshape(target.shape)
                start += target.nbytes
        return rows

    def _unpack_alike(self, blobs: Sequence[bytes]) -> Arrays:
        """The tensors of items whose blobs have one size: all columns of bytes at once, in half of the time."""
        table = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), self.nbytes(1))
        rows, start = {}, 0
        for part in self.parts:
            columns = np.ascontiguousarray(table[:, start : start + part.nbytes])
            rows[part.name] = columns.view(part.dtype).reshape(len(blobs), *part.shape)
            start += part.nbytes
        return rows


def layout_of(state: State, manifest: Manifest) -> Layout | None:
    """The layout of the current generation; None if it is not known, before the first item.

    Raises:
        BundleError: What the index says does not fit the bundle.
    """
    try:
        shapes = shapes_of(state.shapes)
        if shapes is None and state.items:
            raise ValueError("it has items, but no shapes of their tensors")
        return None if shapes is None else make_layout(state.kind, manifest, state.precision, shapes)
    except ValueError as error:
        raise BundleError(f"the index does not fit its bundle ({error}): make the index again") from None


def make_layout(
    kind: str, manifest: Manifest, precision: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Layout:
    """The layout of items of one shape.

    Args:
        kind: "image" or "text".
        manifest: The manifest of the bundle.
        precision: How tensors are stored.
        shapes: The shape of each tensor of an item by name, without the axes of items and words.

    Raises:
        ValueError: The shapes do not fit the manifest.
    """
    specs = stored_specs(kind, manifest, precision)
    sized = {} if shapes is None else shapes
    if sized.keys() != {spec.name for spec in specs}:
        raise ValueError(f"it has the tensors {sorted(sized)}, expected {sorted(spec.name for spec in specs)}")
    parts = tuple(_part(spec, sized[spec.name]) for spec in specs)
    regions = {n for s, p in zip(specs, parts, strict=True) for a, n in zip(_axes(s), p.shape, strict=True) if a == "R"}
    layout = Layout(parts, *_vector(kind, manifest))
    if len(regions) > 1 or layout.nbytes(1) > MAX_ITEM_BYTES:
        raise ValueError(f"an item takes {layout.nbytes(1)} bytes, with {sorted(regions)} regions")
    return layout


def empty_layout(kind: str, manifest: Manifest) -> Layout:
    """The layout of an index without items, whose tensors have no shapes yet."""
    return Layout((), *_vector(kind, manifest))


def stored_specs(kind: str, manifest: Manifest, precision: str) -> list[TensorSpec]:
    """The tensors that are stored in a blob: all but the global vector."""
    specs = narrow_specs(manifest.image_tensors, precision) if kind == "image" else list(manifest.text_tensors)
    return [spec for spec in specs if not spec.name.endswith(GLOBAL_SUFFIX)]


def shapes_in(kind: str, manifest: Manifest, precision: str, tensors: Arrays) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one item, from the tensors of several."""
    return {spec.name: tensors[spec.name].shape[1:] for spec in stored_specs(kind, manifest, precision)}


def check_shapes(layout: Layout, tensors: Arrays) -> None:
    """Check that new items have the shapes of those in the index.

    Raises:
        InputError: They do not: they have another number of regions.
    """
    for part in layout.parts:
        found = tensors[part.name].shape[1:]
        if found != part.shape:
            raise InputError(
                f"new items have {part.name} {found}, those of the index have {part.shape}: put images with different "
                "numbers of regions into separate indexes"
            )


def as_json(shapes: Mapping[str, Iterable[int]]) -> str:
    """Shapes as a generation's row holds them."""
    return json.dumps({name: list(shape) for name, shape in shapes.items()})


def encoded_texts(tensors: Arrays, lengths: NDArray[np.int64], layout: Layout) -> EncodedTexts:
    """Unpacked texts."""
    return EncodedTexts(tensors, lengths, frozenset(part.name for part in layout.parts if part.per_word))


def _part(spec: TensorSpec, shape: tuple[int, ...]) -> Part:
    axes = _axes(spec)
    if len(axes) != len(shape) or any(isinstance(a, int) and a != n for a, n in zip(axes, shape, strict=True)):
        raise ValueError(f"its {spec.name} is {list(shape)}, expected {list(axes)}")
    return Part(spec.name, spec.dtype, shape, _per_word(spec))


def _axes(spec: TensorSpec) -> tuple[int | str, ...]:
    return spec.shape[2:] if _per_word(spec) else spec.shape[1:]


def _per_word(spec: TensorSpec) -> bool:
    return spec.shape[0] == "T" and words_axis(spec)


def _vector(kind: str, manifest: Manifest) -> tuple[str | None, int]:
    tensors = manifest.image_tensors if kind == "image" else manifest.text_tensors
    found = [spec for spec in tensors if spec.name.endswith(GLOBAL_SUFFIX)]
    return (found[0].name, int(found[0].shape[1])) if found else (None, 0)
