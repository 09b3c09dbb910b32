"""`camp serve`: items that clients add, change and remove, whatever their keys are."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from camp_sdk import Retriever
from camp_sdk.server import answers
from camp_sdk.server.uploads import merged
from tests.helpers.serving import WRITES, Served, key_files, picture_bytes, served

QUERY = "a small red circle"
KEPT = pytest.mark.parametrize("server", [True], indirect=True, ids=["kept"])
PNG = {"Content-Type": "image/png", **WRITES}


@pytest.fixture(params=[False, True], ids=["encoded", "kept"])
def server(
    request: pytest.FixtureRequest, picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path
) -> Iterator[Served]:
    """A server of an empty index; with the second parameter, it keeps uploaded pictures in `uploads`."""
    picture_retriever.open_index(tmp_path / "photos.index", create=True).close()
    kept = {"pictures": tmp_path / "uploads"} if request.param else {}
    settings = {"bundle": picture_bundle, "index": tmp_path / "photos.index", "backend": "onnxruntime"}
    with served(**settings, **kept, **key_files(tmp_path)) as running:
        yield running


def item_path(key: str) -> str:
    return f"/v1/items/{quote(key, safe='')}"


def data_url(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture_bytes(number)).decode()}"


def uploads(server: Served) -> list[str] | None:
    folder = server.serving.settings.pictures
    return None if folder is None else sorted(path.suffix for path in folder.rglob("*"))


def test_an_item_is_put_found_changed_and_deleted(
    server: Served, picture_retriever: Retriever, picture_bundle: Path
) -> None:
    first = server("PUT", "/v1/items/a.png", content=picture_bytes(1), headers=PNG)
    assert first.status_code == 201
    answers.ItemAnswer.model_validate(first.json())
    put = server("PUT", "/v1/items/b", json={"picture": data_url(2), "metadata": {"year": 2024}}, headers=WRITES)
    assert (put.status_code, put.json()["metadata"]) == (201, {"year": 2024})
    found = server.found("/v1/search", {"query": QUERY})["matches"]
    expected = picture_retriever.score([(picture_bytes(1), QUERY), (picture_bytes(2), QUERY)])
    # The index stores float16, which the scores differ by.
    assert {match["key"]: match["score"] for match in found} == pytest.approx(
        {"a.png": expected[0], "b": expected[1]}, abs=2e-3
    )
    again = server("PUT", "/v1/items/b", content=picture_bytes(3, form="JPEG"), headers=PNG)
    assert (again.status_code, again.json()["metadata"]) == (200, {"year": 2024})
    patched = server("PATCH", "/v1/items/b", json={"metadata": {"year": None, "album": "rome"}}, headers=WRITES)
    assert (patched.status_code, patched.json()["metadata"]) == (200, {"album": "rome"})
    assert server("GET", "/v1/items", params={"where": json.dumps({"album": "rome"})}).json()["items"] == [
        patched.json()
    ]
    if uploads(server) is not None:
        assert uploads(server) == [".jpg", ".png"]  # the first picture of b is gone
        assert server("GET", patched.json()["thumbnail"]).headers["content-type"] == "image/jpeg"
    else:
        assert patched.json()["thumbnail"] is None
        assert server("GET", "/v1/items/b/thumbnail").status_code == 404
    assert server("DELETE", "/v1/items/b", headers=WRITES).status_code == 204
    assert uploads(server) in (None, [".png"])
    for method, options in (("GET", {}), ("DELETE", {}), ("PATCH", {"json": {"metadata": {}}})):
        assert server(method, "/v1/items/b", headers=WRITES, **options).status_code == 404
    assert [match["key"] for match in server.found("/v1/search", {"query": QUERY})["matches"]] == ["a.png"]


def test_a_kept_file_stays_as_long_as_an_item_has_it(server: Served) -> None:
    for key in ("one", "two"):
        server("PUT", f"/v1/items/{key}", content=picture_bytes(1), headers=PNG)
    assert uploads(server) in (None, [".png"])
    server("DELETE", "/v1/items/one", headers=WRITES)
    assert uploads(server) in (None, [".png"])
    server("DELETE", "/v1/items/two", headers=WRITES)
    assert uploads(server) in (None, [])


def test_two_files_of_one_name_are_refused(server: Served) -> None:
    files = [("files", ("a.png", picture_bytes(number))) for number in range(2)]
    done = server("POST", "/v1/items", files=files, headers=WRITES)
    assert (done.status_code, "two files of the name" in done.json()["detail"]) == (422, True)


def test_several_pictures_at_once(server: Served) -> None:
    files = [("files", (name, content)) for name, content in FILES.items()]
    metadata = {"metadata": json.dumps({"a/b.png": {"year": 1}})}
    done = server("POST", "/v1/items", files=files, data=metadata, headers=WRITES)
    answers.AddedAnswer.model_validate(done.json())
    reasons = {one["key"]: one["reason"] for one in done.json()["skipped"]}
    assert (done.json()["added"], reasons.keys()) == (2, {"broken.png", "cut.png"})
    assert "cannot be read as a picture" in reasons["broken.png"]
    assert uploads(server) in (None, [".jpg", ".png"])
    listed = server("GET", "/v1/items").json()["items"]
    assert [(item["key"], item["metadata"]) for item in listed] == [("a/b.png", {"year": 1}), ("c.jpg", {})]
    items = [{"key": "c.jpg", "picture": data_url(2)}, {"key": "d", "picture": data_url(3), "metadata": {"x": [1]}}]
    again = server("POST", "/v1/items", json={"items": items}, headers=WRITES).json()
    assert (again["added"], again["replaced"], again["skipped"]) == (1, 1, [])


FILES = {
    "a/b.png": picture_bytes(1),
    "broken.png": b"no picture",
    "cut.png": picture_bytes(2)[:-3000],
    "c.jpg": picture_bytes(3, form="JPEG"),
}


@KEPT
@pytest.mark.parametrize(
    "key",
    [
        "a/thumbnail",
        "thumbnail",
        "picture/picture",
        "a//b/",
        "/",
        "a/../b",
        "..a",
        "a?b#c&d=e",
        "%2F",
        "100%",
        "ключ/鍵 😀",
        "\n\t\x00",
        '<script>"&',
        "x" * 10_000,
        "鍵" * 7000,  # 63,000 characters in a URL; httpx takes no more than 65,536
    ],
    ids=lambda key: ascii(key[:20]),
)
def test_any_key_can_be_written_read_and_deleted(server: Served, key: str) -> None:
    put = server("PUT", item_path(key), content=picture_bytes(1), headers=PNG)
    assert (put.status_code, put.json()["key"]) == (201, key)
    assert server("GET", item_path(key)).json()["key"] == key
    (match,) = server.found("/v1/search", {"query": QUERY})["matches"]
    assert match["key"] == key
    picture = server("GET", item_path(key) + "/thumbnail")
    if match["thumbnail"]:
        assert match["thumbnail"] == item_path(key) + "/thumbnail"
        assert picture.headers["content-type"] == "image/jpeg"
    else:
        assert picture.status_code == 404
    assert server.found("/v1/score", {"pairs": [{"text": QUERY, "key": key}]})["scores"] == [match["score"]]
    assert server("DELETE", item_path(key), headers=WRITES).status_code == 204
    assert server("GET", "/v1/items").json()["items"] == []


def test_slashes_may_stay_as_they_are(server: Served) -> None:
    server("PUT", "/v1/items/2024/a.png", content=picture_bytes(1), headers=PNG)
    assert server("GET", item_path("2024/a.png")).json()["key"] == "2024/a.png"


@KEPT
@pytest.mark.parametrize("key", [".", "..", ""])
def test_keys_that_no_path_can_hold_are_refused(server: Served, key: str) -> None:
    done = server("POST", "/v1/items", json={"items": [{"key": key, "picture": data_url(1)}]}, headers=WRITES)
    assert done.status_code == 422
    assert uploads(server) in (None, [])


@KEPT
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 422),
        ({"content": b"no picture", "headers": {"Content-Type": "image/png"}}, 422),
        ({"content": picture_bytes(1), "headers": {"Content-Type": "text/plain"}}, 415),
        ({"json": {"text": "a star"}}, 422),
        ({"json": {"picture": "!"}}, 422),
        ({"json": {"picture": "data:image/png,abc"}}, 422),
        ({"json": {"picture": "http://127.0.0.1/a.png"}}, 422),
        ({"json": {}}, 422),
        ({"json": {"picture": data_url(1), "metadata": {"a": [1e999]}}}, 422),
        ({"json": {"picture": data_url(1), "metadata": 1}}, 422),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_item_is_refused(server: Served, options: dict[str, Any], status: int) -> None:
    headers = {"Content-Type": "application/json", **options.get("headers", {}), **WRITES}
    content = options["content"] if "content" in options else json.dumps(options["json"])
    done = server("PUT", "/v1/items/a", headers=headers, content=content)
    assert (done.status_code, done.headers["content-type"]) == (status, "application/problem+json")
    assert server("GET", "/v1/items").json()["items"] == []
    assert uploads(server) in (None, [])


def test_texts(picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path) -> None:
    picture_retriever.open_index(tmp_path / "texts.index", create=True, kind="text").close()
    settings = {"bundle": picture_bundle, "index": tmp_path / "texts.index", "backend": "onnxruntime"}
    with served(**settings, **key_files(tmp_path)) as running:
        items = [{"text": "a red circle"}, {"key": "two", "text": "a blue star", "metadata": {"n": 2}}]
        added = running("POST", "/v1/items", json={"items": items}, headers=WRITES).json()
        assert (added["added"], added["skipped"]) == (2, [])
        put = running("PUT", "/v1/items/three", json={"text": "two dogs"}, headers=WRITES)
        assert put.json() == {
            "key": "three",
            "document": "two dogs",
            "metadata": {},
            "thumbnail": None,
            "picture": None,
        }
        refused = running("PUT", "/v1/items/four", content=picture_bytes(1), headers=PNG)
        assert refused.status_code == 422
        found = running.found("/v1/search", {"picture": data_url(1)})["matches"]
        assert {match["key"] for match in found} == {"a red circle", "two", "three"}
        assert running.post("/v1/search", {"query": "a star"}).status_code == 422


def test_pictures_outside_of_the_folders_for_them_are_not_shown(
    picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path
) -> None:
    """An index may come from anywhere, and name any file."""
    (tmp_path / "index").mkdir()
    (tmp_path / "secret.png").write_bytes(picture_bytes(1))
    (tmp_path / "index" / "link.png").symlink_to(tmp_path / "secret.png")
    with picture_retriever.open_index(tmp_path / "index" / "photos.index", create=True) as index:
        index.add([tmp_path / "secret.png", tmp_path / "index" / "link.png"], keys=["a", "b"])
    settings: dict[str, Any] = {"bundle": picture_bundle, "index": tmp_path / "index" / "photos.index"}
    with served(**settings, backend="onnxruntime") as running:
        assert [running("GET", f"/v1/items/{key}/thumbnail").status_code for key in "ab"] == [404, 404]
    with served(**settings, backend="onnxruntime", picture_root=(tmp_path,)) as running:
        assert [running("GET", f"/v1/items/{key}/thumbnail").status_code for key in "ab"] == [200, 200]


@pytest.mark.parametrize(
    ("held", "patch", "expected"),
    [  # of RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch(held: dict[str, Any], patch: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merged(held, patch) == expected
