"""The clients of `camp serve` change items as an `Index` does, and refuse what it refuses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import IndexItem, InputError, Retriever, Skipped
from camp_sdk.client import methods
from tests.helpers.calling import Caller
from tests.helpers.serving import KEY, WRITE_KEY, key_files, picture_bytes, served

QUERY = "a small red circle"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def seen(items: Any) -> list[IndexItem]:
    """Items as clients see them: paths of pictures stay on the server."""
    return [replace(item, document=None) for item in items]


@pytest.fixture
def writer(picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path, kind: str) -> Iterator[Caller]:
    """A client, with a key for writing, of a server of an empty index."""
    picture_retriever.open_index(tmp_path / "new.index", create=True, precision="float32").close()
    settings = {"bundle": picture_bundle, "index": tmp_path / "new.index", "backend": "onnxruntime"}
    with served(**settings, **key_files(tmp_path, reading=True)) as running:
        caller = Caller(running, kind, key=WRITE_KEY)
        yield caller
        caller.close()


def test_items_are_added_changed_and_removed_as_in_an_index(
    writer: Caller, picture_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same calls of an index of its own leave the same items, and return the same."""
    monkeypatch.chdir(tmp_path)
    Path("b.png").write_bytes(picture_bytes(2))
    given = [picture_bytes(1), Path("b.png"), np.asarray(Image.open(io.BytesIO(picture_bytes(3))))]
    fields = [{"year": 2024, "camera": {"maker": "Acme", "lens": "wide"}}, None, {"tags": ["sea", None]}]
    monkeypatch.setattr(methods, "MAX_ITEMS", 2)
    with picture_retriever.open_index(tmp_path / "own.index", create=True, precision="float32") as index:
        progress: list[int] = []
        expected = index.add(iter(given), metadata=fields)
        assert writer("add", iter(given), metadata=fields, on_progress=progress.append) == expected
        assert (expected.added, progress) == (3, [2, 1])
        keys = list(index.keys())
        assert writer("keys") == keys
        assert keys[1] == "b.png"
        again = [picture_bytes(4), picture_bytes(1)]
        for _ in range(2):
            assert writer("add", again, ["b.png", keys[0]]) == index.add(again, ["b.png", keys[0]])
        assert writer("where", {}) == seen(index)
        for metadata in (
            {"camera": {"maker": "Other"}, "new": [1, None]},
            {"camera": 3},
            {},
            {"camera": {"a": {"b": 1}}},
        ):
            assert writer("update", keys[0], metadata) is None
            index.update(keys[0], metadata)
            assert writer("where", {}) == seen(index)
        found = writer("rank", QUERY)
        ranked = picture_retriever.rank(QUERY, index)
        assert [(one.key, one.score, one.metadata) for one in found] == [
            (one.key, one.score, one.metadata) for one in ranked
        ]
        assert writer("remove", [keys[0], "nothing"]) == index.remove([keys[0], "nothing"]) == 1
        assert writer("keys") == list(index.keys())
    assert writer("reload").items == 2


def test_broken_pictures_are_refused_or_left_out(writer: Caller, tmp_path: Path) -> None:
    given = [picture_bytes(1), b"no picture", tmp_path / "nowhere.png", picture_bytes(2)[:-3000], picture_bytes(3)]
    keys = list("abcde")
    with pytest.raises(InputError, match=r"nowhere\.png cannot be read as a picture: .*No such file"):
        writer("add", given[2:3])
    with pytest.raises(InputError, match="cannot be read as a picture"):
        writer("add", given[:2], keys[:2])
    done = writer("add", given, keys, skip_broken=True)
    assert (done.added + done.unchanged, [one.index for one in done.skipped]) == (2, [1, 2, 3])
    assert all(isinstance(one, Skipped) and "cannot be read as a picture" in one.reason for one in done.skipped)
    assert sorted(writer("keys")) == ["a", "e"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("remove", "a"),
        ("remove", [".."]),
        ("remove", [3]),
        ("get", ""),
        ("get", "鍵" * 8000),
        ("update", "a", {"x": None}),
        ("update", "a", {"x": {"y": None}}),
        ("update", "nothing", {"x": 1}),
        ("update", "a", {"x": float("nan")}),
        ("add", "a.png"),
        ("add", ["a.png"]),
        ("add", [picture_bytes(1), "a.png"]),
        ("add", [picture_bytes(1)], ["a", "b"]),
        ("add", [picture_bytes(1)], None, [{"x": object()}]),
        ("add", [Image.new("RGB", (3, 3))]),
        ("add", [3]),
        ("score", [("a", "b", "c")]),
        ("score", [(KEY, 3)]),
        ("score", [("nothing", QUERY)]),
        ("embed", "a text"),
        ("embed", ["data:text"]),
        ("embed", 3),
        ("explain", QUERY, "nothing"),
        ("explain", QUERY, 3),
        ("rank", ["a", "b"]),
        ("rank", QUERY, 0),
        ("rank", QUERY, 5, 3),
        ("rank", QUERY, object()),
        ("rank", "zebra"),
        ("rank", Path("nowhere.png")),
        ("rank", picture_bytes(1)),
    ],
    ids=lambda arguments: f"{arguments[0]} {str(arguments[1])[:12]}",
)
def test_what_cannot_be_used_is_an_input_error(writer: Caller, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError) as caught:
        writer(*arguments)
    assert len(str(caught.value)) < 500


def test_a_key_is_needed_and_kept_from_messages(writer: Caller, kind: str) -> None:
    for key, name in ((None, "info"), (KEY, "reload"), ("another-key-0123456789", "info")):
        caller = Caller(writer._server, kind, key=key)
        with pytest.raises(InputError) as caught:
            caller(name)
        assert "key" in str(caught.value).lower()
        assert str(key) not in str(caught.value)
        caller.close()
