"""`camp serve`: each endpoint answers what the `Retriever` answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import Index, Ranking, Retriever
from camp_sdk.server import answers
from tests.helpers.serving import Served, picture_bytes, served
from tests.helpers.tiny import CAPTIONS

QUERY, COUNT = "a small red circle", 12
KEYS = [f"photos/{number} ü.png" for number in range(COUNT)]


def metadata_of(number: int) -> dict[str, Any]:
    return {"number": number, "even": not number % 2, "tags": ["sea"] * (number % 3)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    """The file of an index of pictures that lie beside it. Read only."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "photos").mkdir()
    paths = [folder / key for key in KEYS]
    for number, path in enumerate(paths):
        path.write_bytes(picture_bytes(number))
    with picture_retriever.open_index(folder / "photos.index", create=True, precision="float32") as index:
        index.add(paths, metadata=map(metadata_of, range(COUNT)))
    return folder / "photos.index"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    """The file of an index of texts. Read only."""
    path = tmp_path_factory.mktemp("texts") / "texts.index"
    with picture_retriever.open_index(path, create=True, kind="text") as index:
        index.add(CAPTIONS)
    return path


@pytest.fixture(scope="module")
def server(picture_bundle: Path, photos: Path) -> Iterator[Served]:
    with served(bundle=picture_bundle, index=photos, backend="onnxruntime") as running:
        yield running


@pytest.fixture(scope="module")
def text_server(picture_bundle: Path, texts: Path) -> Iterator[Served]:
    with served(bundle=picture_bundle, index=texts, backend="onnxruntime") as running:
        yield running


@pytest.fixture
def index(picture_retriever: Retriever, photos: Path) -> Iterator[Index]:
    with picture_retriever.open_index(photos) as opened:
        yield opened


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def shown(ranking: Ranking) -> list[tuple[Any, ...]]:
    return [(one.rank, one.key, one.score, one.logit, one.corpus_id, one.metadata) for one in ranking]


def matches(answer: Any) -> list[tuple[Any, ...]]:
    answers.SearchAnswer.model_validate(answer)
    names = ("rank", "key", "score", "logit", "corpus_id", "metadata")
    return [tuple(match[name] for name in names) for match in answer["matches"]]


# Searching


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3, "offset": 2},
        {"top_k": 100},
        {"shortlist": 0},
        {"top_k": 3, "shortlist": 4},
        {"top_k": 3, "offset": 3, "shortlist": 4},
        {"top_k": 3, "offset": 4, "shortlist": 4},
        {"where": {"even": True}},
        {"where": {"tags": {"contains": "sea"}}, "top_k": 2, "shortlist": 3},
        {"where": {"number": 99}},
        {"offset": 50},
    ],
    ids=str,
)
def test_a_search_is_a_ranking(
    server: Served, picture_retriever: Retriever, index: Index, options: dict[str, Any]
) -> None:
    expected = picture_retriever.rank(QUERY, index, **options)
    answer = server.found("/v1/search", {"query": QUERY, **options})
    assert matches(answer) == shown(expected)
    assert answer["shortlist"] == expected.shortlist
    assert answer["unknown_words"] == []


def test_unknown_words_are_named(server: Served) -> None:
    answer = server.found("/v1/search", {"query": "a red zebra above a Wombat"})
    assert answer["unknown_words"] == ["zebra", "Wombat"]


def test_a_picture_finds_similar_ones_as_json_and_as_a_file(
    server: Served, picture_retriever: Retriever, index: Index
) -> None:
    picture = picture_bytes(50)
    where = {"even": True}
    expected = shown(picture_retriever.rank(picture, index, 4, by="image", where=where, offset=1))
    wanted = {"top_k": 4, "where": where, "offset": 1}
    for text in (data_url(picture), base64.b64encode(picture).decode()):
        assert matches(server.found("/v1/search", {"picture": text, **wanted})) == expected
    fields = {name: json.dumps(value) for name, value in wanted.items()}
    done = server("POST", "/v1/search", files={"picture": ("a.png", picture)}, data=fields)
    assert matches(done.json()) == expected


def test_a_picture_ranks_texts(text_server: Served, picture_retriever: Retriever, texts: Path) -> None:
    picture = picture_bytes(50)
    with picture_retriever.open_index(texts) as index:
        expected = picture_retriever.rank(picture, index, 4, offset=1)
    answer = text_server.found("/v1/search", {"picture": data_url(picture), "top_k": 4, "offset": 1})
    assert matches(answer) == shown(expected)
    assert [match["document"] for match in answer["matches"]] == [match.document for match in expected]
    assert {match["thumbnail"] for match in answer["matches"]} == {None}


def test_a_gallery_has_numbers_as_keys(
    picture_bundle: Path, picture_retriever: Retriever, photos: Path, tmp_path: Path
) -> None:
    gallery = picture_retriever.encode_images([photos.parent / key for key in KEYS])
    gallery.save(photos.parent / "gallery")
    expected = picture_retriever.rank(QUERY, gallery, 3)
    with served(bundle=picture_bundle, gallery=photos.parent / "gallery", backend="onnxruntime") as running:
        answer = running.found("/v1/search", {"query": QUERY, "top_k": 3, "explain": True})
        assert [(m["key"], m["score"]) for m in answer["matches"]] == [(str(m.corpus_id), m.score) for m in expected]
        assert [m["document"] for m in answer["matches"]] == [Path(m.document or "").name for m in expected]
        assert running("GET", answer["matches"][0]["thumbnail"]).headers["content-type"] == "image/jpeg"
        assert running("GET", "/v1/items").status_code == 409
        assert running("GET", "/v1/items/0").status_code == 409
        assert running.post("/v1/search", {"query": QUERY, "where": {"a": 1}}).status_code == 422
        score = running.found("/v1/score", {"pairs": [{"text": QUERY, "key": answer["matches"][1]["key"]}]})
        assert score["scores"] == pytest.approx([expected[1].score], abs=1e-6)  # sums of blocks of other sizes
        for key in ("12", "-1", "x", "٣", "1" * 5000):
            assert running.post("/v1/score", {"pairs": [{"text": QUERY, "key": key}]}).status_code == 404


# Explaining


def explained(answer: Any) -> dict[str, Any]:
    answers.ExplainAnswer.model_validate(answer)
    return dict(answer)


def test_an_explanation_is_that_of_the_retriever(
    server: Served, picture_retriever: Retriever, index: Index, photos: Path
) -> None:
    expected = picture_retriever.explain(QUERY, photos.parent / KEYS[3])
    by_key = explained(server.found("/v1/explain", {"query": QUERY, "key": KEYS[3]}))
    picture = data_url((photos.parent / KEYS[3]).read_bytes())
    by_picture = explained(server.found("/v1/explain", {"query": QUERY, "picture": picture}))
    assert by_key == by_picture
    assert by_key["words"] == list(expected.words)
    assert by_key["score"] == expected.score
    assert by_key["attention"] == expected.to_words.T.tolist()
    assert by_key["to_regions"] == expected.to_regions.tolist()
    assert by_key["grid"] == list(expected.grid or ())
    assert by_key["size"] == [60, 40]
    answer = server.found("/v1/search", {"query": QUERY, "explain": True, "top_k": 7})
    assert len(matches(answer)) == 7
    first = answer["matches"]
    assert [match["key"] for match in first if "explanation" in match] == [match["key"] for match in first[:5]]
    for match in first[:5]:
        assert match["explanation"] == server.found("/v1/explain", {"query": QUERY, "key": match["key"]})


def test_an_explanation_as_a_picture(server: Served) -> None:
    done = server.post("/v1/explain", {"query": QUERY, "key": KEYS[0]}, headers={"Accept": "image/png"})
    assert done.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(done.content)) as opened:
        assert opened.format == "PNG"


# Scores, orders and vectors


def pair_matrix(retriever: Retriever, photos: Path, texts: list[str]) -> NDArray[np.float32]:
    return retriever.score_matrix([photos.parent / key for key in KEYS], texts)


def test_scores_of_pairs(server: Served, picture_retriever: Retriever, photos: Path) -> None:
    other = picture_bytes(70)
    pairs = [(CAPTIONS[0], KEYS[2]), (CAPTIONS[1], KEYS[2]), (CAPTIONS[0], other), (CAPTIONS[3], KEYS[5])]
    images = [photos.parent / image if isinstance(image, str) else image for _, image in pairs]
    expected = picture_retriever.score([(image, text) for image, (text, _) in zip(images, pairs, strict=True)])
    asked = [
        {"text": text, **({"key": image} if isinstance(image, str) else {"picture": data_url(image)})}
        for text, image in pairs
    ]
    found = server.found("/v1/score", {"pairs": asked})
    answers.ScoreAnswer.model_validate(found)
    # A float32 sum depends on the shape of the block in which a pair is scored.
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)


def test_an_order_of_documents(server: Served, picture_retriever: Retriever, photos: Path) -> None:
    scores = pair_matrix(picture_retriever, photos, [QUERY])[:5, 0]
    order = np.argsort(-scores, kind="stable").tolist()
    asked = {"query": QUERY, "documents": KEYS[:5], "top_n": 3, "return_documents": True, "model": "any"}
    for path in ("/v1/rerank", "/v2/rerank"):
        found = server.found(path, asked)
        answers.RerankAnswer.model_validate(found)
        assert [result["index"] for result in found["results"]] == order[:3]
        assert [result["document"] for result in found["results"]] == [{"text": KEYS[place]} for place in order[:3]]
        np.testing.assert_allclose(
            [result["relevance_score"] for result in found["results"]], scores[order[:3]], atol=1e-6
        )
        assert found["usage"] == {"total_tokens": 6, "pairs": 5}
    ranked = server.found("/rerank", {"query": QUERY, "texts": KEYS[:5], "return_text": True})
    answers.TextRanks.model_validate(ranked)
    assert [(one["index"], one["text"]) for one in ranked] == [(place, KEYS[place]) for place in order]
    raw = server.found("/rerank", {"query": QUERY, "texts": KEYS[:5], "raw_scores": True})
    np.testing.assert_allclose(
        [one["score"] for one in ranked], 1 / (1 + np.exp([-one["score"] for one in raw])), atol=1e-6
    )


def test_documents_may_be_pictures_and_a_picture_orders_texts(
    server: Served, picture_retriever: Retriever, photos: Path
) -> None:
    pictures = [(photos.parent / key).read_bytes() for key in KEYS[:3]]
    by_key = server.found("/v1/rerank", {"query": QUERY, "documents": KEYS[:3]})
    forms: list[Any] = [data_url(pictures[0]), {"image": base64.b64encode(pictures[1]).decode()}, {"text": KEYS[2]}]
    mixed = server.found("/v1/rerank", {"query": {"text": QUERY}, "documents": forms})
    assert [result["index"] for result in mixed["results"]] == [result["index"] for result in by_key["results"]]
    scores = pair_matrix(picture_retriever, photos, CAPTIONS)[1]
    found = server.found("/v1/rerank", {"query": {"image": data_url(pictures[1])}, "documents": CAPTIONS})
    assert [result["index"] for result in found["results"]] == np.argsort(-scores, kind="stable").tolist()
    again = server.found("/rerank", {"query": data_url(pictures[1]), "texts": CAPTIONS})
    assert [one["score"] for one in again] == [result["relevance_score"] for result in found["results"]]


def test_embeddings_are_global_vectors(server: Served, picture_retriever: Retriever, photos: Path) -> None:
    picture = (photos.parent / KEYS[0]).read_bytes()
    texts = picture_retriever.encode_texts(CAPTIONS[:2]).encoded.tensors["text.global"]
    image = picture_retriever.encode_images([picture]).encoded.tensors["image.global"]
    asked = {"input": [CAPTIONS[0], data_url(picture), CAPTIONS[1]], "model": "any"}
    found = server.found("/v1/embeddings", asked)
    answers.EmbeddingsAnswer.model_validate(found)
    assert [one["embedding"] for one in found["data"]] == [texts[0].tolist(), image[0].tolist(), texts[1].tolist()]
    packed = server.found("/v1/embeddings", {**asked, "encoding_format": "base64"})
    for one, other in zip(packed["data"], found["data"], strict=True):
        assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == other["embedding"]
    alone = picture_retriever.encode_texts(CAPTIONS[:1]).encoded.tensors["text.global"][0]
    assert server.found("/v1/embeddings", {"input": CAPTIONS[0]})["data"][0]["embedding"] == alone.tolist()
    assert server.post("/v1/embeddings", {"input": "a star", "dimensions": 7}).status_code == 422


# About


def test_the_model_is_described(server: Served, picture_retriever: Retriever) -> None:
    found = server("GET", "/v1/models").json()
    answers.ModelsAnswer.model_validate(found)
    (model,) = found["data"]
    assert model["fingerprint"] == picture_retriever.bundle.fingerprint
    assert (model["reads_pictures"], model["global_vectors"], model["explains"]) == (True, True, True)
    assert model["corpus"] == {
        "kind": "image",
        "store": "index",
        "items": COUNT,
        "writable": False,
        "shortlist": None,
    }


def test_health_metrics_and_the_page(server: Served) -> None:
    assert server("GET", "/health").json() == {"status": "ok"}
    for path in ("/", "/health", "/ready"):  # some balancers ask for the head alone
        assert server("HEAD", path).status_code == 200
    assert server("GET", "/ready").json() == {"status": "ready"}
    server.found("/v1/search", {"query": QUERY})
    text = server("GET", "/metrics").text
    assert f"camp_items {COUNT}.0" in text
    assert 'camp_requests_total{method="POST",path="/v1/search",status="200"}' in text
    page = server("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "unsafe" not in page.headers["content-security-policy"]


def test_openapi_describes_every_endpoint(server: Served) -> None:
    found = server("GET", "/openapi.json").json()
    assert {"/v1/search", "/v1/explain", "/v1/rerank", "/rerank", "/v1/items/{key}"} <= found["paths"].keys()
    text = json.dumps(found)
    names = set(found["components"]["schemas"])
    referred = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred <= names
    assert found["components"]["schemas"]["SearchRequest"]["examples"]


# Items


def test_items_are_listed_in_pages(server: Served) -> None:
    first = server("GET", "/v1/items", params={"limit": 5}).json()
    answers.ItemsAnswer.model_validate(first)
    assert [item["key"] for item in first["items"]] == KEYS[:5]
    assert first["next_offset"] == 5
    last = server("GET", "/v1/items", params={"limit": 5, "offset": 10}).json()
    assert ([item["key"] for item in last["items"]], last["next_offset"]) == (KEYS[10:], None)
    some = server("GET", "/v1/items", params={"where": json.dumps({"even": False}), "limit": 2, "offset": 1}).json()
    assert [item["key"] for item in some["items"]] == [KEYS[3], KEYS[5]]
    item = server("GET", f"/v1/items/{KEYS[3]}").json()
    assert item == some["items"][0]
    assert item["metadata"] == metadata_of(3)


def test_a_thumbnail_is_small_and_upright_and_says_nothing_else(
    picture_bundle: Path, picture_retriever: Retriever, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Acme"  # turned by a quarter, and the maker of the camera
    pixels = np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    with picture_retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add([tmp_path / "a.jpg"])
    with served(bundle=picture_bundle, index=tmp_path / "photos.index", backend="onnxruntime") as running:
        for form, size in (("thumbnail", (85, 256)), ("picture", (300, 900))):
            done = running("GET", f"/v1/items/a.jpg/{form}")
            with Image.open(io.BytesIO(done.content)) as opened:
                assert (opened.size, opened.format, dict(opened.getexif())) == (size, "JPEG", {})
            again = running("GET", f"/v1/items/a.jpg/{form}", headers={"If-None-Match": done.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert running.found("/v1/explain", {"query": QUERY, "key": "a.jpg"})["size"] == [300, 900]
        (tmp_path / "a.jpg").write_bytes(picture_bytes(1))
        assert running("GET", "/v1/items/a.jpg/picture", headers={"If-None-Match": done.headers["etag"]}).content
