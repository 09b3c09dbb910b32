"""Searches of several shards: equal to those of one index that holds everything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import BundleError, Index, InputError, Ranking, Retriever
from camp_sdk.cluster.merging import Merged, Search, rank_similar, rank_texts
from camp_sdk.cluster.parts import Parts, make_parts
from camp_sdk.cluster.searching import LocalShards, OpenParts
from camp_sdk.cluster.shard import Shard
from camp_sdk.runtime.encoded import global_vectors
from tests.helpers.command import Camp
from tests.helpers.tiny import FEATURE_WIDTH

COUNT, PARTS = 60, 3
QUERIES = ["a small red circle", "two dogs run on a beach", "star"]
# Pairs are scored in other blocks than those of one index, which moves the last bits of a float32 sum.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Made:
    """The same items in one index and in parts."""

    whole: Path
    parts: Parts


def metadata(number: int) -> dict[str, Any]:
    return {"even": number % 2 == 0, "number": number}


@pytest.fixture(scope="module")
def made(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("shards")
    features = np.random.default_rng(3).standard_normal((COUNT, 5, FEATURE_WIDTH), dtype=np.float32)
    parts = make_parts(folder / "parts", PARTS, feature_retriever.bundle.fingerprint)
    keys = [f"item {number}" for number in range(COUNT)]
    chosen = [parts.part_of(key) for key in keys]
    for path, part in [(folder / "whole.index", None), *((path, n) for n, path in enumerate(parts.paths))]:
        own = [number for number in range(COUNT) if part in (None, chosen[number])]
        assert own  # no part is empty
        with feature_retriever.open_index(path, create=True) as index:
            index.add(features[own], [keys[number] for number in own], map(metadata, own))
    return Made(folder / "whole.index", parts)


@pytest.fixture
def whole(feature_retriever: Retriever, made: Made) -> Iterator[Index]:
    with feature_retriever.open_index(made.whole) as index:
        yield index


@dataclass
class Recording:
    """Shards of this process that count the pairs they are asked for, and of which some do not answer.

    Args:
        shards: The shards.
        lost: The method that fails for a shard, by its number.
    """

    shards: Sequence[Shard]
    lost: Mapping[int, str] = field(default_factory=dict)
    scored: int = 0

    @property
    def numbers(self) -> range:
        return range(len(self.shards))

    def call(self, method: str, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        answering = {n: given for n, given in arguments.items() if self.lost.get(n) != method}
        if method == "score":
            self.scored += sum(len(row) for _, chosen, _ in answering.values() for part in chosen for row in part)
        return LocalShards(self.shards).call(method, answering)


@pytest.fixture
def shards(feature_retriever: Retriever, made: Made) -> Iterator[list[Shard]]:
    """Two shards, with two parts and one."""
    found = [Shard(feature_retriever, made.parts.paths[:2]), Shard(feature_retriever, made.parts.paths[2:])]
    yield found
    for shard in found:
        shard.close()


def assert_same(merged: Merged, expected: Sequence[Ranking]) -> None:
    for found, ranking in zip(merged.rankings, expected, strict=True):
        assert [one.item.key for one in found] == [match.key for match in ranking]
        assert [one.item.metadata for one in found] == [match.metadata for match in ranking]
        logits = [match.logit for match in ranking]
        np.testing.assert_allclose([one.logit for one in found], logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("where", [None, {"even": True}, {"number": {"lt": 7}}, {"number": -1}], ids=str)
@pytest.mark.parametrize("shortlist", [None, 1, 12, 59, 60, 200])
def test_shards_rank_as_one_index_does(
    feature_retriever: Retriever,
    whole: Index,
    shards: list[Shard],
    shortlist: int | None,
    where: dict[str, Any] | None,
) -> None:
    top_k = min(10, shortlist or 10)
    expected = feature_retriever.rank(QUERIES, whole, top_k, shortlist or 0, where=where)
    recording = Recording(shards)
    texts = feature_retriever.encode_texts(QUERIES).encoded
    merged = rank_texts(recording, texts, Search(top_k, shortlist, where))
    assert_same(merged, expected)
    assert not merged.missing
    met = len(list(whole.where(where or {})))
    assert merged.pairs == len(QUERIES) * min(shortlist or met, met)
    assert merged.all_scored == (expected[0].shortlist is None)
    # The shortlist is of all shards together: no shard scores one of its own.
    assert recording.scored == (0 if shortlist is None else len(QUERIES) * min(shortlist, met))


def test_a_picture_is_compared_with_all_shards(feature_retriever: Retriever, whole: Index, shards: list[Shard]) -> None:
    picture = np.random.default_rng(9).standard_normal((1, 5, FEATURE_WIDTH), dtype=np.float32)
    expected = feature_retriever.rank(picture[0], whole, 7, by="image", where={"even": True})
    vector = global_vectors(feature_retriever.encode_images(picture).encoded.tensors)
    assert_same(rank_similar(LocalShards(shards), vector, Search(7, where={"even": True})), [expected])


@pytest.mark.parametrize(("method", "shortlist"), [("rank", None), ("nearest", 20), ("score", 20)])
def test_a_shard_without_an_answer_is_named_and_the_others_are_ranked(
    feature_retriever: Retriever, whole: Index, shards: list[Shard], made: Made, method: str, shortlist: int | None
) -> None:
    texts = feature_retriever.encode_texts(QUERIES).encoded
    merged = rank_texts(Recording(shards, {1: method}), texts, Search(COUNT, shortlist))
    assert merged.missing == {1}
    here = {item.key for item in whole if made.parts.part_of(item.key) < 2}
    assert here
    assert all(one.item.key in here for ranking in merged.rankings for one in ranking)
    if method == "rank":
        expected = feature_retriever.rank(QUERIES, whole, COUNT, 0)
        kept = [[match.key for match in ranking if match.key in here] for ranking in expected]
        assert [[one.item.key for one in ranking] for ranking in merged.rankings] == kept


def test_items_that_are_removed_between_the_two_steps_are_left_out(
    feature_retriever: Retriever, shards: list[Shard], made: Made, tmp_path: Path
) -> None:
    parts = make_parts(tmp_path / "parts", 1, feature_retriever.bundle.fingerprint)
    with feature_retriever.open_index(parts.paths[0], create=True) as index:
        index.add(np.random.default_rng(1).standard_normal((4, 5, FEATURE_WIDTH), dtype=np.float32), list("abcd"))
        shard = Shard(feature_retriever, parts.paths)
        texts = feature_retriever.encode_texts(QUERIES[:1]).encoded
        (near,) = shard.nearest(global_vectors(texts.tensors), 3, None)
        gone = {item.key for item in index} - {"a"}
        index.remove(gone - {"d"})
        (found,) = shard.score(texts, [[near.numbers[0]]], 4).rankings
        assert {one.item.key for one in found} <= {"a", "d"}
        shard.close()


def test_equal_logits_are_in_the_order_of_the_keys(feature_retriever: Retriever, tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "parts", 2, feature_retriever.bundle.fingerprint)
    features = np.random.default_rng(1).standard_normal((1, 5, FEATURE_WIDTH), dtype=np.float32).repeat(3, axis=0)
    for path, keys in zip(parts.paths, (["d", "a", "f"], ["e", "c", "b"]), strict=True):
        with feature_retriever.open_index(path, create=True) as index:
            index.add(features, keys)
    with OpenParts(feature_retriever, parts.folder) as opened:
        found = opened.rank(QUERIES[0], Search(6, 0))
        assert [match.key for match in found] == list("abcdef")


def test_a_folder_of_parts_is_searched_as_an_index_is(
    camp: Camp, feature_bundle: Path, made: Made, feature_retriever: Retriever, whole: Index
) -> None:
    options = ("--bundle", feature_bundle, "--query", QUERIES[0], "--backend", "onnxruntime", "--json")
    page = ("--top-k", 4, "--offset", 2, "--shortlist", 20, "--where", '{"even": true}')
    both = [json.loads(camp("index", "search", path, *options, *page).out) for path in (made.parts.folder, made.whole)]
    assert both[0]["shortlist"] == both[1]["shortlist"] == 20
    for name in ("key", "rank", "metadata", "document"):
        found, expected = ([match[name] for match in one["matches"]] for one in both)
        assert found == expected
    scores = [[match["score"] for match in one["matches"]] for one in both]
    np.testing.assert_allclose(*scores, rtol=0, atol=TOLERANCE)


def test_what_parts_cannot_do_is_refused(
    camp: Camp, feature_bundle: Path, made: Made, feature_retriever: Retriever, tmp_path: Path
) -> None:
    options = ("--bundle", feature_bundle, "--query", QUERIES[0], "--backend", "onnxruntime")
    assert "parts are searched exactly" in camp("index", "search", made.parts.folder, *options, "--ann").err
    other = make_parts(tmp_path / "other", 2, "a" * 64)
    with pytest.raises(BundleError, match="made by another bundle"):
        OpenParts(feature_retriever, other.folder)
    with OpenParts(feature_retriever, made.parts.folder) as opened:
        assert len(opened) == COUNT
        with pytest.raises(InputError, match="top_k"):
            opened.rank(QUERIES[0], Search(0))
        with pytest.raises(InputError, match="near"):
            opened.rank(QUERIES[0], Search(3, None, {"a": {"near": 1}}))
