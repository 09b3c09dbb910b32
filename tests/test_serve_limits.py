"""`camp serve` under load and attack: keys, limits, refusals, reloading, and input that nobody would send."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import Retriever
from camp_sdk.server import dispatch
from camp_sdk.server.pictures import PICTURE_PAIRS
from camp_sdk.server.settings import Settings
from camp_sdk.server.turns import Turns
from camp_sdk.server.uploads import Uploads
from tests.helpers.serving import ITEMS, WRITES, Served, fill, key_files, picture_bytes, problem, served
from tests.helpers.tiny import CAPTIONS

QUERY = "a small red circle"
COUNT = ITEMS


@pytest.fixture(scope="module")
def filled(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an index. Read only."""
    return fill(feature_retriever, tmp_path_factory.mktemp("limits") / "photos.index")


@pytest.fixture
def settings(feature_bundle: Path, filled: Path) -> dict[str, Any]:
    return {"bundle": feature_bundle, "index": filled, "backend": "onnxruntime"}


# Together is as one after another


def test_searches_that_wait_are_answered_together_as_each_alone(settings: dict[str, Any]) -> None:
    wanted = [
        {"query": text, "top_k": top_k, "offset": offset}
        for text in CAPTIONS
        for top_k, offset in ((1, 0), (5, 0), (7, 3), (40, 20))
    ]
    wanted += [{"query": CAPTIONS[0], "shortlist": 6, "offset": 4}, {"query": CAPTIONS[1], "shortlist": 6}]
    wanted += [{"query": CAPTIONS[0], "where": {"a": 1}}]
    with served(**settings) as running:
        alone = [running.found("/v1/search", one) for one in wanted]
        with running.serving.dispatcher.lanes.turns:
            started = [running.start("POST", "/v1/search", json=one) for one in wanted]
            bad = running.start("POST", "/v1/search", json={"query": "qqq"})
            waiting(running, COUNT * (4 * len(CAPTIONS) + 2) + 2 * 6)
        together = [one.result(30).json() for one in started]
        assert bad.result(30).status_code == 422
        # One by one at first; then in one batch for each of the lengths, sizes and conditions that are not mixed.
        counted = samples(running)
        assert counted["camp_batch_requests_sum"] == 2 * len(wanted) + 1
        assert len(wanted) < counted["camp_batch_requests_count"] < len(wanted) + 10
    for one, other in zip(together, alone, strict=True):
        assert [match["key"] for match in one["matches"]] == [match["key"] for match in other["matches"]]
        # Texts of several lengths are encoded and scored together, padded: sums have other last bits.
        np.testing.assert_allclose(
            [match["logit"] for match in one["matches"]], [match["logit"] for match in other["matches"]], atol=1e-5
        )
        assert (one["shortlist"], one["unknown_words"]) == (other["shortlist"], other["unknown_words"])


def samples(running: Served) -> dict[str, float]:
    """The figures of /metrics without labels."""
    lines = [line.split(" ") for line in running("GET", "/metrics").text.splitlines() if "{" not in line]
    return {name: float(value) for name, *_, value in lines if name != "#"}


def waiting(running: Served, pairs: int) -> None:
    """Wait until requests for so many pairs wait."""
    arrived = threading.Event()
    for _ in range(20_000):
        if running.serving.dispatcher.admission.pairs >= pairs:
            return
        arrived.wait(0.001)
    raise AssertionError(f"{running.serving.dispatcher.admission.pairs} pairs wait, not {pairs}")


def test_a_large_search_answers_as_the_retriever(
    settings: dict[str, Any], feature_retriever: Retriever, filled: Path
) -> None:
    with feature_retriever.open_index(filled) as index:
        expected = feature_retriever.rank(QUERY, index, 10)
    with served(**settings, batch_pairs=8) as running:  # every search is a large one
        started = [running.start("POST", "/v1/search", json={"query": QUERY, "top_k": 10}) for _ in range(4)]
        for one in started:
            assert [(m["key"], m["logit"]) for m in one.result(30).json()["matches"]] == [
                (m.key, m.logit) for m in expected
            ]


def test_without_an_explainer_a_search_with_explanations_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(**settings) as running:
        with running.serving.services.use() as service:
            model = service.retriever.model
        graphs = {name: graph for name, graph in model.graphs.items() if name != "explainer"}
        monkeypatch.setattr(type(model), "graphs", property(lambda model: graphs))
        for path, content in (("search", {"explain": True}), ("explain", {"key": "1"})):
            assert problem(running.post(f"/v1/{path}", {"query": QUERY, **content}))["status"] == 409
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200


def test_beyond_the_limit_of_waiting_reads_requests_are_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_READS", 0)
    with served(**settings) as running:
        refused = running("GET", "/v1/items")
        assert (problem(refused)["status"], refused.headers["Retry-After"]) == (429, "1")


def test_the_description_is_made_once(settings: dict[str, Any]) -> None:
    with served(**settings) as running:
        assert running.app.openapi() is running.app.openapi()


# Pairs that a request chooses itself


def test_chosen_pairs_and_pictures_are_counted_and_give_way(
    picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with picture_retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add([picture_bytes(number) for number in range(3)], keys=list("abc"))
    pictures = [f"data:image/png;base64,{base64.b64encode(picture_bytes(10 + n)).decode()}" for n in range(2)]
    asked = [
        ("/v1/score", {"pairs": [{"text": QUERY, "key": key} for key in "abc"]}, 3),
        ("/v1/rerank", {"query": QUERY, "documents": ["a", *pictures]}, 3 + 2 * PICTURE_PAIRS),
        ("/rerank", {"query": pictures[0], "texts": CAPTIONS}, len(CAPTIONS) + PICTURE_PAIRS),
        ("/v1/embeddings", {"input": pictures}, 2 * PICTURE_PAIRS),
    ]
    settings = {"bundle": picture_bundle, "index": tmp_path / "photos.index", "backend": "onnxruntime"}
    with served(**settings, batch_pairs=8) as running:  # any block of pairs is one after which others come first
        given: list[str] = []
        monkeypatch.setattr(Turns, "give_way", lambda turns: float(given.append(path) or 0))
        before = 0.0
        for path, content, pairs in asked:
            running.found(path, content)
            counted = samples(running)["camp_pairs_total"]
            assert (path, counted - before) == (path, pairs)
            assert path in given
            before = counted
        assert running.serving.dispatcher.admission.rate > 0


# Backpressure


def test_beyond_the_limit_of_waiting_pairs_requests_are_refused(settings: dict[str, Any]) -> None:
    with served(**settings, max_waiting_pairs=2 * COUNT) as running:
        with running.serving.dispatcher.lanes.turns:
            taken = [running.start("POST", "/v1/search", json={"query": QUERY}) for _ in range(2)]
            waiting(running, 2 * COUNT)
            refused = running.post("/v1/search", {"query": QUERY})
            assert problem(refused)["status"] == 429
            assert int(refused.headers["retry-after"]) >= 1
        assert [one.result(30).status_code for one in taken] == [200, 200]
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200
        assert 'camp_refusals_total{reason="pairs"} 1.0' in running("GET", "/metrics").text


def test_a_request_that_takes_too_long_is_dropped(settings: dict[str, Any]) -> None:
    with served(**settings, time_limit=0.1) as running:
        with running.serving.dispatcher.lanes.turns:
            assert problem(running.post("/v1/search", {"query": QUERY}))["status"] == 504
            assert running.serving.dispatcher.admission.pairs == 0
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200


def test_a_change_that_takes_too_long_says_what_became_of_it(
    settings: dict[str, Any], feature_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, remove = threading.Event(), Uploads.remove

    def late(uploads: Uploads, key: str) -> None:
        answered.wait(30)
        remove(uploads, key)

    monkeypatch.setattr(Uploads, "remove", late)
    settings["index"] = fill(feature_retriever, tmp_path / "photos.index")
    with served(**settings, **key_files(tmp_path), time_limit=0.1) as running:
        try:
            begun = problem(running("DELETE", "/v1/items/1", headers=WRITES))
            waited = problem(running("DELETE", "/v1/items/2", headers=WRITES))
        finally:
            answered.set()
        assert (begun["status"], waited["status"]) == (504, 504)
        assert ("made all the same" in begun["detail"], "dropped" in waited["detail"]) == (True, True)
    with feature_retriever.open_index(settings["index"]) as index:
        assert ("1" in index, "2" in index) == (False, True)


def test_a_client_that_goes_away_frees_its_work(settings: dict[str, Any]) -> None:
    with served(**settings) as running:
        body = json.dumps({"query": QUERY}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            if len(messages) == 1:
                waiting(running, COUNT)  # gone when its search waits
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search"}
        scope |= {"headers": headers, "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}
        with running.serving.dispatcher.lanes.turns:
            asyncio.run_coroutine_threadsafe(running.app(scope, receive, send), running.loop).result(30)
            assert running.serving.dispatcher.admission.pairs == 0
        assert sent[0]["status"] == 499
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused(settings: dict[str, Any], declared: bool) -> None:
    body = json.dumps({"query": "x" * 3000}).encode()

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    with served(**settings, max_body=2000) as running:
        content = body if declared else stream()
        headers = {"Content-Type": "application/json"}
        assert problem(running("POST", "/v1/search", content=content, headers=headers))["status"] == 413


def test_a_body_that_does_not_arrive_is_not_waited_for(settings: dict[str, Any]) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    with served(**settings, time_limit=0.1) as running:
        done = running("POST", "/v1/search", content=stream(), headers={"Content-Type": "application/json"})
        assert problem(done)["status"] == 408


def test_a_body_that_nobody_reads_is_limited_too(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    with served(**settings, **key_files(tmp_path), max_body=2000) as running:
        monkeypatch.setattr(running.serving.services, "load", lambda: answered.wait(30))
        try:
            assert problem(running("POST", "/v1/reload", content=stream(), headers=WRITES))["status"] == 413
        finally:
            answered.set()


# Reloading


def test_reloading_changes_over_without_a_failed_or_mixed_answer(
    feature_bundle: Path, feature_retriever: Retriever, tmp_path: Path
) -> None:
    for seed, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        fill(feature_retriever, tmp_path / folder / "photos.index", seed, COUNT + seed)
    current = tmp_path / "current"
    current.symlink_to("one")
    answers, ended = [], threading.Event()
    settings = {"bundle": feature_bundle, "index": current / "photos.index", "backend": "onnxruntime"}
    with served(**settings, **key_files(tmp_path)) as running:
        first = running.found("/v1/search", {"query": QUERY, "top_k": 50})

        def search() -> None:
            while not ended.is_set():
                answers.append(running.post("/v1/search", {"query": QUERY, "top_k": 50}))

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        with running.serving.services.use() as old:
            pass
        for target in ("two", "one", "two"):
            (tmp_path / "fresh").symlink_to(target)
            (tmp_path / "fresh").rename(current)
            done = running("POST", "/v1/reload", headers=WRITES)
            assert (done.status_code, done.json()["items"]) == (200, COUNT + (target == "two"))
        second = running.found("/v1/search", {"query": QUERY, "top_k": 50})
        ended.set()
        for thread in threads:
            thread.join()
        assert first != second
        assert {one.text for one in answers if one.status_code != 200} == set()
        assert all(one.json() in (first, second) for one in answers)
        with pytest.raises(ValueError, match="closed"):
            len(old.corpus)  # nobody uses the first service any more


def test_a_reload_that_fails_leaves_what_was_served(feature_bundle: Path, filled: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(feature_bundle, tmp_path / "bundle"))
    with served(bundle=bundle, index=filled, backend="onnxruntime", **key_files(tmp_path)) as running:
        expected = running.found("/v1/search", {"query": QUERY})
        (bundle / "manifest.json").write_text("{}")
        assert problem(running("POST", "/v1/reload", headers=WRITES))["status"] == 500
        assert running.found("/v1/search", {"query": QUERY}) == expected
        assert "camp_loads_total 1.0" in running("GET", "/metrics").text


def test_before_it_has_loaded_a_server_is_not_ready(settings: dict[str, Any]) -> None:
    made = Served(Settings(**settings))
    loaded, load = threading.Event(), made.serving.services.load

    def late() -> Any:
        loaded.wait(30)
        return load()

    made.serving.services.load = late  # type: ignore[method-assign] # to have it take as long as the test does
    with made.running() as running:
        assert problem(running("GET", "/ready"))["status"] == 503
        assert problem(running.post("/v1/search", {"query": QUERY}))["status"] == 503
        assert running("GET", "/health").status_code == 200
        loaded.set()
        assert running.loaded()("GET", "/ready").status_code == 200
        running.serving.services.draining = True
        assert problem(running("GET", "/ready"))["detail"] == "the server is draining"
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200
