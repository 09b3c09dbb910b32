"""Profiles of a graph's inputs, inputs that fit them, and how close two ways of running a graph must be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.engines.profiles import Profile

SAME = {"rtol": 0, "atol": 1e-5}


def profile_between(spec: GraphSpec, smallest: Mapping[str, int], largest: Mapping[str, int]) -> Profile:
    """A profile between the smallest and the largest sizes of named axes; the expected sizes are the largest."""

    def shape(sizes: tuple[int | str, ...], numbers: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else numbers.get(size, 1) for size in sizes)

    return {i.name: (shape(i.shape, smallest), shape(i.shape, largest), shape(i.shape, largest)) for i in spec.inputs}


def feeds_of(spec: GraphSpec, sizes: Mapping[str, int]) -> Arrays:
    """Random inputs of the contract's dtypes; lengths and masks of real sentences."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, sizes["N"] + 1, sizes["T"])
    lengths[0] = sizes["N"]
    feeds: Arrays = {}
    for tensor in spec.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
        if tensor.name == "lengths":
            feeds[tensor.name] = lengths
        elif tensor.name == "text.mask":
            feeds[tensor.name] = np.arange(sizes["N"]) < lengths[:, None]
        elif tensor.dtype == "int64":
            feeds[tensor.name] = rng.integers(0, 8, shape)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds
