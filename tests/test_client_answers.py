"""The clients of `camp serve`, whatever answers: nothing of it is trusted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from camp_sdk.client import AsyncClient, Client, wire
from camp_sdk.client.changes import patch_to
from camp_sdk.runtime.errors import CampError, InputError, MissingExtraError
from camp_sdk.server.uploads import merged
from tests.helpers.calling import INFO, URL, answering, called, in_turn


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Answers of strangers

MATCH = {"rank": 1, "key": "a", "score": 0.5, "logit": 0, "corpus_id": 1, "document": None, "metadata": None}
SEARCH = {"matches": [MATCH], "unknown_words": [], "shortlist": None}
EXPLAIN = {
    "words": ["a", "b"],
    "score": 0.5,
    "attention": [[0.5, 0.5], [1, 0]],
    "to_regions": [[0.5, 0.5], [1, 0]],
    "region_gates": None,
    "word_gates": [0.5, 0.5],
    "grid": [1, 2],
}
ITEM = {"key": "a", "document": None, "metadata": {}}
ITEMS = {"items": [ITEM], "offset": 0, "next_offset": None}
VECTORS = {"data": [{"embedding": "AACAPw=="}]}
ADDED = {"added": 0, "replaced": 0, "unchanged": 0, "skipped": [{"key": "a", "reason": "no"}]}
CALLS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "rank": (("a",), SEARCH),
    "explain": (("a", "b"), EXPLAIN),
    "score": (([("a", "b")],), {"scores": [0.5]}),
    "embed": ((["a"],), VECTORS),
    "add": ((["a"], None, None, lambda done: None, True), ADDED),
    "get": (("a",), ITEM),
    "where": (({},), ITEMS),
    "info": ((), INFO),
    "reload": ((), {"id": "a", "items": 1, "seconds": 1}),
}
HOSTILE = ("x", "1", 3, -1, 1.5, True, 10**30, [], [1], [[1]], {}, {"a": 1}, None, "é")


def mutants(value: Any) -> Iterator[Any]:
    """A value with one part of it replaced, in every way."""
    yield from HOSTILE
    if isinstance(value, dict):
        for name in value:
            yield {key: held for key, held in value.items() if key != name}
            yield from ({**value, name: mutant} for mutant in mutants(value[name]))
    if isinstance(value, list):
        for k, held in enumerate(value):
            yield from ([*value[:k], mutant, *value[k + 1 :]] for mutant in mutants(held))
        yield value * 3


@pytest.mark.parametrize("name", CALLS)
def test_a_changed_answer_is_a_result_or_one_error(name: str) -> None:
    arguments, answer = CALLS[name]
    called("sync", lambda request: httpx.Response(200, json=answer), name, *arguments)
    refused = 0
    for mutant in mutants(answer):
        handle, asked = in_turn(httpx.Response(200, json=mutant))
        try:
            called("sync", handle, name, *arguments)
        except CampError as error:
            refused += 1
            assert len(str(error)) < 500  # noqa: PT017 # the others may be used
        assert len(asked) == 1
    assert refused > 20


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"scores": [NaN]}',
        b'{"scores": [1e999]}',
        b'{"scores": [1e300]}',
        b'{"scores": [' + b"[" * 80 + b"]" * 80 + b"]}",
        b'{"scores": [' + b"9" * 5000 + b"]}",
        b'{"scores": ["0.5"]}',
        b'{"scores": [true]}',
    ],
    ids=lambda content: str(content[:16]),
)
def test_what_is_no_answer_is_one_error(name: str, content: bytes) -> None:
    handle, _ = in_turn(httpx.Response(200, headers={"Content-Type": "application/json"}, content=content))
    with pytest.raises(CampError) as caught:
        called("sync", handle, name, *CALLS[name][0])
    assert len(str(caught.value)) < 500


def test_only_json_and_jpeg_are_answers(kind: str) -> None:
    handle, _ = in_turn(httpx.Response(200, text="<html>"))
    with pytest.raises(CampError, match="expected application/json"):
        called(kind, handle)
    for content, content_type in ((b"<svg>", "image/jpeg"), (b"\xff\xd8\xff", "text/html")):
        handle, _ = in_turn(httpx.Response(200, headers={"Content-Type": content_type}, content=content))
        with pytest.raises(CampError, match="expected a JPEG"):
            called(kind, handle, "thumbnail", "a")


def test_pages_that_lead_nowhere_end(kind: str) -> None:
    for following in (0, 1, -1, 7, 201):
        items = [] if following == 1 else [ITEM, ITEM]
        answer = httpx.Response(200, json={"items": items, "next_offset": following})
        with pytest.raises(CampError, match="next_offset"):
            called(kind, in_turn(answer)[0], "where", {})


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body without an end."""

    def __init__(self, part: bytes) -> None:
        self._part, self.parts = part, 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.parts += 1
            yield self._part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


def test_an_answer_without_an_end_is_cut_off(kind: str) -> None:
    for status in (200, 500):
        body = Endless(bytes(1 << 20))
        with pytest.raises(CampError, match="more than 16 MiB"):
            called(kind, lambda request, body=body: httpx.Response(status, stream=body))  # noqa: B023 # called at once
        assert body.parts == (wire.MAX_ANSWER_BYTES >> 20) + 1


def test_an_answer_that_drips_is_cut_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = Endless(b" ")
    monkeypatch.setattr(wire.time, "monotonic", lambda: float(body.parts))
    with pytest.raises(CampError, match="timeout_s"):
        called(kind, lambda request: httpx.Response(200, stream=body))
    assert body.parts == 31


def test_compressed_answers_are_not_expanded(kind: str) -> None:
    """They are not asked for: a small one could take gigabytes."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"\x1f\x8b" + bytes(20)))

    with pytest.raises(CampError, match="expected JSON"):
        called(kind, handle)
    assert asked[0].headers["accept-encoding"] == "identity"


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("url", url)
            for url in ("", "localhost:8000", "ftp://a", "http://", "http://a:x", "http://u:p@a", "http://a?b", 3)
        ),
        *(("key", key) for key in ("", "a b", "a\nb", "é", 3, b"a")),
        *(("timeout_s", seconds) for seconds in (0, -1, float("nan"), float("inf"), "3", None, True)),
        *(("retries", count) for count in (-1, 1.5, None, True)),
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_wrong_arguments_are_refused(client: Any, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as caught:
        client(**{"url": URL, name: value})
    if name == "key" and value:
        assert str(value) not in str(caught.value)


def test_requests_go_below_the_path_of_the_address(kind: str) -> None:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=ITEM)

    for url in ("https://example.org/search", "https://example.org/search/"):
        transport = answering(handle)
        if kind == "sync":
            Client(url, "secret-key", transport=transport).get("a/../ü?#%2F.png")
        else:
            asyncio.run(AsyncClient(url, "secret-key", transport=transport).get("a/../ü?#%2F.png"))
        assert asked[-1].url.raw_path == b"/search/v1/items/a%2F..%2F%C3%BC%3F%23%252F.png"
        assert asked[-1].headers["authorization"] == "Bearer secret-key"


def test_without_httpx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    for client in (Client, AsyncClient):
        with pytest.raises(MissingExtraError, match=r"httpx is not installed; .*client"):
            client(URL)


def test_patches_turn_metadata_into_others() -> None:
    rng = np.random.default_rng(0)

    def drawn(depth: int = 0) -> Any:
        kind = rng.integers(0, 4 if depth < 3 else 2)
        if kind < 2:
            return [int(rng.integers(0, 3)), [None], "a"][rng.integers(0, 3)]
        return {name: drawn(depth + 1) for name in "abc" if rng.random() < 0.6}

    for _ in range(300):
        old, new = ({name: drawn() for name in "abcd" if rng.random() < 0.7} for _ in range(2))
        assert merged(old, patch_to(old, new)) == new
