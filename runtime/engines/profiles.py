"""The shapes an engine is built for: the smallest, expected and largest of each input of a graph.

Axis letters are those of manifest.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from camp_sdk.runtime.contract import GraphSpec, TensorSpec
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, Manifest

Shape = tuple[int, ...]
Range = tuple[int, int, int]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # smallest, expected and largest shape of each input, by name

AXIS_LIMIT = (1 << 31) - 1
BYTES_LIMIT = 1 << 50
USUAL_REGIONS, MAX_REGIONS = 36, 100
USUAL_WORDS = 16
TEXT_GRAPH_BATCH = 64  # texts in one call of a graph that reads no images
MARKERS = 2  # a caption's `<start>` and `<end>`, which the manifest's max_words does not count


@dataclass(frozen=True)
class Limits:
    """The largest inputs an engine accepts, and the scratch memory its layers may use.

    Larger numbers of images and texts are split into several runs. An execution context reserves memory for the largest
    inputs. At the default limits, each array of a block's pair vectors takes 75 MB in half precision (d = 1024, 36
    regions), or 210 MB with 100 regions, and a context holds a few such arrays.

    Args:
        max_images: the most images, or pictures, in one run.
        max_texts: the most texts in one run; graphs that read no images accept at least 64.
        max_words: the most words of a text, both markers counted; None for the longest caption of the bundle's
            tokenizer.
        max_regions: the most regions of an image; None for the regions of the bundle's grid, or 100 for ready-made
            features.
        workspace_bytes: scratch memory of the layers; None for the library's own limit.

    Raises:
        InputError: a limit is not a positive whole number, or is too large.
    """

    max_images: int = 128
    max_texts: int = 8
    max_words: int | None = None
    max_regions: int | None = None
    workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            maximum = BYTES_LIMIT if name == "workspace_bytes" else AXIS_LIMIT
            if value is not None and (type(value) is not int or not 1 <= value <= maximum):
                raise InputError(f"{name} is {value!r}: expected a whole number from 1 to {maximum}")


def profile_of(spec: GraphSpec, manifest: Manifest, limits: Limits) -> Profile:
    """The shapes to build an engine for, from the bundle's contract.

    Every axis with a letter ranges from 1 to its limit, except the regions of a grid, whose number is fixed. Axes of
    fixed size keep it.

    Args:
        spec: the graph.
        manifest: the bundle's manifest.
        limits: the largest inputs the engine accepts.

    Returns:
        The smallest, expected and largest shape of each input, by name.

    Raises:
        InputError: the limits do not fit the bundle.
        BundleError: the manifest has an axis of unknown letter or impossible size.
    """
    axes = _axes(manifest, limits)
    if not any("I" in tensor.shape for tensor in spec.inputs):
        max_texts = max(TEXT_GRAPH_BATCH, limits.max_texts)
        axes["T"] = (1, max_texts, max_texts)
    profile = {}
    for tensor in spec.inputs:
        ranges = [_range(size, axes, tensor) for size in tensor.shape]
        smallest, expected, largest = (tuple(sizes[point] for sizes in ranges) for point in range(3))
        profile[tensor.name] = (smallest, expected, largest)
    return profile


def fits_contract(profile: Profile, spec: GraphSpec) -> bool:
    """Whether `profile_of` could have made a profile for a graph.

    The profile must have the graph's inputs and axes, and each axis must be fixed or begin at 1.

    Args:
        profile: the profile of an engine's record.
        spec: the graph.
    """
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
    seen = _regions_of_pictures(manifest)
    words, regions = limits.max_words or manifest.max_words + MARKERS, limits.max_regions or max(MAX_REGIONS, seen)
    tiled = manifest.pixels is not None and manifest.pixels.grid != (0, 0)
    fixed = math.prod(manifest.pixels.grid) if manifest.pixels and tiled else None
    if not 1 <= manifest.max_words <= AXIS_LIMIT - MARKERS or (fixed is not None and not 1 <= fixed <= AXIS_LIMIT):
        raise BundleError(
            f"manifest.json has max_words {manifest.max_words} and {fixed} regions, expected at least 1; {EXPORT_AGAIN}"
        )
    if fixed and limits.max_regions not in (None, fixed):
        raise InputError(f"max_regions is {limits.max_regions}: every picture of this bundle has {fixed} regions")
    return {
        # Galleries are scored in full blocks; queries arrive one by one or in small groups.
        "I": (1, limits.max_images, limits.max_images),
        "B": (1, limits.max_images, limits.max_images),
        "T": (1, max(1, limits.max_texts // 4), limits.max_texts),
        "N": (1, min(USUAL_WORDS, words), words),
        "R": (fixed, fixed, fixed) if fixed else (1, min(seen or USUAL_REGIONS, regions), regions),
    }


def _regions_of_pictures(manifest: Manifest) -> int:
    """The number of regions that the vision graph makes of every picture; 0 without one."""
    made = manifest.graphs["vision"].outputs[0].shape[1] if "vision" in manifest.graphs else 0
    return made if isinstance(made, int) and made <= AXIS_LIMIT else 0
