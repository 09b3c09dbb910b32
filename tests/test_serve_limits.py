"""`camp serve` under load and attack: keys, limits, refusals, reloading, and input that nobody would send."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import Retriever
from camp_sdk.server.answers import ProblemAnswer
from camp_sdk.server.fetching import Fetcher, is_public
from camp_sdk.server.page import Page
from camp_sdk.server.problems import Problem
from camp_sdk.server.settings import Settings
from tests.helpers.serving import KEY, WRITE_KEY, WRITES, Served, key_files, served
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

QUERY = "a small red circle"
COUNT = 40
READS = {"Authorization": f"Bearer {KEY}"}


def fill(retriever: Retriever, path: Path, seed: int = 0, count: int = COUNT) -> Path:
    """An index of features."""
    features = np.random.default_rng(seed).standard_normal((count, 5, FEATURE_WIDTH), dtype=np.float32)
    with retriever.open_index(path, create=True, precision="float32") as index:
        index.add(features, keys=map(str, range(count)))
    return path


@pytest.fixture(scope="module")
def filled(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an index. Read only."""
    return fill(feature_retriever, tmp_path_factory.mktemp("limits") / "photos.index")


@pytest.fixture
def settings(feature_bundle: Path, filled: Path) -> dict[str, Any]:
    return {"bundle": feature_bundle, "index": filled, "backend": "onnxruntime"}


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


# Keys and hosts


@pytest.fixture(scope="module")
def keyed(feature_bundle: Path, filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    files = key_files(tmp_path_factory.mktemp("keys"), reading=True)
    with served(bundle=feature_bundle, index=filled, backend="onnxruntime", host="0.0.0.0", **files) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "reads", "writes"),
    [
        ({}, 401, 401),
        ({"Authorization": f"Basic {KEY}"}, 401, 401),
        ({"Authorization": KEY}, 401, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401, 401),
        ({"Authorization": "Bearer "}, 401, 401),
        ({"Authorization": f"Bearer {KEY} {WRITE_KEY}"}, 401, 401),
        ({"Authorization": "Bearer \xe9"}, 401, 401),
        (READS, 200, 403),
        ({"authorization": f"bearer  {KEY} "}, 200, 403),
        (WRITES, 200, 404),
    ],
    ids=str,
)
def test_keys(keyed: Served, headers: dict[str, str], reads: int, writes: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/items/1"), ("GET", "/metrics")):
        assert keyed(method, path, headers=encoded).status_code == reads
    for method in ("DELETE", "PUT", "PATCH"):
        done = keyed(method, "/v1/items/none", headers=encoded, json={"metadata": {}})
        assert done.status_code == (writes if method != "PUT" or writes != 404 else 422)
    for path in ("/", "/health", "/ready", "/openapi.json"):
        assert keyed("GET", path).status_code == 200


def test_without_keys_for_writing_nobody_writes(settings: dict[str, Any]) -> None:
    with served(**settings) as running:
        for method, path in (("DELETE", "/v1/items/1"), ("POST", "/v1/items"), ("POST", "/v1/reload")):
            assert problem(running(method, path, headers=WRITES))["status"] == 403
        assert running("GET", "/v1/items/1").status_code == 200


@pytest.mark.parametrize("content", ["", "# nothing\n", "too short\n", "a key with spaces in it\n", "ключ" * 10])
def test_a_file_of_keys_that_cannot_be_used(settings: dict[str, Any], tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.txt").write_text(content)
    with pytest.raises(ValueError, match=r"keys\.txt") as refused:
        Served(Settings(**settings, keys=tmp_path / "keys.txt"))
    assert not content.strip() or content.strip() not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_served_without_keys(settings: dict[str, Any], host: str) -> None:
    with pytest.raises(ValueError, match="keys"):
        Settings(**settings, host=host)
    assert not Settings(**settings, host=host, without_keys=True).is_local


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8000"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://shop.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
    ],
    ids=str,
)
def test_pages_of_other_sites(settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    with served(**settings, allow_origin=("https://shop.example",)) as running:
        done = running("GET", "/v1/items/1", headers=headers)
        assert done.status_code == status
        allowed = done.headers.get("access-control-allow-origin")
        assert allowed == ("https://shop.example" if headers.get("Origin") == "https://shop.example" else None)


def test_every_answer_has_the_headers(keyed: Served) -> None:
    for path, status in (("/", 200), ("/health", 200), ("/nowhere", 401), ("/v1/items/1", 401)):
        done = keyed("GET", path, headers={"X-Request-ID": "mine-1"})
        assert done.status_code == status
        assert done.headers["x-request-id"] == "mine-1"
        assert done.headers["x-content-type-options"] == "nosniff"
        assert done.headers["referrer-policy"] == "no-referrer"
        assert done.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in done.headers["content-security-policy"]
        assert "server" not in done.headers
    assert keyed("GET", "/", headers={"X-Request-ID": "a b\x7f"}).headers["x-request-id"] != "a b\x7f"


def test_a_page_allows_its_own_blocks_by_their_hashes() -> None:
    page = Page.of("<style>a{}</style><script>1</script><script type=module>2</script>")
    policy = page.headers["Content-Security-Policy"]
    script = "'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"  # of "1"
    assert f"script-src {script} 'sha256-" in policy
    assert "style-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert "script-src 'none'" in Page.of("<p>").headers["Content-Security-Policy"]


# Fetching


def test_nothing_is_fetched_unless_its_host_is_allowed() -> None:
    fetcher = Fetcher(("pictures.example", "other.example:8080"), 1000)
    for url in (
        "http://127.0.0.1/a.png",
        "http://pictures.example:81/a.png",
        "https://other.example/a.png",
        "http://user:password@pictures.example/a.png",
        "http://pictures.example.evil/a.png",
        "http://pictures.example/a b",
        "http://[/a.png",
        "http://pictures.example:x/",
        "ftp://pictures.example/a.png",
    ):
        with pytest.raises(Problem) as refused:
            fetcher.fetch(url)
        assert refused.value.status == 422


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_an_allowed_host_must_have_a_public_address(host: str) -> None:
    with pytest.raises(Problem) as refused:
        Fetcher((host.strip("[]"), host), 1000).fetch(f"http://{host}/a.png")
    assert refused.value.status == 422


def test_public_addresses() -> None:
    assert all(map(is_public, ("8.8.8.8", "2001:4860:4860::8888")))
    private = ("0.0.0.0", "100.64.0.1", "192.168.0.1", "224.0.0.1", "fe80::1%eth0", "fd00::1", "::", "2002:a00:1::")
    assert not any(map(is_public, private))


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


# Hostile input


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, 1e308, [], [[]], {}, {"": ""}, ["a"] * 50),
    *("", " ", "a", "0", "\x00", "\ud800", "\u202e", "x" * 20_000, "🦊" * 50, "a red circle", "../../etc/passwd"),
    *("'; DROP TABLE items; --", "data:", "data:image/png;base64,AAAA", "http://127.0.0.1/"),
    *({"or": []}, {"a": {"gt": None}}, {"a": {"in": [1, "2"]}}),
]
VALID: dict[str, Any] = {
    "/v1/search": {"query": QUERY, "top_k": 3, "offset": 1, "where": {"a": 1}, "shortlist": 0, "explain": False},
    "/v1/explain": {"query": QUERY, "key": "1"},
    "/v1/score": {"pairs": [{"text": QUERY, "key": "1"}]},
    "/v1/rerank": {"query": QUERY, "documents": ["0", "1"], "top_n": 1, "return_documents": True},
    "/rerank": {"query": QUERY, "texts": ["0", "1"], "raw_scores": False},
    "/v1/embeddings": {"input": [QUERY], "encoding_format": "float", "dimensions": None},
    "/v1/items": {"items": [{"key": "new", "picture": "AAAA", "metadata": {"a": 1}}]},
}


def mutated(rng: random.Random, value: Any) -> Any:
    """A value of a request, of which something is changed, left out, doubled or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.7:
        name = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[name]
        else:
            changed[name if rng.random() < 0.9 else "other"] = mutated(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.5:
        return [mutated(rng, value[0]), *value[1:]] * rng.choice([1, 1, 2, 300])
    if rng.random() < 0.1:
        nested: Any = value
        for _ in range(rng.choice([5, 20, 300])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return rng.choice(VALUES)


def damaged(rng: random.Random, body: bytes) -> bytes:
    """A body of which bytes are changed or cut off."""
    if rng.random() < 0.3:
        return body[: rng.randrange(len(body) + 1)]
    found = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def requests_of(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    """A request that is nearly one that is answered."""
    path = rng.choice(list(VALID))
    body = json.dumps(mutated(rng, VALID[path])).encode()
    kind = rng.choice(
        ["application/json"] * 8 + ["text/plain", "multipart/form-data; boundary=x", "", "image/png", "é"]
    )
    if rng.random() < 0.2:
        body = damaged(rng, body)
    if rng.random() < 0.1:
        body = b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n' + damaged(rng, b"3\r\n--x--\r\n")
        kind = "multipart/form-data; boundary=x"
    if rng.random() < 0.15:
        part = rng.choice(
            ["/v1/items", "/v1/items/" + rng.choice(["1", "%00", "%ff", "..%2f", "a/thumbnail", "%F0%9F"])]
        )
        query = {
            name: str(rng.choice(VALUES))[:200].encode("utf-8", "replace") for name in ("where", "offset", "limit")
        }
        return rng.choice(["GET", "PUT", "PATCH", "DELETE", "POST"]), part, {"content": body, "params": query}
    return "POST", path, {"content": body, "headers": {"Content-Type": kind.encode("latin-1")}}


def test_mutated_requests_are_never_a_fault_of_the_server(
    feature_bundle: Path, feature_retriever: Retriever, tmp_path: Path
) -> None:
    index = fill(feature_retriever, tmp_path / "photos.index")
    rng, seen = random.Random(7), set()
    with served(bundle=feature_bundle, index=index, backend="onnxruntime", **key_files(tmp_path)) as running:
        for _ in range(600):
            method, path, options = requests_of(rng)
            options["headers"] = {**options.get("headers", {}), **WRITES}
            done = running(method, path, **options)
            seen.add(done.status_code)
            assert done.status_code < 500, (method, path, options, done.text)
            assert "Traceback" not in done.text
            assert str(tmp_path) not in done.text
            assert str(feature_bundle) not in done.text
        assert running.post("/v1/search", {"query": QUERY}).status_code == 200
    assert {200, 400, 404, 409, 415, 422} <= seen
