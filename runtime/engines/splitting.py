"""Run any number of items on an engine that was built for a range of sizes: too many are split, too few are padded.

Axes are identified by their letters in the graph's contract. Items (axis 0 of an input: I images, T texts, B pictures)
are independent of each other, so they can be split. Words N and regions R interact in a softmax, so they cannot be
split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface
from camp_sdk.runtime.engines.profiles import Profile
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.forks import abandon, watch_forks

BUILD_OPTIONS = {"N": ("words", "--max-words"), "R": ("regions", "--max-regions")}
Run = Callable[[Mapping[str, Any]], Arrays]
Parts = dict[str, slice]  # one part of each axis that is split, by the axis's letter


@dataclass(frozen=True)
class Range:
    """The sizes of one axis that an engine accepts, both ends included."""

    smallest: int
    largest: int


class SplittingEngine(Engine):
    """Wraps an engine that accepts a range of sizes, so that it accepts any number of items; see `run_in_parts`.

    Args:
        engine: the engine to wrap; it is closed with this one.
        spec: the graph that it runs.
        profile: the shapes that it accepts.
    """

    def __init__(self, engine: Engine, spec: GraphSpec, profile: Profile) -> None:
        self._engine, self._spec, self._ranges = engine, spec, ranges_of(spec, profile)
        engine.contract = spec  # each part is checked before it is copied to its place in the whole
        self.residents = WeakKeyDictionary()
        watch_forks(self)
        self.callers = engine.callers
        sides = [self._ranges[letter].largest for letter in "IT" if letter in self._ranges]
        self.blocks = (sides[0], sides[1]) if len(sides) == 2 else None

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        return run_in_parts(self._engine.run, feeds, self._spec, self._ranges)

    def hold(self, tensors: Arrays) -> Mapping[str, Any]:
        return self._engine.hold(tensors)

    def room_bytes(self) -> int | None:
        return self._engine.room_bytes()

    def close(self) -> None:
        self.residents.clear()
        self._engine.close()

    def forked(self) -> None:
        abandon(self.residents.values())
        self.residents = WeakKeyDictionary()

    def interface(self) -> tuple[Interface, Interface]:
        return self._engine.interface()


def ranges_of(spec: GraphSpec, profile: Profile) -> dict[str, Range]:
    """The range of every axis with a letter: the sizes that all inputs with this axis accept.

    Args:
        spec: the graph.
        profile: the smallest, expected and largest shape of each input.
    """
    ranges: dict[str, Range] = {}
    for tensor in spec.inputs:
        smallest, _, largest = profile[tensor.name]
        for letter, low, high in zip(tensor.shape, smallest, largest, strict=True):
            if isinstance(letter, str):
                known = ranges.get(letter, Range(low, high))
                ranges[letter] = Range(max(known.smallest, low), min(known.largest, high))
    return ranges


def run_in_parts(run: Run, feeds: Mapping[str, Any], spec: GraphSpec, ranges: Mapping[str, Range]) -> Arrays:
    """The result that ``run(feeds)`` would return if it accepted any number of items.

    Args:
        run: runs the graph once on sizes within the ranges.
        feeds: every input by name: arrays, or objects that slice like arrays along axis 0 and that `np.asarray`
            converts.
        spec: the graph.
        ranges: the sizes that ``run`` accepts, by axis letter.

    Returns:
        Every output by name.

    Raises:
        InputError: there are more or fewer words or regions than the ranges allow.
    """
    sizes = _sizes(spec, feeds)
    items = {str(tensor.shape[0]) for tensor in spec.inputs}
    for letter in sizes.keys() - items:
        _check_range(letter, sizes[letter], ranges[letter])
    if all(ranges[letter].smallest <= sizes[letter] <= ranges[letter].largest for letter in items):
        return run(feeds)
    whole: Arrays = {}
    for parts in _parts({letter: sizes[letter] for letter in items}, ranges):
        out = run({tensor.name: _part(feeds[tensor.name], tensor.shape[0], parts, ranges) for tensor in spec.inputs})
        _place(out, whole, spec, parts, sizes)
    return whole


def _sizes(spec: GraphSpec, feeds: Mapping[str, Any]) -> dict[str, int]:
    return {
        letter: size
        for tensor in spec.inputs
        for letter, size in zip(tensor.shape, feeds[tensor.name].shape, strict=False)
        if isinstance(letter, str)
    }


def _check_range(letter: str, size: int, allowed: Range) -> None:
    if allowed.smallest <= size <= allowed.largest:
        return
    what, option = BUILD_OPTIONS.get(letter, (f"entries of axis {letter}", ""))
    raise InputError(
        f"{size} {what}: the engine was built for {allowed.smallest} to {allowed.largest}; "
        f"rebuild it with camp build {option} {size}"
    )


def _parts(sizes: Mapping[str, int], ranges: Mapping[str, Range]) -> Iterator[Parts]:
    """Every combination of parts of the axes that are split."""
    letters = sorted(sizes)
    split = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in ((sizes[letter], ranges[letter].largest) for letter in letters)
    ]
    for chosen in itertools.product(*split):
        yield dict(zip(letters, chosen, strict=True))


def _part(array: Any, letter: int | str, parts: Parts, ranges: Mapping[str, Range]) -> Any:
    """A part of an input's rows; the last row is repeated if there are too few for the engine."""
    part = array[parts[str(letter)]]
    missing = ranges[str(letter)].smallest - len(part)
    if missing <= 0:
        return part
    rows: NDArray[Any] = np.asarray(part)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])


def _place(out: Arrays, whole: Arrays, spec: GraphSpec, parts: Parts, sizes: Mapping[str, int]) -> None:
    """Copy the outputs of a part to their place in the whole, without the rows that padding added."""
    for tensor in spec.outputs:
        array = out[tensor.name]
        if tensor.name not in whole:
            shape = [sizes.get(str(axis), found) for axis, found in zip(tensor.shape, array.shape, strict=True)]
            whole[tensor.name] = np.empty(shape, array.dtype)
        where = tuple(parts.get(str(axis), slice(None)) for axis in tensor.shape)
        wanted = tuple(slice(0, part.stop - part.start) if part.stop is not None else part for part in where)
        whole[tensor.name][where] = array[wanted]
