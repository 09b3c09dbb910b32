"""`camp index ...`: only what is new or changed is encoded, and everything can be read by programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import Retriever
from camp_sdk.commands import index as index_module
from tests.helpers.command import Camp, Result

QUERY = "a small red circle"


def draw(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six pictures, two of them in subfolders, and a file that is no picture."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/deeper/[red]f.png")):
        draw(folder / name, number)
    (folder / "sub" / "notes.txt").write_text("no picture")
    draw(folder / ".hidden" / "g.png", 9)
    return folder


def answer(done: Result) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


def counts(done: Result) -> dict[str, int]:
    found = answer(done)
    return {name: found[name] for name in ("items", "added", "replaced", "unchanged")}


def test_only_what_is_new_or_changed_is_encoded(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, photos: Path, tmp_path: Path
) -> None:
    index = tmp_path / "photos.index"
    add = ("index", "add", index, photos, "--bundle", picture_bundle, "--json")
    first = camp(*add)
    assert counts(first) == {"items": 6, "added": 6, "replaced": 0, "unchanged": 0}
    (passed,) = answer(first)["passed_over"]
    assert passed["name"] == str(Path("sub") / "notes.txt")
    assert counts(camp(*add)) == {"items": 6, "added": 0, "replaced": 0, "unchanged": 6}
    os.utime(photos / "a.png", ns=(1, 1))
    draw(photos / "b.png", 20)
    draw(photos / "h.png", 21)
    (photos / "c.png").unlink()
    done = camp(*add)
    assert counts(done) == {"items": 7, "added": 1, "replaced": 1, "unchanged": 4}
    assert answer(done)["vanished"] == ["photos/c.png"]
    assert answer(camp(*add, "--prune"))["removed"] == 1
    with picture_retriever.open_index(index) as opened:
        assert sorted(opened.keys()) == sorted(
            f"photos/{name}" for name in ("a.png", "b.png", "d.png", "h.png", "sub/e.png", "sub/deeper/[red]f.png")
        )
        fresh = picture_retriever.encode_images([item.document for item in opened], precision="float16")
        expected = picture_retriever.rank(QUERY, fresh, 6)
        found = picture_retriever.rank(QUERY, opened, 6)
        assert [match.document for match in found] == [match.document for match in expected]
    shown = camp("index", "add", index, photos, "--bundle", picture_bundle)
    assert "6 items; 0 added, 6 unchanged" in shown.out
    assert "1 passed over: " in shown.err


def test_search_list_update_remove_info_compact(
    camp: Camp, picture_bundle: Path, picture_retriever: Retriever, photos: Path, tmp_path: Path
) -> None:
    index, bundle = tmp_path / "photos.index", ("--bundle", picture_bundle)
    table = tmp_path / "metadata.csv"
    table.write_text(
        "file_name,year,album,score\nphotos/a.png,2020,rome,0.5\nphotos/b.png,2021,rome,\nphotos/d.png,2024,007,1e3\n"
    )
    camp("index", "add", index, photos, *bundle, "--metadata", table, "--stored", "int8")
    listed = [json.loads(line) for line in camp("index", "list", index, "--json").out.splitlines()]
    assert [one["metadata"] for one in listed] == [
        {"year": 2020, "album": "rome", "score": 0.5},
        {"year": 2021, "album": "rome"},
        {},
        {"year": 2024, "album": "007", "score": 1000.0},
        {},
        {},
    ]
    where = ("--where", '{"year": {"gte": 2021}}')
    assert camp("index", "list", index, *where, "--limit", 1, "--offset", 1).out.startswith("photos/d.png  {")
    bundle += ("--backend", "onnxruntime")  # that of the retriever below
    found = answer(camp("index", "search", index, *bundle, "--query", QUERY, "--top-k", 2, *where, "--json"))
    with picture_retriever.open_index(index) as opened:
        expected = picture_retriever.rank(QUERY, opened, 2, where={"year": {"gte": 2021}})
    assert found["matches"] == [dict(match) for match in expected]
    page = camp("index", "search", index, *bundle, "--query", QUERY, "--offset", 4, "--shortlist", 6)
    assert page.code == 0
    assert "[red]f.png" in camp("index", "search", index, *bundle, "--query", QUERY, "--top-k", 9).out
    like = answer(camp("index", "search", index, *bundle, "--like", photos / "sub" / "e.png", "--top-k", 1, "--json"))
    assert like["matches"][0]["key"] == "photos/sub/e.png"
    assert answer(
        camp("index", "update", index, "photos/a.png", "--set", "year=1999", "--set", "note=x y", "--json")
    ) == {
        "updated": 1,
        "unknown": [],
    }
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"key": "photos/c.png", "tags": ["sea"]}\n{"key": "gone", "tags": []}\n')
    assert "1 updated; 1 not in the index, such as 'gone'" in camp("index", "update", index, "--metadata", lines).out
    with picture_retriever.open_index(index) as opened:
        first = opened.get("photos/a.png")
        assert first is not None
        assert first.metadata == {"year": 1999, "album": "rome", "score": 0.5, "note": "x y"}
        assert [item.key for item in opened.where({"tags": {"contains": "sea"}})] == ["photos/c.png"]
    assert answer(camp("index", "remove", index, "photos/a.png", "gone", "--json")) == {"removed": 1, "items": 5}
    assert answer(camp("index", "info", index, "--json"))["items"] == 5
    assert "int8" in camp("index", "info", index).out
    assert answer(camp("index", "compact", index, "--json"))["after_bytes"] > 0


def test_features(camp: Camp, feature_bundle: Path, features: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", features)
    add = ("index", "add", tmp_path / "f.index", tmp_path / "features.npy", "--bundle", feature_bundle, "--json")
    assert counts(camp(*add))["added"] == 10
    assert counts(camp(*add))["unchanged"] == 10
    listed = camp("index", "list", tmp_path / "f.index", "--limit", 1)
    assert listed.out == "features.npy, row 0  {}\n"


def test_watching_goes_on(
    camp: Camp, picture_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(len(looks))
        if len(looks) == 2:
            draw(photos / "new.png", 30)
        if len(looks) == 3:
            (photos / "new.png").unlink()
        if len(looks) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(index_module.time, "sleep", sleep)
    done = camp(
        "index", "add", tmp_path / "w.index", photos, "--bundle", picture_bundle, "--watch", "--prune", "--json"
    )
    assert done.code == 130
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["items"], one["added"], one["removed"]) for one in answers] == [(6, 6, 0), (7, 1, 0), (6, 0, 1)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("list", "gone.index"), "gone.index not found: expected an index"),
        (("list", "{index}", "--where", "{"), "--where is '{': expected JSON"),
        (("list", "{index}", "--where", '{"a": {"like": 1}}'), "the operator 'like': expected equal, in"),
        (("search", "{index}", "--bundle", "{bundle}"), "give either --query or --like"),
        (("search", "{index}", "--bundle", "{bundle}", "--query", "x", "--shortlist", "1"), "--shortlist is 1"),
        (("update", "{index}"), "give keys with --set, or --metadata"),
        (("update", "{index}", "a", "--set", "year"), "--set is 'year': expected a field and its value"),
        (("update", "{index}", "--metadata", "{bundle}/manifest.json"), "expected a file of metadata, .csv or .jsonl"),
        (("add", "{index}", "gone", "--bundle", "{bundle}"), "gone"),
        (("add", "{index}", "{empty}", "--bundle", "{bundle}"), "holds no pictures: expected files"),
    ],
)
def test_mistakes(
    camp: Camp,
    picture_bundle: Path,
    picture_retriever: Retriever,
    tmp_path: Path,
    arguments: tuple[str, ...],
    error: str,
) -> None:
    index = tmp_path / "photos.index"
    (tmp_path / "empty").mkdir()
    picture_retriever.open_index(index, create=True).close()
    given = [a.replace("{index}", str(index)).replace("{bundle}", str(picture_bundle)) for a in arguments]
    done = camp("index", *(a.replace("{empty}", str(tmp_path / "empty")) for a in given))
    assert done.code == 1
    assert error in done.err


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("m.csv", "a,b\n1,2\n", "row 1: expected an item's --key, or --file-name"),
        ("m.csv", 'key,b\n"x,2\n', "cannot be read as .csv"),
        ("m.jsonl", "{\n", "cannot be read as .jsonl, after 0 rows"),
        ("m.jsonl", "[1]\n", "cannot be read as .jsonl"),
        ("m.jsonl", '{"key": "a", "b": 99999999999999999999}\n', "holds 99999999999999999999"),
        ("m.jsonl", "\xff", "cannot be read"),
    ],
)
def test_broken_metadata(
    camp: Camp, picture_retriever: Retriever, tmp_path: Path, name: str, content: str, error: str
) -> None:
    index = tmp_path / "photos.index"
    picture_retriever.open_index(index, create=True).close()
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    done = camp("index", "update", index, "--metadata", tmp_path / name)
    assert (done.code, error in done.err) == (1, True), done.err


def test_a_busy_index(
    camp: Camp, feature_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "photos.index"
    monkeypatch.setattr(index_module, "TIMEOUT_S", 0.1)
    with feature_retriever.open_index(index, create=True) as opened, opened._changing():
        done = camp("index", "remove", index, "a")
    assert done.code == 1
    assert f"is being written by process {os.getpid()}" in done.err


def test_an_index_knows_the_pictures_that_it_holds(
    picture_retriever: Retriever, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = draw(tmp_path.parent / f"{tmp_path.name}-other.png", 1)
    with picture_retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add([photos / "a.png", other])
        monkeypatch.chdir(photos)
        assert [index.holds(path) for path in (photos / "a.png", "a.png", other)] == [True, True, True]
        assert not index.holds(photos / "b.png")
        index.remove([str(other)])
        assert not index.holds(other)
