"""The clients of `camp serve`, whatever answers: errors, retries, and answers of strangers."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from camp_sdk.client import AsyncClient, Client, ModelInfo, asking, wire
from camp_sdk.client.changes import patch_to
from camp_sdk.runtime.errors import BackendError, BundleError, BusyError, CampError, InputError, MissingExtraError
from camp_sdk.server.uploads import merged

URL = "http://localhost:8000"
Handler = Callable[[httpx.Request], httpx.Response]
PROBLEM = {"Content-Type": "application/problem+json"}


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answering(handler: Handler) -> httpx.MockTransport:
    """A transport whose answers arrive as those of a network do: httpx has read those with content already."""

    def handle(request: httpx.Request) -> httpx.Response:
        answer = handler(request)
        if not answer.is_stream_consumed:
            return answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    return httpx.MockTransport(handle)


def called(kind: str, handler: Handler, name: str = "info", *arguments: Any, **options: Any) -> Any:
    """The result of one call of a client whose requests a function answers."""
    transport = answering(handler)
    if kind == "sync":
        with Client(URL, transport=transport, **options) as client:
            found = getattr(client, name)(*arguments)
            return list(found) if hasattr(found, "__next__") else found

    async def call() -> Any:
        async with AsyncClient(URL, transport=transport, **options) as client:
            found = getattr(client, name)(*arguments)
            return [one async for one in found] if hasattr(found, "__aiter__") else await found

    return asyncio.run(call())


def problem(status: int, detail: str, **headers: str) -> httpx.Response:
    content = json.dumps({"title": "x", "status": status, "detail": detail})
    return httpx.Response(status, headers=PROBLEM | {"X-Request-ID": "id-7"} | headers, content=content)


# Retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of clients, which are not waited for."""
    taken: list[float] = []

    async def note(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(time, "sleep", taken.append)
    monkeypatch.setattr(asyncio, "sleep", note)
    monkeypatch.setattr(asking, "SPREAD", 0.0)
    return taken


MODEL = {
    "id": "camp-1",
    "variant": "paper",
    "fingerprint": "1",
    "backend": "openvino",
    "precision": "float32",
    "activation": "sigmoid",
    "max_words": 47,
    "reads_pictures": True,
    "global_vectors": True,
    "explains": True,
    "corpus": {"kind": "image", "store": "index", "items": 3, "writable": True, "shortlist": None},
}
INFO = {"data": [MODEL]}


def in_turn(*answers: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A handler that gives these answers one after another, the last one for ever, and what it was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, asked


@pytest.mark.parametrize("status", [429, 503])
def test_busy_servers_are_asked_again_when_they_say(kind: str, status: int, pauses: list[float]) -> None:
    busy = [problem(status, "too many", **{"Retry-After": "7"}), problem(status, "too many")]
    handle, asked = in_turn(*busy, httpx.Response(200, json=INFO))
    assert isinstance(called(kind, handle), ModelInfo)
    assert (len(asked), pauses) == (3, [7.0, 1.0])


def test_after_the_retries_it_is_a_busy_error(kind: str, pauses: list[float]) -> None:
    handle, asked = in_turn(problem(503, "the server is loading: try again"))
    with pytest.raises(BusyError, match=r"loading: try again \(status 503 Service Unavailable, request id-7\)"):
        called(kind, handle, retries=2)
    assert (len(asked), pauses) == (3, [0.5, 1.0])


@pytest.mark.parametrize("retry_after", ["61", "999999999", "9" * 400])
def test_a_server_cannot_have_a_client_wait_for_long(kind: str, retry_after: str, pauses: list[float]) -> None:
    handle, asked = in_turn(problem(429, "too many", **{"Retry-After": retry_after}))
    with pytest.raises(BusyError):
        called(kind, handle)
    assert sum(pauses) <= 3.5
    assert all(pause <= asking.MAX_PAUSE_S for pause in pauses)
    assert len(asked) <= 4


@pytest.mark.parametrize("retry_after", ["-1", "nan", "1e3", "Wed, 21 Oct 2026 07:28:00 GMT", "٣", ""])
def test_what_is_no_number_of_seconds_is_passed_over(kind: str, retry_after: str, pauses: list[float]) -> None:
    refused = httpx.Response(503, headers=[(b"Retry-After", retry_after.encode())])
    handle, _ = in_turn(refused, httpx.Response(200, json=INFO))
    assert isinstance(called(kind, handle), ModelInfo)
    assert pauses == [0.5]


def test_pauses_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    handle, _ = in_turn(problem(429, "too many", **{"Retry-After": "8"}))
    with pytest.raises(BusyError):
        called("sync", handle, retries=20)
    assert len(set(taken)) > 1
    assert all(8 <= pause <= 10 for pause in taken)


def test_only_requests_that_did_not_arrive_are_sent_again(kind: str, pauses: list[float]) -> None:
    handle, asked = in_turn(httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.Response(200, json=INFO))
    assert isinstance(called(kind, handle), ModelInfo)
    assert len(asked) == 3
    for error, message in ((httpx.ReadError("reset\x1b"), r"reset\\x1b"), (httpx.ReadTimeout(""), "timeout_s")):
        handle, asked = in_turn(error)
        with pytest.raises(CampError, match=f"^POST /v1/reload has no answer: .*{message}"):
            called(kind, handle, "reload")
        assert len(asked) == 1
    handle, asked = in_turn(httpx.ConnectError("refused"))
    with pytest.raises(CampError, match=r"^GET /v1/models has no answer: refused$"):
        called(kind, handle, retries=1)
    assert len(asked) == 2


# Errors


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InputError),
        (401, InputError),
        (403, InputError),
        (404, InputError),
        (409, BundleError),
        (413, InputError),
        (415, InputError),
        (422, InputError),
        (405, CampError),
        (500, CampError),
        (501, BackendError),
        (504, CampError),
        (599, CampError),
    ],
)
def test_statuses_are_the_errors_of_the_package(kind: str, status: int, error: type[CampError]) -> None:
    handle, asked = in_turn(problem(status, "what is wrong"))
    with pytest.raises(CampError, match=r"^what is wrong") as caught:
        called(kind, handle)
    assert (caught.type, len(asked)) == (error, 1)
    assert ("request id-7" in str(caught.value)) == (error is not InputError)


def test_what_is_not_camp_serve_is_no_missing_item(kind: str) -> None:
    """Behind a wrong address, no item would be there."""
    for answer in (httpx.Response(404, text="<html>"), httpx.Response(404, json={"detail": "Not Found"})):
        for name, argument in (("get", "a"), ("remove", ["a"])):
            with pytest.raises(CampError, match="expected its address") as caught:
                called(kind, in_turn(answer)[0], name, argument)
            assert not isinstance(caught.value, InputError)


def test_redirects_are_not_followed(kind: str) -> None:
    handle, asked = in_turn(httpx.Response(307, headers={"Location": "http://elsewhere/"}))
    with pytest.raises(CampError, match="status 307"):
        called(kind, handle, key="secret-key")
    assert len(asked) == 1


def test_a_hostile_error_is_one_short_line(kind: str) -> None:
    handle, _ = in_turn(problem(500, "a\x1b[2J\n\u202e" + "b" * 100_000, **{"X-Request-ID": "c" * 10_000}))
    with pytest.raises(CampError) as caught:
        called(kind, handle)
    message = str(caught.value)
    assert (len(message.splitlines()), len(message) < 1500, "\x1b" in message) == (1, True, False)
    for body in (b"", b"[]", b"{", b"[" * 100_000, b'{"detail": 3}', b'{"detail": ""}', b"\xff"):
        handle, _ = in_turn(httpx.Response(500, headers=PROBLEM, content=body))
        with pytest.raises(CampError, match="expected its address"):
            called(kind, handle)


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
