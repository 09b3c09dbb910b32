"""Adding, changing, removing, finding: what an index holds after each, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import Added, BundleError, Index, IndexItem, InputError, Retriever
from camp_sdk.index import adding, columns, metadata, where
from tests.helpers.tiny import CAPTIONS

Features = NDArray[np.float32]
QUERY = "a small red circle"


@pytest.fixture
def index(feature_retriever: Retriever, tmp_path: Path) -> Iterator[Index]:
    with feature_retriever.open_index(tmp_path / "photos.index", create=True) as opened:
        yield opened


@pytest.fixture
def pictures(picture_retriever: Retriever, tmp_path: Path) -> Iterator[Index]:
    with picture_retriever.open_index(tmp_path / "photos.index", create=True) as opened:
        yield opened


def draw(path: Path, number: int) -> Path:
    """Write a small picture, different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def counts(added: Added) -> tuple[int, int, int, int]:
    return added.added, added.replaced, added.unchanged, len(added.skipped)


# Adding


def test_a_new_index_is_empty(feature_retriever: Retriever, index: Index, features: Features) -> None:
    assert (len(index), list(index), list(index.keys()), index.get("a"), "a" in index) == (0, [], [], None, False)
    assert feature_retriever.rank(QUERY, index) == []
    assert feature_retriever.rank([QUERY, QUERY], index, 3, 10) == [[], []]
    assert feature_retriever.rank(features[0], index, by="image") == []
    assert counts(index.add([])) == (0, 0, 0, 0)
    assert (index.info().item_bytes, index.info().vector_bytes, index.precision) == (None, 64, "float16")


def test_items_are_found_by_key_in_the_order_of_adding(index: Index, features: Features) -> None:
    done: list[int] = []
    added = index.add(features, [f"k{n}" for n in range(10)], ({"n": n} for n in range(10)), done.append)
    assert (counts(added), sum(done), len(index)) == ((10, 0, 0, 0), 10, 10)
    assert list(index) == [IndexItem(f"k{n}", None, {"n": n}) for n in range(10)]
    assert index.get("k3") == IndexItem("k3", None, {"n": 3})
    assert "k3" in index
    assert "k10" not in index
    assert 3 not in index


def test_a_key_that_exists_is_replaced_at_the_end_and_keeps_its_metadata(
    feature_retriever: Retriever, index: Index, features: Features
) -> None:
    index.add(features[:3], list("abc"), [{"n": n} for n in range(3)])
    assert counts(index.add(features[3:5], ["a", "b"], [None, {"m": 1}])) == (0, 2, 0, 0)
    assert [(item.key, item.metadata) for item in index] == [("c", {"n": 2}), ("a", {"n": 0}), ("b", {"m": 1})]
    expected = feature_retriever.encode_images(features[[2, 3, 4]], precision="float16")
    found = [match.logit for match in feature_retriever.rank(QUERY, index)]
    assert found == pytest.approx([match.logit for match in feature_retriever.rank(QUERY, expected)], abs=1e-5)


def test_a_key_twice_in_one_call_is_the_last(index: Index, features: Features) -> None:
    assert counts(index.add(features[:4], ["a", "b", "a", "a"])) == (2, 2, 0, 0)
    assert list(index.keys()) == ["b", "a"]


def test_the_last_of_a_key_counts_even_if_it_is_what_the_index_has(
    feature_retriever: Retriever, index: Index, features: Features
) -> None:
    index.add(features[:1], ["a"])
    expected = feature_retriever.rank(QUERY, index)[0].logit
    index.add(features[[5, 0]], ["a", "a"])
    assert [match.logit for match in feature_retriever.rank(QUERY, index)] == pytest.approx([expected], abs=1e-5)


def test_the_same_content_is_not_encoded_again(
    index: Index, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(features)
    assert counts(index.add(features, metadata=[{"n": n} for n in range(10)])) == (0, 0, 10, 0)
    assert [item.metadata for item in index] == [{"n": n} for n in range(10)]
    index.add(features[:2], ["a", "b"])
    assert counts(index.add(features[[0, 2]], ["a", "b"])) == (0, 1, 1, 0)


def test_what_is_the_same_is_not_written(index: Index, features: Features) -> None:
    index.add(features, metadata=[{"n": n} for n in range(10)])
    done: list[int] = []
    before = index._snapshots.state()
    assert counts(index.add(features, on_progress=done.append)) == (0, 0, 10, 0)
    assert counts(index.add(features, metadata=[{"n": n} for n in range(10)])) == (0, 0, 10, 0)
    assert (index._snapshots.state(), sum(done)) == (before, 10)


def test_files_are_known_by_size_and_time_then_by_hash(pictures: Index, tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{n}.png", n) for n in range(4)]
    assert counts(pictures.add(paths)) == (4, 0, 0, 0)
    assert list(pictures.keys()) == [f"{n}.png" for n in range(4)]
    assert [item.document for item in pictures] == [str(path) for path in paths]
    os.utime(paths[1], ns=(1, 1))
    draw(paths[2], 9)
    assert counts(pictures.add(map(str, paths))) == (0, 1, 3, 0)
    assert counts(pictures.add(paths)) == (0, 0, 4, 0)


def test_pictures_of_every_kind(picture_retriever: Retriever, pictures: Index, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", 1)
    with Image.open(path) as opened, path.open("rb") as file:
        array = np.asarray(opened)
        pictures.add([path, path.read_bytes(), array, opened, file], ["p", "b", "a", "i", "f"])
        for one in (opened, file):
            with pytest.raises(InputError, match="has no key of its own: pass `keys`"):
                pictures.add([one])
    matches = picture_retriever.rank(QUERY, pictures, 9)
    assert len({match.logit for match in matches}) == 1
    assert [match.key for match in matches] == ["p", "b", "a", "i", "f"]
    assert [match.document for match in matches] == [str(path), None, None, None, None]
    assert len(list(pictures.add([path.read_bytes(), array]).skipped)) == 0
    assert {len(key) for key in list(pictures.keys())[5:]} == {64}


def test_broken_pictures_are_left_out_or_raise(pictures: Index, tmp_path: Path) -> None:
    good = [draw(tmp_path / f"{n}.png", n) for n in range(3)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    pictures.add(good[:1])
    given = [good[0], tmp_path / "gone.png", good[1], broken, good[2]]
    with pytest.raises(InputError, match=r"gone\.png"):
        pictures.add(given)
    added = pictures.add(given, skip_broken=True)
    assert (added.added, added.unchanged) == (2, 1)
    assert [(one.index, Path(one.name).name) for one in added.skipped] == [(1, "gone.png"), (3, "broken.png")]
    assert list(pictures.keys()) == ["0.png", "1.png", "2.png"]


def test_batches_that_were_committed_stay(index: Index, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "COMMIT_ITEMS", 32)
    many = np.concatenate([features] * 7)

    def stream() -> Iterator[Features]:
        yield from many
        raise RuntimeError("the camera broke")

    with pytest.raises(RuntimeError, match="the camera broke"):
        index.add(stream(), map(str, range(71)))
    assert 0 < len(index) < 70
    assert counts(index.add(many, map(str, range(70))))[2] > 0
    assert sorted(index.keys(), key=int) == [str(n) for n in range(70)]


def test_texts(feature_retriever: Retriever, tmp_path: Path) -> None:
    with feature_retriever.open_index(tmp_path / "texts.index", create=True, kind="text") as texts:
        assert counts(texts.add(CAPTIONS)) == (len(CAPTIONS), 0, 0, 0)
        assert counts(texts.add(CAPTIONS[:2])) == (0, 0, 2, 0)
        texts.add(["star"], ["own key"])
        assert [item.document for item in texts] == [*CAPTIONS, "star"]
        assert (texts.kind, texts.precision, texts.get("own key")) == ("text", "float32", IndexItem("own key", "star"))
        with pytest.raises(InputError, match="text 1 is 3: expected a string"):
            texts.add(["a", 3])
    with pytest.raises(InputError, match="has the kind text, not 'image'"):
        feature_retriever.open_index(tmp_path / "texts.index", kind="image")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"items": "a.png"}, "items is 'a.png': expected a list of images"),
        ({"items": 3}, "items is 3: expected a list of images"),
        ({"keys": ["a"]}, "keys has 1 entries, there are more items"),
        ({"keys": list("abcd")}, "keys has more entries than the 3 items"),
        ({"keys": "abc d"}, "keys is 'abc d': expected a list"),
        ({"keys": ["a", "b", ""]}, "the key '': expected a string of Unicode, 1 to 10000 characters"),
        ({"keys": ["a", "b", "\ud800"]}, "the key '.ud800'"),
        ({"keys": ["a", 2, "b"]}, "the key 2: expected"),
        ({"metadata": {"a": 1}}, "metadata is a dict: expected a list"),
        ({"metadata": [{}, {}]}, "metadata has 2 entries, there are more items"),
        ({"metadata": [{}, 3, {}]}, "the metadata of image 1 are 3: expected a dict"),
        ({"metadata": [{}, {"a": float("nan")}, {}]}, "image 1 holds nan: expected None, booleans"),
        ({"metadata": [{}, {"a": 1 << 63}, {}]}, "image 1 holds 9223372036854775808"),
        ({"metadata": [{}, {"a": b"x"}, {}]}, "image 1 holds b'x'"),
        ({"metadata": [{}, {1: "x"}, {}]}, "image 1 has the field 1: expected a string"),
        ({"metadata": [{}, {"a": "\ud800"}, {}]}, "image 1 holds"),
    ],
)
def test_arguments_that_are_refused(index: Index, features: Features, arguments: dict[str, Any], error: str) -> None:
    given = {"items": features[:3]} | arguments
    with pytest.raises(InputError, match=error):
        index.add(**given)
    assert len(index) <= 3


def test_metadata_in_metadata_without_end(index: Index, features: Features) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(InputError, match="expected at most 16 levels"):
        index.add(features[:1], metadata=[deep])
    with pytest.raises(InputError, match="characters: expected at most 1048576"):
        index.add(features[:1], metadata=[{"a": "x" * (1 << 20)}])


def test_images_of_other_regions(index: Index, features: Features) -> None:
    index.add(features[:3])
    with pytest.raises(InputError, match="put images with different numbers of regions into separate indexes"):
        index.add(features[:3, :4])
    assert len(index) == 3


# Removing and updating


def test_remove_and_update(index: Index, features: Features) -> None:
    index.add(features, map(str, range(10)), [{"n": n} for n in range(10)])
    assert index.remove(["1", "3", "gone", "1"]) == 2
    assert list(index.keys()) == ["0", "2", *map(str, range(4, 10))]
    index.update("2", {"m": [1, 2]})
    assert index.get("2") == IndexItem("2", None, {"m": [1, 2]})
    assert [item.key for item in index.where({"m": {"contains": 2}})] == ["2"]
    assert [item.key for item in index.where({"n": 2})] == []
    with pytest.raises(InputError, match="the index has no item with the key '3'"):
        index.update("3", {})
    for keys in ("1", 3, [3]):
        with pytest.raises(InputError):
            index.remove(keys)  # type: ignore[arg-type]  # wrong on purpose


def test_many_are_updated_at_once(index: Index, features: Features) -> None:
    index.add(features, map(str, range(10)))
    assert index.update_many({str(n): {"n": n} for n in range(5, 15)}) == [str(n) for n in range(10, 15)]
    assert [item.key for item in index.where({"n": {"gte": 7}})] == ["7", "8", "9"]
    with pytest.raises(InputError, match="the metadata of '3' are 3"):
        index.update_many({"3": 3})  # type: ignore[dict-item]  # wrong on purpose


def test_half_removed_and_added_again_takes_no_more(index: Index, features: Features) -> None:
    many = np.random.default_rng(1).standard_normal((600, *features.shape[1:]), dtype=np.float32)
    index.add(many, map(str, range(600)), [{"n": n, "even": n % 2 == 0} for n in range(600)])
    before = index.info().file_bytes
    for _ in range(3):
        index.remove(map(str, range(0, 600, 2)))
        index.add(many[::2] + 1, map(str, range(0, 600, 2)), [{"n": n, "even": True} for n in range(0, 600, 2)])
    assert len(index) == 600
    assert index.info().file_bytes <= 1.05 * before


def test_compact_gives_back_what_is_free(feature_retriever: Retriever, index: Index, features: Features) -> None:
    index.add(np.concatenate([features + n for n in range(50)]), map(str, range(500)))
    expected = [match.key for match in feature_retriever.rank(QUERY, index, 5, 20)]
    index.remove(str(n) for n in range(500) if str(n) not in expected)
    before = index.info()
    assert before.free_bytes > 0
    index.compact()
    after = index.info()
    assert (after.free_bytes, after.items) == (0, 5)
    assert after.file_bytes < before.file_bytes
    assert [match.key for match in feature_retriever.rank(QUERY, index, 5)] == expected


def test_an_index_opens_again_as_it_was(feature_retriever: Retriever, features: Features, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "photos.index"
    with feature_retriever.open_index(path, create=True, precision="int8") as index:
        index.add(features, map(str, range(10)), [{"n": n} for n in range(10)])
        expected = feature_retriever.rank(QUERY, index)
    with feature_retriever.open_index(path, create=True) as index:
        assert feature_retriever.rank(QUERY, index) == expected
        assert index.precision == "int8"
    with pytest.raises(InputError, match="is closed: open it again"):
        len(index)
    with pytest.raises(InputError, match="has the precision int8, not 'float32'"):
        feature_retriever.open_index(path, precision="float32")
    with pytest.raises(BundleError, match=r"open_index\(..., create=True\) makes one"):
        feature_retriever.open_index(tmp_path / "other.index")
    with pytest.raises(InputError, match="kind is 'video': expected one of image, text"):
        feature_retriever.open_index(tmp_path / "other.index", create=True, kind="video")
    with pytest.raises(InputError, match="'float64': expected one of"):
        feature_retriever.open_index(tmp_path / "other.index", create=True, precision="float64")


# Finding

PEOPLE: list[dict[str, Any]] = [
    {"name": "Ada", "born": 1815, "tags": ["maths", "poetry"], "alive": False},
    {"name": "Grace", "born": 1906, "tags": ["navy"], "rank": {"title": "Admiral", "stars": 1}},
    {"name": "O'Neil; DROP TABLE items; --", "born": 1950.5, "tags": [], "alive": True, "note": None},
    {"name": "%_\\ ẞ 漢字", "tags": [1, True, None, "maths"], "born": "unknown"},
    {},
]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"name": "Ada"}, [0]),
        ({"name": "ada"}, []),
        ({"name": {"equal": "O'Neil; DROP TABLE items; --"}}, [2]),
        ({"name": {"in": ["Ada", "%_\\ ẞ 漢字", 7]}}, [0, 3]),
        ({"born": {"gt": 1815}}, [1, 2]),
        ({"born": {"gte": 1815, "lt": 1950.5}}, [0, 1]),
        ({"born": {"lte": 1950.5}}, [0, 1, 2]),
        ({"born": {"gte": "a"}}, [3]),
        ({"born": 1906.0}, [1]),
        ({"tags": {"contains": "maths"}}, [0, 3]),
        ({"tags": {"contains": 1}}, [3]),
        ({"tags": {"contains": True}}, [3]),
        ({"tags": {"contains": None}}, [3]),
        ({"name": {"contains": "%"}}, [3]),
        ({"name": {"contains": "a"}}, [0, 1]),
        ({"tags": []}, [2]),
        ({"tags": ["maths", "poetry"]}, [0]),
        ({"tags": ["poetry", "maths"]}, []),
        ({"alive": False}, [0]),
        ({"alive": 0}, []),
        ({"note": None}, [2]),
        ({"note": {"exists": True}}, [2]),
        ({"alive": {"exists": False}}, [1, 3, 4]),
        ({"rank.title": "Admiral"}, [1]),
        ({"rank": {"exists": True}}, [1]),
        ({"rank.stars": {"gte": 1}, "born": 1906}, [1]),
        ({"or": [{"name": "Ada"}, {"born": {"gt": 1940}, "alive": True}]}, [0, 2]),
        ({"and": [{"born": {"gt": 1}}, {"not": {"name": "Ada"}}]}, [1, 2]),
        ({"not": {"or": [{"name": "Ada"}, {"tags": {"contains": "navy"}}]}}, [2, 3, 4]),
        ({"tags": {"exists": True, "contains": "maths"}, "born": {"exists": True, "gt": 0}}, [0]),
        ({"x' OR 1=1 --": 1}, []),
    ],
)
def test_conditions(index: Index, features: Features, conditions: dict[str, Any], expected: list[int]) -> None:
    index.add(features[:5], map(str, range(5)), PEOPLE)
    assert [int(item.key) for item in index.where(conditions)] == expected


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        (3, "`where` holds 3: expected a dict, such as"),
        ({3: 1}, "`where` names the field 3: expected a string"),
        ({"a": {}}, "'a' has no operator: expected equal, in, gt"),
        ({"a": {"$gt": 1}}, r"'a' has the operator '\$gt': expected equal"),
        ({"a": {"in": []}}, "in of 'a' is \\[\\]: expected a list of at least one value"),
        ({"a": {"in": "abc"}}, "in of 'a' is 'abc'"),
        ({"a": {"exists": 1}}, "exists of 'a' is 1: expected True or False"),
        ({"a": {"gt": [1]}}, r"gt of 'a' is \[1\]: expected numbers, or text"),
        ({"a": {"gt": 1, "lt": "b"}}, "lt of 'a' is 'b': expected numbers, or text for all"),
        ({"a": {"gt": True}}, "gt of 'a' is True"),
        ({"a": float("inf")}, "`where` of 'a' holds inf"),
        ({"a": {"equal": b"x"}}, "`where` of 'a' holds b'x'"),
        ({"and": {}}, "'and' takes a list of at least one dict"),
        ({"or": [{}]}, "'or' holds an empty dict"),
        ({"not": [1]}, r"`where` holds \[1\]: expected a dict"),
        ({"not": {}}, "'not' takes a dict of at least one condition"),
        ({"a": {"in": list(range(2000))}}, "more than 1000 conditions"),
    ],
)
def test_conditions_that_are_not_understood(
    feature_retriever: Retriever, index: Index, conditions: Any, error: str
) -> None:
    with pytest.raises(InputError, match=error):
        index.where(conditions)
    with pytest.raises(InputError, match=error):
        feature_retriever.rank(QUERY, index, where=conditions)


def test_conditions_nested_without_end() -> None:
    conditions: dict[str, Any] = {"a": 1}
    for _ in range(50):
        conditions = {"not": conditions}
    with pytest.raises(InputError, match="nested too deeply"):
        where.compile_where(conditions)


PLAIN = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([0.5, -0.0, 2.0]) | st.sampled_from("abc")
VALUES = PLAIN | st.lists(PLAIN, max_size=3)
FIELDS = st.sampled_from("xyz")
RANGES = {
    "gt": lambda own, value: own > value,
    "gte": lambda own, value: own >= value,
    "lt": lambda own, value: own < value,
    "lte": lambda own, value: own <= value,
}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where True is not 1."""
    return metadata.kind_and_value(one) == metadata.kind_and_value(other)


def is_met(held: dict[str, Any], conditions: dict[str, Any]) -> bool:
    """The conditions' meaning, in plain Python."""
    return all(_meets(held, field, wanted) for field, wanted in conditions.items())


def _meets(held: dict[str, Any], field: str, wanted: Any) -> bool:
    if field in ("and", "or"):
        return (all if field == "and" else any)(is_met(held, one) for one in wanted)
    if field == "not":
        return not is_met(held, wanted)
    if not isinstance(wanted, dict):
        return field in held and same(held[field], wanted)
    return all(_operator(held, field, name, value) for name, value in wanted.items())


def _operator(held: dict[str, Any], field: str, name: str, value: Any) -> bool:
    own = held.get(field)
    if name == "exists" or field not in held:
        return (field in held) == (value if name == "exists" else True)
    if name == "in":
        return any(same(own, one) for one in value)
    if name == "contains":
        inside = isinstance(own, str) and isinstance(value, str) and value in own
        return inside or (isinstance(own, list) and any(same(one, value) for one in own))
    kinds = metadata.kind_and_value(own)[0], metadata.kind_and_value(value)[0]
    return kinds[0] == kinds[1] and bool(RANGES[name](own, value))


NUMBERS = st.integers(-5, 5) | st.sampled_from([0.5, 2.0])
OPERATORS = (
    st.fixed_dictionaries({"in": st.lists(VALUES, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"contains": PLAIN})
    | st.fixed_dictionaries({"exists": st.booleans()})
    | st.dictionaries(st.sampled_from(sorted(RANGES)), NUMBERS, min_size=1, max_size=3)
)
CONDITIONS = st.recursive(
    st.dictionaries(FIELDS, VALUES | OPERATORS, min_size=1, max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=2)})
        | st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=2)})
        | st.fixed_dictionaries({"not": inner})
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.lists(st.dictionaries(FIELDS, VALUES, max_size=3), min_size=10, max_size=10), conditions=CONDITIONS)
def test_conditions_mean_what_python_means(
    index: Index, features: Features, held: list[dict[str, Any]], conditions: dict[str, Any]
) -> None:
    index.add(features, map(str, range(10)), held)
    expected = [number for number, one in enumerate(held) if is_met(one, conditions)]
    assert [int(item.key) for item in index.where(conditions)] == expected
    assert [item.metadata for item in index] == json.loads(json.dumps(held))


# Vectors


def test_the_file_of_vectors_follows_every_change(
    feature_retriever: Retriever, features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "FILE_ROWS", 4)
    path = tmp_path / "photos.index"
    many = np.random.default_rng(2).standard_normal((80, *features.shape[1:]), dtype=np.float32)
    held: dict[str, int] = {}
    rng = np.random.default_rng(3)
    with feature_retriever.open_index(path, create=True) as index, feature_retriever.open_index(path) as other:
        for step in range(60):
            chosen = rng.choice(80, rng.integers(1, 9), replace=False).tolist()
            if step % 3 == 2:
                index.remove(map(str, chosen))
                held = {key: n for key, n in held.items() if n not in chosen}
            else:
                index.add(many[chosen] + step, map(str, chosen))
                held = {key: n for key, n in held.items() if n not in chosen} | {str(n): n for n in chosen}
            if step == 40:
                index.compact()
            assert list(index.keys()) == list(held)
            found = [feature_retriever.rank(QUERY, one, 5, 5) for one in (index, other)]
            with feature_retriever.open_index(path) as fresh:
                assert found == [feature_retriever.rank(QUERY, fresh, 5, 5)] * 2
    assert path.with_name("photos.index-vectors").is_file()
