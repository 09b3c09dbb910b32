"""Any sizes through an engine of a small range: padded and split gives what the graph gives as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import InputError
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.profiles import Profile
from camp_sdk.runtime.engines.splitting import Range, SplittingEngine, ranges_of, run_in_parts
from camp_sdk.runtime.files import HeldFile
from tests.helpers.profiles import SAME, feeds_of, profile_between


class Strict(OnnxRuntimeEngine):
    """An engine that refuses what its profile does not hold, and counts its runs."""

    def __init__(self, graph: HeldFile, profile: Profile) -> None:
        super().__init__(graph)
        self.profile, self.runs = profile, 0

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        for name, array in feeds.items():
            smallest, _, largest = self.profile[name]
            assert all(low <= size <= high for low, size, high in zip(smallest, array.shape, largest, strict=True))
        self.runs += 1
        return super()._run(feeds)


GRAPHS = ["scorer", "explainer", "image", "text", "vision"]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("smallest", "runs"), [(1, 2), (3, 2)])
def test_padded_and_split_is_the_whole(picture_bundle: Path, graph: str, smallest: int, runs: int) -> None:
    bundle = Bundle(picture_bundle)
    spec = bundle.manifest.graphs[graph]
    sizes = {"I": 5, "T": 7, "B": 6, "N": 4, "R": 5}
    profile = profile_between(
        spec, {"I": smallest, "T": smallest, "B": smallest}, {"I": 4, "T": 4, "B": 4, "N": 9, "R": 9}
    )
    feeds = feeds_of(spec, sizes)
    strict = Strict(bundle.file(spec.file), profile)
    with SplittingEngine(strict, spec, profile) as engine, OnnxRuntimeEngine(bundle.file(spec.file)) as plain:
        found, expected = engine.run(feeds), plain.run(feeds)
    items = {tensor.shape[0] for tensor in spec.inputs}
    assert strict.runs == runs ** len(items)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, **SAME)


def test_what_fits_is_run_as_it_is(feature_bundle: Path) -> None:
    spec = Bundle(feature_bundle).manifest.graphs["scorer"]
    feeds = feeds_of(spec, {"I": 4, "T": 4, "N": 3, "R": 5})
    seen: list[Any] = []

    def run(given: Mapping[str, Any]) -> Arrays:
        seen.append(given)
        return {}

    run_in_parts(run, feeds, spec, dict.fromkeys("ITNR", Range(1, 9)))
    assert seen == [feeds]
    assert seen[0] is feeds


@pytest.mark.parametrize(("words", "regions", "option"), [(8, 5, "--max-words 8"), (3, 12, "--max-regions 12")])
def test_words_and_regions_cannot_be_split(feature_bundle: Path, words: int, regions: int, option: str) -> None:
    spec = Bundle(feature_bundle).manifest.graphs["scorer"]
    feeds = feeds_of(spec, {"I": 2, "T": 2, "N": words, "R": regions})
    with pytest.raises(InputError, match=f"the engine was built for 1 to 7; rebuild it with camp build {option}"):
        run_in_parts(lambda given: {}, feeds, spec, dict.fromkeys("ITNR", Range(1, 7)))


def test_ranges_are_what_all_inputs_allow(feature_bundle: Path) -> None:
    spec = Bundle(feature_bundle).manifest.graphs["text"]
    profile = {"tokens": ((1, 1), (4, 8), (9, 32)), "lengths": ((2,), (4,), (8,))}
    assert ranges_of(spec, profile) == {"T": Range(2, 8), "N": Range(1, 32)}
