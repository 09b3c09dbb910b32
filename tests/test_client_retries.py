"""The clients of `camp serve`: when they ask again, and the errors that answers are."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from camp_sdk.client import ModelInfo, asking
from camp_sdk.runtime.errors import BackendError, BundleError, BusyError, CampError, InputError
from tests.helpers.calling import INFO, PROBLEM, called, in_turn, problem


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
