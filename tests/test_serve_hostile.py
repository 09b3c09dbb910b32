"""`camp serve`: requests that nearly are ones are never a fault of the server."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from camp_sdk import Retriever
from tests.helpers.serving import WRITES, fill, key_files, served

QUERY = "a small red circle"

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
        for _ in range(400):
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
