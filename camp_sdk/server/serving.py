"""What all endpoints share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.server.dispatch import Dispatcher
from camp_sdk.server.fetching import Fetcher, Spent
from camp_sdk.server.metrics import Metrics
from camp_sdk.server.pictures import check_pictures, picture_of
from camp_sdk.server.service import Service
from camp_sdk.server.settings import Settings
from camp_sdk.server.thumbnails import Thumbnails

T = TypeVar("T")


class Serving:
    """The parts of a running server.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(settings, self.metrics)
        self.services = self.dispatcher.services
        self.fetcher = Fetcher(settings.allow_fetch, settings.max_body)
        self.loading: asyncio.Future[Service] | None = None  # set when the server starts
        self.thumbnails = Thumbnails(settings.max_megapixels)

    async def pictures(self, request: Request, service: Service, texts: Sequence[str]) -> list[bytes]:
        """The pictures that fields of a request hold or name.

        Args:
            request: The request.
            service: The service.
            texts: The fields.

        Raises:
            InputError: A field holds no picture.
            Problem: The bundle takes none, or one is not fetched.
        """
        if not texts:
            return []
        check_pictures(service)
        spent = Spent()
        return await self.dispatcher.read(request, lambda: [picture_of(text, self.fetcher, spent) for text in texts])

    async def read(self, request: Request, run: Callable[[], T]) -> T:
        """Have a function called in a thread; see `Dispatcher.read`."""
        return await self.dispatcher.read(request, run)


def serving_of(request: Request) -> Serving:
    """The server that a request is for."""
    found: Serving = request.app.state.serving
    return found


def answer(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(json.dumps(content), status, media_type="application/json")
