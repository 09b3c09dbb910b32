"""The approximate search of an index: the shortlists of the exact one, from files that may come from anywhere."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from camp_sdk import BundleError, Index, InputError, Ranking, Retriever
from camp_sdk.index import approximate, inverted_file
from camp_sdk.runtime.errors import MissingExtraError
from camp_sdk.server.settings import Settings
from tests.helpers.command import Camp
from tests.helpers.serving import served
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

pytest.importorskip("faiss", reason="faiss-cpu, of the extra ann, is not installed")
COUNT, SHORTLIST = 1200, 30


def features(count: int, seed: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 5, FEATURE_WIDTH), dtype=np.float32)


@pytest.fixture(autouse=True)
def all_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few items are searched approximately too, and in all lists: what is left out is then due to the codes alone."""
    monkeypatch.setattr(approximate, "FEW_ITEMS", 0)
    monkeypatch.setattr(approximate, "PROBES", 1 << 20)


@pytest.fixture(scope="module")
def made(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ann") / "photos.index"
    done: list[int] = []
    with feature_retriever.open_index(path, create=True) as index:
        index.add(features(COUNT), map(str, range(COUNT)), ({"even": n % 2 == 0} for n in range(COUNT)))
        index.build_ann(done.append)
    assert sum(done) == COUNT
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of the index and its files."""
    for file in made.parent.glob("photos.index*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / made.name


@pytest.fixture
def both(feature_retriever: Retriever, path: Path) -> Iterator[tuple[Index, Index]]:
    """The index, opened for exact and for approximate search."""
    with feature_retriever.open_index(path) as exact, feature_retriever.open_index(path, ann=True) as index:
        yield exact, index


def found(ranking: Ranking) -> list[tuple[str | None, float]]:
    return [(match.key, match.logit) for match in ranking]


def assert_same(retriever: Retriever, both: tuple[Index, Index], searched: list[int]) -> None:
    """Both rank alike, and the approximate search was asked."""
    exact, index = both
    before = len(searched)
    for where in (None, {"even": True}):
        for query in CAPTIONS[:3]:
            expected = retriever.rank(query, exact, 9, SHORTLIST, where=where)
            assert found(retriever.rank(query, index, 9, SHORTLIST, where=where)) == found(expected)
    several = retriever.rank(CAPTIONS[:3], index, 9, SHORTLIST)
    assert list(map(found, several)) == list(map(found, retriever.rank(CAPTIONS[:3], exact, 9, SHORTLIST)))
    assert len(searched) == before + 9


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each approximate search found."""
    counts: list[int] = []
    search = approximate.Approximate._search

    def counting(self: approximate.Approximate, *arguments: object) -> object:
        numbers = search(self, *arguments)  # type: ignore[arg-type]  # passed on as they came
        counts.append(len(numbers))
        return numbers

    monkeypatch.setattr(approximate.Approximate, "_search", counting)
    return counts


def test_rankings_are_those_of_the_exact_search(
    feature_retriever: Retriever, both: tuple[Index, Index], searched: list[int]
) -> None:
    assert_same(feature_retriever, both, searched)
    assert set(searched) == {2 * SHORTLIST}


def test_what_was_added_and_removed_since_counts(
    feature_retriever: Retriever, both: tuple[Index, Index], searched: list[int]
) -> None:
    exact, index = both
    best = feature_retriever.rank(CAPTIONS[0], exact, 5, SHORTLIST)
    exact.remove([match.key for match in best if match.key])
    exact.add(features(40, 8), (f"new {n}" for n in range(40)), ({"even": True} for _ in range(40)))
    assert_same(feature_retriever, both, searched)
    exact.build_ann()
    assert_same(feature_retriever, both, searched)
    exact.remove(map(str, range(COUNT)))  # all that it had, but for the new ones
    assert len(exact) == 40
    expected = feature_retriever.rank(CAPTIONS[0], exact, 9, SHORTLIST)
    assert found(feature_retriever.rank(CAPTIONS[0], index, 9, SHORTLIST)) == found(expected)


def test_lists_that_hold_too_few_are_not_enough(
    feature_retriever: Retriever, both: tuple[Index, Index], searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "PROBES", 1)
    monkeypatch.setattr(approximate, "WIDER", 1)
    exact, index = both
    expected = feature_retriever.rank(CAPTIONS[0], exact, 5, COUNT - 1)
    assert found(feature_retriever.rank(CAPTIONS[0], index, 5, COUNT - 1)) == found(expected)
    assert searched
    assert searched[0] < COUNT - 1


def test_similar_pictures_are_those_of_the_exact_search(
    feature_retriever: Retriever, both: tuple[Index, Index], searched: list[int]
) -> None:
    exact, index = both
    query = features(1, 9)[0]
    expected = feature_retriever.rank(query, exact, 7, by="image")
    assert found(feature_retriever.rank(query, index, 7, by="image")) == found(expected)
    assert searched


def test_a_forked_process_searches(feature_retriever: Retriever, both: tuple[Index, Index]) -> None:
    exact, index = both
    expected = found(feature_retriever.rank(CAPTIONS[0], exact, 9, SHORTLIST))
    feature_retriever.rank(CAPTIONS[1], index, 9, SHORTLIST)
    child = os.fork()
    if not child:
        same = False
        with suppress(BaseException):  # whatever it is: the child must not go on with the tests
            same = found(feature_retriever.rank(CAPTIONS[0], index, 9, SHORTLIST)) == expected
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_another_bundle_makes_it_useless(
    feature_retriever: Retriever, path: Path, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = path.with_name("photos.index-ann")
    with feature_retriever.open_index(path, ann=True) as index:
        monkeypatch.setattr(inverted_file, "_origin", lambda state, width: np.zeros(3, np.uint8))
        file.touch()
        feature_retriever.rank(CAPTIONS[0], index, 9, SHORTLIST)
        assert not searched
    with pytest.raises(BundleError, match="ann is missing, damaged, or of another bundle"):
        feature_retriever.open_index(path, ann=True)


def test_without_a_file_it_says_how_to_make_one(feature_retriever: Retriever, path: Path) -> None:
    path.with_name("photos.index-ann").unlink()
    with pytest.raises(BundleError, match="make it with `camp index ann`"):
        feature_retriever.open_index(path, ann=True)


def test_few_items_need_none(feature_retriever: Retriever, tmp_path: Path) -> None:
    with feature_retriever.open_index(tmp_path / "few.index", create=True) as index:
        index.add(features(20), map(str, range(20)))
        with pytest.raises(InputError, match="the index has 20 items"):
            index.build_ann()


def test_without_faiss_the_extra_is_named(
    feature_retriever: Retriever, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[ann\]'"):
        feature_retriever.open_index(path, ann=True)
    with feature_retriever.open_index(path) as index, pytest.raises(MissingExtraError):
        index.build_ann()


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_noticed(feature_retriever: Retriever, path: Path, seed: int) -> None:
    file, rng = path.with_name("photos.index-ann"), np.random.default_rng(seed)
    content = bytearray(file.read_bytes())
    if seed % 3 == 0:
        del content[int(rng.integers(len(content))) :]
    else:
        # Of every third file, the names, headers and sizes at its end, which no check sum covers.
        first = len(content) - 1200 if seed % 3 == 1 else 0
        for place in rng.integers(first, len(content), 4).tolist():
            content[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)
    with feature_retriever.open_index(path) as exact:
        expected = found(feature_retriever.rank(CAPTIONS[0], exact, 5, SHORTLIST))
    try:
        index = feature_retriever.open_index(path, ann=True)
    except BundleError:
        return
    with index:
        assert found(feature_retriever.rank(CAPTIONS[0], index, 5, SHORTLIST)) == expected


def rewrite(file: Path, name: str, change: object, compression: int = zipfile.ZIP_STORED) -> None:
    """Change an array of the file as somebody would who knows how it is made: its check sums are right."""
    arrays = dict(np.load(file))
    arrays[name] = change(arrays[name]) if callable(change) else change
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, array)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("positions", lambda a: a[:-1]),
        ("positions", lambda a: a[::-1]),
        ("positions", lambda a: a.astype(np.int32)),
        ("centres", lambda a: a[:, :-1]),
        ("centres", lambda a: a * np.nan),
        ("centres", lambda a: a[0]),
        ("sizes", lambda a: a * 2),
        ("sizes", lambda a: a - 1000),
        ("sizes", lambda a: np.where(np.arange(len(a)) == 0, -(1 << 62), 1 << 60)),
        ("ranges", lambda a: a[:-1]),
        ("numbers0", lambda a: a + 1),
        ("numbers0", lambda a: a - 1),
        ("codes0", lambda a: a[:-1]),
        ("codes0", lambda a: a[:, :-1]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    feature_retriever: Retriever, path: Path, name: str, change: object
) -> None:
    rewrite(path.with_name("photos.index-ann"), name, change)
    with pytest.raises(BundleError, match="is missing, damaged"):
        feature_retriever.open_index(path, ann=True)


def test_what_would_have_to_be_unpacked_is_refused(feature_retriever: Retriever, path: Path) -> None:
    file = path.with_name("photos.index-ann")
    rewrite(file, "sizes", lambda a: a)
    feature_retriever.open_index(path, ann=True).close()
    rewrite(file, "sizes", lambda a: a, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="is missing, damaged"):
        feature_retriever.open_index(path, ann=True)


def test_commands(camp: Camp, feature_bundle: Path, path: Path) -> None:
    path.with_name("photos.index-ann").unlink()
    search = ("index", "search", path, "--bundle", feature_bundle, "--query", CAPTIONS[0], "--shortlist", 30, "--json")
    assert camp(*search, "--ann").code == 1
    done = camp("index", "ann", path, "--json")
    assert json.loads(done.out) == {"items": COUNT}, done.err
    exact, near = camp(*search), camp(*search, "--ann")
    assert near.code == 0, near.err
    assert json.loads(near.out) == json.loads(exact.out)


def test_a_server_searches_with_it(
    feature_retriever: Retriever, feature_bundle: Path, path: Path, searched: list[int]
) -> None:
    body = {"query": CAPTIONS[0], "top_k": 5, "shortlist": SHORTLIST}
    with feature_retriever.open_index(path) as exact:
        expected = found(feature_retriever.rank(CAPTIONS[0], exact, 5, SHORTLIST))
    assert not searched
    with served(bundle=feature_bundle, index=path, ann=True, backend="onnxruntime") as server:
        answer = server.found("/v1/search", body)
    assert [(match["key"], match["logit"]) for match in answer["matches"]] == expected
    assert searched
    with pytest.raises(InputError, match="`ann` is for an `index`"):
        Settings(feature_bundle, gallery=path, ann=True)
