"""The application: `create_app` puts the parts of a server together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from camp_sdk import __version__
from camp_sdk.runtime.errors import CampError
from camp_sdk.server.guard import Guard
from camp_sdk.server.keys import Keys
from camp_sdk.server.openapi import describe
from camp_sdk.server.problems import Problem, handler
from camp_sdk.server.routes import about, items, rerank, search
from camp_sdk.server.serving import Serving
from camp_sdk.server.settings import Settings

ROUTERS = (about.router, search.router, rerank.router, items.router)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CORS_HEADERS = ("Authorization", "Content-Type", "X-Request-ID")


def create_app(settings: Settings) -> FastAPI:
    """Make the application; it loads the bundle and the corpus when it starts.

    Args:
        settings: The settings.

    Raises:
        InputError: A file of keys cannot be used.
        OSError: A file of keys cannot be read.
    """
    keys = Keys.read(settings.keys, settings.write_keys)
    serving = Serving(settings)
    # Its pages of documentation load scripts of other sites.
    app = FastAPI(
        title="camp serve",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.serving, app.state.hidden = serving, serving.services.hidden
    app.openapi = cache(partial(describe, app))  # type: ignore[method-assign] # as FastAPI's documentation does it
    for router in ROUTERS:
        app.include_router(router)
    for kind in (Problem, HTTPException, RequestValidationError, ValidationError, CampError):
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, settings=settings, keys=keys, metrics=serving.metrics)
    if settings.allow_origin:  # outermost, so that errors have its headers too
        origins, exposed = settings.allow_origin, ("X-Request-ID", "Retry-After")
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=CORS_HEADERS,
            expose_headers=exposed,
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load in a thread, while requests are answered with status 503 already."""
    serving: Serving = app.state.serving
    loop = asyncio.get_running_loop()
    if not serving.services.ready:
        serving.loading = loop.run_in_executor(None, serving.services.load)
    try:
        yield
    finally:
        if serving.loading is not None:
            await asyncio.wait([serving.loading])
        await loop.run_in_executor(None, serving.dispatcher.close)
