"""Both clients of a server in this process, called alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

from camp_sdk.client import AsyncClient, Client
from tests.helpers.serving import Served

URL = "http://localhost:8000"
PROBLEM = {"Content-Type": "application/problem+json"}
Handler = Callable[[httpx.Request], httpx.Response]


class Passed(httpx.BaseTransport):
    """Passes the requests of a thread to a server's event loop."""

    def __init__(self, server: Served) -> None:
        self._server, self._inner = server, httpx.ASGITransport(server.app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answered() -> httpx.Response:
            request.stream = httpx.ByteStream(request.read())  # which both kinds of clients read
            response = await self._inner.handle_async_request(request)
            return httpx.Response(response.status_code, headers=response.headers, stream=_Read(await response.aread()))

        return asyncio.run_coroutine_threadsafe(answered(), self._server.loop).result(30)


class _Read(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Any:
        yield self._content


class Caller:
    """A client of a server.

    Args:
        server: The server.
        kind: "sync" or "async".
        **options: Arguments of the client.
    """

    def __init__(self, server: Served, kind: str, **options: Any) -> None:
        self._server, url = server, "http://localhost"
        self._client: Any
        if kind == "sync":
            self._client = Client(url, transport=Passed(server), **options)
        else:
            self._client = AsyncClient(url, transport=httpx.ASGITransport(server.app), **options)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method; what it yields is returned as a list."""
        found = getattr(self._client, name)(*arguments, **options)
        if hasattr(found, "__aiter__"):
            return self._wait(_listed(found))
        if hasattr(found, "__await__"):
            return self._wait(found)
        return list(found) if hasattr(found, "__next__") else found

    def close(self) -> None:
        """Close the client."""
        self("close")

    def _wait(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._server.loop).result(30)


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


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
    """An error of a server."""
    content = json.dumps({"title": "x", "status": status, "detail": detail})
    return httpx.Response(status, headers=PROBLEM | {"X-Request-ID": "id-7"} | headers, content=content)


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
