"""The shapes an engine is built for: smallest, expected and largest, of each input of a graph. Axis letters as in bundle.py."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, GraphSpec, Manifest, TensorSpec

Shape = tuple[int, ...]
Range = tuple[int, int, int]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # smallest, expected and largest shape of each input, by name

AXIS_LIMIT = (1 << 31) - 1
BYTES_LIMIT = 1 << 50
USUAL_REGIONS, MOST_REGIONS = 36, 100
USUAL_WORDS = 16
TEXTS_ALONE = 64
MARKERS = 2  # a caption's `<start>` and `<end>`, which max_words of a manifest does not count


@dataclass(frozen=True)
class Limits:
    """The largest inputs an engine takes, and the scratch memory its layers may use.

    None is what fits the bundle: its tokenizer's longest caption (``max_words`` counts both markers), the regions of its
    grid (or 100, for ready features), and the library's own bound of the memory. ``max_images`` bounds pictures, too. A
    context has room for the largest inputs: of the default ones, 75 MB for each array of a pair's vectors in half precision
    (d = 1024, 36 regions), of which it holds a few; of 100 regions, 210 MB. More items than that are split. Texts alone,
    which have no pairs, come 64 at a time.
    """

    max_images: int = 128
    max_texts: int = 8
    max_words: int | None = None
    max_regions: int | None = None
    workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = BYTES_LIMIT if name == "workspace_bytes" else AXIS_LIMIT
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise InputError(f"{name} is {value!r}: expected a whole number from 1 to {most}")


def profile_of(spec: GraphSpec, manifest: Manifest, limits: Limits) -> Profile:
    """The shapes an engine of a graph is to take, from the bundle's contract.

    Every axis with a letter goes from 1 to its limit, but the regions of a grid, of which there is one number; sizes stay.
    Raises InputError for limits that do not fit the bundle, BundleError for an axis of an unknown letter or size.
    """
    axes = _axes(manifest, limits)
    if not any("I" in tensor.shape for tensor in spec.inputs):
        most = max(TEXTS_ALONE, limits.max_texts)
        axes["T"] = (1, most, most)
    profile = {}
    for tensor in spec.inputs:
        ranges = [_range(size, axes, tensor) for size in tensor.shape]
        smallest, expected, largest = (tuple(sizes[point] for sizes in ranges) for point in range(3))
        profile[tensor.name] = (smallest, expected, largest)
    return profile


def fits_contract(profile: Profile, spec: GraphSpec) -> bool:
    """Whether a profile is one that `profile_of` could have made of a graph: its inputs and axes, sizes that are fixed or
    begin at one."""
    if profile.keys() != {tensor.name for tensor in spec.inputs}:
        return False
    return all(_fits_axes(tensor.shape, profile[tensor.name]) for tensor in spec.inputs)


def _fits_axes(axes: tuple[int | str, ...], shapes: tuple[Shape, Shape, Shape]) -> bool:
    if any(len(shape) != len(axes) for shape in shapes):
        return False
    sizes = zip(axes, *shapes, strict=True)
    return all({low, high} == {axis} if isinstance(axis, int) else low in (1, high) for axis, low, _, high in sizes)


def _range(size: int | str, axes: dict[str, Range], tensor: TensorSpec) -> Range:
    if type(size) is int and 1 <= size <= AXIS_LIMIT:
        return size, size, size
    if isinstance(size, str) and size in axes:
        return axes[size]
    raise BundleError(
        f"{tensor.name} has an axis {size!r}, expected a size or one of {', '.join(axes)}; {EXPORT_AGAIN}"
    )


def _axes(manifest: Manifest, limits: Limits) -> dict[str, Range]:
    words, regions = limits.max_words or manifest.max_words + MARKERS, limits.max_regions or MOST_REGIONS
    fixed = math.prod(manifest.pixels.grid) if manifest.pixels else None
    if not 1 <= manifest.max_words <= AXIS_LIMIT - MARKERS or (fixed is not None and not 1 <= fixed <= AXIS_LIMIT):
        raise BundleError(
            f"manifest.json has max_words {manifest.max_words} and {fixed} regions, expected at least 1; {EXPORT_AGAIN}"
        )
    if fixed and limits.max_regions not in (None, fixed):
        raise InputError(f"max_regions is {limits.max_regions}: a picture of this bundle has {fixed} regions, always")
    return {
        # Galleries are scored in full blocks, queries come singly or in groups.
        "I": (1, limits.max_images, limits.max_images),
        "B": (1, limits.max_images, limits.max_images),
        "T": (1, max(1, limits.max_texts // 4), limits.max_texts),
        "N": (1, min(USUAL_WORDS, words), words),
        "R": (fixed, fixed, fixed) if fixed else (1, min(USUAL_REGIONS, regions), regions),
    }
