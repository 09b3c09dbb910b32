"""`Client` and `AsyncClient`: the same calls, which wait, and which are awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeVar

from camp_sdk.client.connection import failure_of, import_httpx, options_of, received, sent
from camp_sdk.client.method import Awaiting, Blocking
from camp_sdk.client.methods import Methods
from camp_sdk.client.paging import PageRequest, first_page
from camp_sdk.client.wire import Body, Done, Outcome, Pause, Request, Steps, advance
from camp_sdk.index.items import IndexItem

T = TypeVar("T")


class Client(Methods, Blocking):
    """Calls a server that `camp serve` runs.

    Any number of threads may use one client. Use it as a context manager, or call `close`, to close its connections.

    A request is sent again if the server is busy (as long after as it says, up to a minute) or cannot be connected to.
    Answers have at most 16 MiB. Redirects are not followed.

    Args:
        url: The address of the server, such as "http://127.0.0.1:8000"; with its path behind a reverse proxy.
        key: A key of the server; None for none.
        timeout_s: How long connecting, sending, and receiving an answer may take each, in seconds.
        retries: How often a request is sent again at most.
        transport: A transport of httpx, for proxies, certificates and tests; None for httpx's own.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        MissingExtraError: httpx is not installed (extra ``client``).
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 30.0, retries: int = 3, transport: Any = None
    ) -> None:
        options = options_of(url, key, timeout_s, retries, transport)
        super().__init__(retries)
        self._timeout_s = timeout_s
        self._http = import_httpx().Client(**options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def where(self, conditions: Mapping[str, Any], offset: int = 0, limit: int | None = None) -> Iterator[IndexItem]:
        """Find items by their metadata, as `Index.where` does.

        Items come in pages, and each page shows the index as it is then: an item that is removed meanwhile may hide
        another one.

        Args:
            conditions: The conditions, as `Index.where` takes them; {} for every item.
            offset: How many of the items to leave out at the beginning.
            limit: The most items; None for all.

        Yields:
            The items, in the order in which they were added.

        Raises:
            InputError: A condition is not understood, or a number is out of range.
            BundleError: The server searches a gallery.
            CampError: The server cannot be reached, or failed.
        """
        return self._items(first_page(conditions, offset, limit))

    def keys(self) -> Iterator[str]:
        """Every key, in the order in which items were added; in pages, as `where`."""
        return (item.key for item in self.where({}))

    def run(self, steps: Steps[T]) -> T:
        """Take the steps of a call.

        Args:
            steps: The call.
        """
        outcome: Outcome = None
        while not isinstance(step := advance(steps, outcome), Done):
            outcome = self._take(step)
        return step.result

    def _take(self, step: Request | Pause) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        httpx, body = import_httpx(), Body(step, self._timeout_s)
        try:
            with self._http.stream(**sent(step)) as response:
                for part in response.iter_raw():
                    body.add(part)
                return received(response, body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return failure_of(error)

    def _items(self, asked: PageRequest | None) -> Iterator[IndexItem]:
        while asked is not None:
            page = self.run(self._page(asked))
            yield from page.items
            asked = asked.after(page)


class AsyncClient(Methods, Awaiting):
    """Calls a server that `camp serve` runs, from an event loop of asyncio.

    Its calls are those of `Client`, and are awaited; `where` and `keys` are iterated over with ``async for``. Pictures
    are read, and answers are parsed, in threads. Use it as a context manager, or call `close`, to close its
    connections.

    Args:
        url: As `Client` takes it.
        key: As `Client` takes it.
        timeout_s: As `Client` takes it.
        retries: As `Client` takes it.
        transport: An asynchronous transport of httpx; None for httpx's own.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        MissingExtraError: httpx is not installed (extra ``client``).
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 30.0, retries: int = 3, transport: Any = None
    ) -> None:
        options = options_of(url, key, timeout_s, retries, transport)
        super().__init__(retries)
        self._timeout_s = timeout_s
        self._http = import_httpx().AsyncClient(**options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def where(
        self, conditions: Mapping[str, Any], offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[IndexItem]:
        """Find items by their metadata; see `Client.where`.

        Args:
            conditions: As `Client.where` takes them.
            offset: As `Client.where` takes it.
            limit: As `Client.where` takes it.

        Yields:
            The items, in the order in which they were added.
        """
        return self._items(first_page(conditions, offset, limit))

    async def keys(self) -> AsyncIterator[str]:
        """Every key, in the order in which items were added; in pages, as `where`."""
        async for item in self.where({}):
            yield item.key

    async def run(self, steps: Steps[T]) -> T:
        """Take the steps of a call.

        Args:
            steps: The call.
        """
        outcome: Outcome = None
        while not isinstance(step := await asyncio.to_thread(advance, steps, outcome), Done):
            outcome = await self._take(step)
        return step.result

    async def _take(self, step: Request | Pause) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        httpx, body = import_httpx(), Body(step, self._timeout_s)
        try:
            async with self._http.stream(**sent(step)) as response:
                async for part in response.aiter_raw():
                    body.add(part)
                return received(response, body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return failure_of(error)

    async def _items(self, asked: PageRequest | None) -> AsyncIterator[IndexItem]:
        while asked is not None:
            page = await self.run(self._page(asked))
            for item in page.items:
                yield item
            asked = asked.after(page)
