"""The example of `camp serve`, over the network: a server of the demo's pictures, and a client that asks it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from camp_sdk import InputError, Retriever
from camp_sdk.client import AsyncClient, Client
from camp_sdk.server.app import create_app
from camp_sdk.server.run import Server, listener
from examples.serve import run, search

QUERY = "a small red circle"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, picture_bundle: Path, scenes: Path) -> Path:
    """What `make demo` leaves, in small."""
    folder = tmp_path_factory.mktemp("build") / "demo"
    shutil.copytree(picture_bundle, folder / "bundle")
    shutil.copytree(scenes, folder / "data")
    return folder


@pytest.fixture(scope="module")
def address(demo: Path) -> Iterator[str]:
    """The address of a server that listens."""
    assert run.index_pictures(demo).added == 8
    settings = run.settings_of(demo, 0)
    app = create_app(settings)
    server = Server(app, settings)

    async def with_own_scope(scope: Scope, receive: Receive, send: Send) -> None:
        # pytest turns uvicorn's own log of requests on, which cannot write the path as the guard changes it.
        await app(dict(scope), receive, send)

    server.config.app = with_own_scope
    with listener(settings) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        while not app.state.serving.services.ready and thread.is_alive():
            thread.join(0.02)
        host, port = sock.getsockname()
        yield f"http://{host}:{port}"
        server.drain(0.0)
        thread.join()


def test_the_demo_comes_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run make demo first") as caught:
        run.index_pictures(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_encodes_nothing(address: str, demo: Path) -> None:
    added = run.index_pictures(demo)
    assert (added.added, added.replaced, added.unchanged) == (0, 0, 8)


def test_the_search_prints_matches_and_where_words_look(
    address: str, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(QUERY, address, 3)
    printed = capsys.readouterr().out.splitlines()
    with Retriever(demo / "bundle") as retriever, retriever.open_index(demo / "photos.index") as index:
        expected = retriever.rank(QUERY, index, 3)
        words = retriever.explain(QUERY, index.gallery([expected[0].key or ""])).words
    assert [line.split()[:3] for line in printed[:3]] == [
        [str(match.rank), f"{match.score:.3f}", match.key] for match in expected
    ]
    assert "'colours': [" in printed[0]
    assert [line.split(":")[0] for line in printed[3:]] == list(words)


def test_both_clients_over_the_network(address: str, demo: Path) -> None:
    with Client(address) as client:
        keys, found = list(client.keys()), client.rank(QUERY, where={"objects": {"gte": 1}})
        thumbnail = client.thumbnail(keys[0])

    async def asked() -> None:
        async with AsyncClient(address) as client:
            assert [key async for key in client.keys()] == keys  # noqa: SIM118 # a call of the client
            rankings = await asyncio.gather(*(client.rank(QUERY, where={"objects": {"gte": 1}}) for _ in range(8)))
            for ranking in rankings:
                assert [match.key for match in ranking] == [match.key for match in found]
            assert await client.thumbnail(keys[0]) == thumbnail

    asyncio.run(asked())
    assert len(keys) == 8
