"""Both clients of a server in this process, called alike."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from camp_sdk.client import AsyncClient, Client
from tests.helpers.serving import Served


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
