"""A server in this process: its application on a loop of its own, called as through HTTP."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from camp_sdk import Retriever
from camp_sdk.server.answers import ProblemAnswer
from camp_sdk.server.app import create_app
from camp_sdk.server.serving import Serving
from camp_sdk.server.settings import Settings
from tests.helpers.tiny import FEATURE_WIDTH

ITEMS = 40
KEY, WRITE_KEY = "reading-key-0123456789", "writing-key-0123456789"
WRITES = {"Authorization": f"Bearer {WRITE_KEY}"}


class Served:
    """A running server."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self.serving: Serving = self.app.state.serving
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(self.app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)

    def start(self, method: str, path: str, **options: Any) -> Future[httpx.Response]:
        """Begin a request."""
        return asyncio.run_coroutine_threadsafe(self._client.request(method, path, **options), self.loop)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Make a request."""
        return self.start(method, path, **options).result(30)

    def post(self, path: str, content: Any, **options: Any) -> httpx.Response:
        """Make a request with a body in JSON."""
        return self("POST", path, json=content, **options)

    def found(self, path: str, content: Any, **options: Any) -> Any:
        """The answer of a request that succeeds."""
        done = self.post(path, content, **options)
        assert done.status_code == 200, done.text
        return done.json()

    @contextmanager
    def running(self) -> Iterator[Served]:
        """Run the application until the end of the context."""
        thread = threading.Thread(target=self.loop.run_forever)
        thread.start()
        lifespan = self.app.router.lifespan_context(self.app)
        try:
            self._run(lifespan.__aenter__())
            yield self
        finally:
            self._run(lifespan.__aexit__(None, None, None))
            self._run(self._client.aclose())
            self._run(self.loop.shutdown_default_executor())
            self.loop.call_soon_threadsafe(self.loop.stop)
            thread.join()
            self.loop.close()

    def loaded(self) -> Served:
        """Wait until the bundle and the corpus are open."""
        assert self.serving.loading is not None
        self._run(_waited(self.serving.loading))
        return self

    def _run(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(60)


async def _waited(future: asyncio.Future[Any]) -> Any:
    return await future


@contextmanager
def served(**settings: Any) -> Iterator[Served]:
    """A server with these settings, loaded."""
    with Served(Settings(**settings)).running() as running:
        yield running.loaded()


def key_files(folder: Path, reading: bool = False) -> dict[str, Path]:
    """Settings with keys for writing, and for reading."""
    found = {"write_keys": folder / "write-keys.txt"} | ({"keys": folder / "keys.txt"} if reading else {})
    for path, key in zip(found.values(), (WRITE_KEY, KEY), strict=False):
        path.write_text(f"# a comment\n\n{key}\n")
    return found


def picture_bytes(number: int, size: tuple[int, int] = (60, 40), form: str = "PNG") -> bytes:
    """A picture file of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def fill(retriever: Retriever, path: Path, seed: int = 0, count: int = ITEMS) -> Path:
    """An index of features."""
    features = np.random.default_rng(seed).standard_normal((count, 5, FEATURE_WIDTH), dtype=np.float32)
    with retriever.open_index(path, create=True, precision="float32") as index:
        index.add(features, keys=map(str, range(count)))
    return path


def problem(done: Any) -> dict[str, Any]:
    """A problem, whose content says nothing of the machine."""
    assert done.headers["content-type"] == "application/problem+json", done.text
    found = done.json()
    ProblemAnswer.model_validate(found)
    assert found["status"] == done.status_code
    assert found["request_id"] == done.headers["x-request-id"]
    assert "Traceback" not in done.text
    assert "/" not in found["detail"].replace("application/json", ""), found["detail"]
    return dict(found)
