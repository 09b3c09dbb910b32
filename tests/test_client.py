"""The clients of `camp serve`: each call gives what `Retriever` and `Index` give."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import BundleError, Explanation, Index, IndexItem, InputError, Match, Ranking, Retriever
from camp_sdk.client import AsyncClient, Client, contents, methods, paging
from camp_sdk.pictures import read_shrunk
from camp_sdk.runtime.encoded import global_vectors
from tests.helpers.calling import Caller
from tests.helpers.serving import Served, picture_bytes, served
from tests.helpers.tiny import CAPTIONS

QUERY = "a small red circle"
COUNT = 9
KEYS = [f"photos/{number} ü.png" for number in range(COUNT)]


def metadata_of(number: int) -> dict[str, Any]:
    return {"number": number, "even": not number % 2, "camera": {"maker": "Acme", "lens": None}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    """The file of an index of pictures that lie beside it. Read only."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "photos").mkdir()
    for number, key in enumerate(KEYS):
        (folder / key).write_bytes(picture_bytes(number))
    with picture_retriever.open_index(folder / "photos.index", create=True, precision="float32") as index:
        index.add([folder / key for key in KEYS], metadata=map(metadata_of, range(COUNT)))
    return folder / "photos.index"


@pytest.fixture(scope="module")
def server(picture_bundle: Path, photos: Path) -> Iterator[Served]:
    with served(bundle=picture_bundle, index=photos, backend="onnxruntime") as running:
        yield running


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, picture_retriever: Retriever) -> Path:
    """The file of an index of texts. Read only."""
    path = tmp_path_factory.mktemp("texts") / "texts.index"
    with picture_retriever.open_index(path, create=True, kind="text") as index:
        index.add(CAPTIONS)
    return path


@pytest.fixture(scope="module")
def text_server(picture_bundle: Path, texts: Path) -> Iterator[Served]:
    with served(bundle=picture_bundle, index=texts, backend="onnxruntime") as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def call(server: Served, kind: str) -> Iterator[Caller]:
    caller = Caller(server, kind)
    yield caller
    caller.close()


@pytest.fixture
def index(picture_retriever: Retriever, photos: Path) -> Iterator[Index]:
    with picture_retriever.open_index(photos) as opened:
        yield opened


def without_paths(ranking: Ranking) -> list[Match]:
    """The matches as clients see them: paths of pictures stay on the server."""
    return [replace(match, document=None) for match in ranking]


def kinds_of_picture(folder: Path) -> list[Any]:
    """The same picture in every form that is taken."""
    content = picture_bytes(50)
    path = folder / "a.png"
    path.write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    opened.load()
    return [path, content, bytearray(content), io.BytesIO(content), opened, np.asarray(opened)]


# Searching


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3, "offset": 2},
        {"top_k": 100, "shortlist": 0},
        {"top_k": 3, "shortlist": 4},
        {"where": {"or": [{"even": True}, {"camera.maker": "ACME"}]}},
        {"where": {"number": 99}},
    ],
    ids=str,
)
def test_a_text_ranks_pictures(
    call: Caller, picture_retriever: Retriever, index: Index, options: dict[str, Any]
) -> None:
    expected = picture_retriever.rank(QUERY, index, **options)
    found = call("rank", QUERY, **options)
    assert list(found) == without_paths(expected)
    assert (type(found), found.shortlist) == (Ranking, expected.shortlist)


def test_unknown_words_are_named(call: Caller) -> None:
    assert call("rank", "a red zebra above a Wombat").unknown_words == ("zebra", "Wombat")


def test_pictures_of_every_kind_find_similar_ones(
    call: Caller, picture_retriever: Retriever, index: Index, tmp_path: Path
) -> None:
    options = {"top_k": 4, "by": "image", "where": {"even": True}, "offset": 1}
    expected = without_paths(picture_retriever.rank(picture_bytes(50), index, **options))
    assert len(expected) == 4
    for picture in kinds_of_picture(tmp_path):
        assert list(call("rank", picture, **options)) == expected


def test_a_picture_ranks_texts(text_server: Served, kind: str, picture_retriever: Retriever, texts: Path) -> None:
    call = Caller(text_server, kind)
    with picture_retriever.open_index(texts) as index:
        expected = picture_retriever.rank(picture_bytes(50), index, 4, offset=1)
    assert list(call("rank", picture_bytes(50), 4, offset=1)) == list(expected)
    assert expected[0].document in CAPTIONS
    for query, by in ((picture_bytes(50), "image"), (QUERY, None)):
        with pytest.raises(InputError):
            call("rank", query, by=by)
    call.close()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "I;16", "1"])
def test_images_of_pillow_are_sent_as_a_retriever_sees_them(mode: str) -> None:
    image = Image.open(io.BytesIO(picture_bytes(1)))
    image = (
        image.convert("L").convert("I").point(lambda v: v * 256).convert(mode)
        if mode == "I;16"
        else image.convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    image.info["exif"] = exif.tobytes()
    sent = contents.picture_bytes(image, "the picture")
    seen, expected = (read_shrunk(picture, 1000, "the picture") for picture in (sent, image))
    np.testing.assert_array_equal(seen, expected)


def test_a_large_array_keeps_all_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3000, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(contents.picture_bytes(pixels, "the picture"))) as sent:
        np.testing.assert_array_equal(np.asarray(sent), pixels)


# Scores, explanations and vectors


def explanation_of(retriever: Retriever, image: Any) -> Explanation:
    return replace(retriever.explain(QUERY, image), pixels=None)


def assert_same(found: Explanation, expected: Explanation) -> None:
    for name in ("to_words", "to_regions", "region_gates", "word_gates"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.float32
    for name in ("words", "score", "grid", "pixels"):
        assert getattr(found, name) == getattr(expected, name)


def test_a_pair_is_explained(call: Caller, picture_retriever: Retriever, index: Index, tmp_path: Path) -> None:
    expected = explanation_of(picture_retriever, index.gallery([KEYS[3]]))
    found = call("explain", QUERY, KEYS[3])
    assert_same(found, expected)
    np.testing.assert_array_equal(found.word_map(2), expected.word_map(2))
    expected = explanation_of(picture_retriever, picture_bytes(50))
    for picture in kinds_of_picture(tmp_path):
        assert_same(call("explain", QUERY, picture), expected)


def test_pairs_are_scored(
    call: Caller, picture_retriever: Retriever, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = picture_bytes(50), picture_bytes(51)
    images = {KEYS[2]: picture_bytes(2), KEYS[5]: picture_bytes(5), own: own, other: other}
    pairs = [(image, text) for text in CAPTIONS[:3] for image in images]
    expected = picture_retriever.score([(images[image], text) for image, text in pairs])
    assert len(set(expected.tolist())) > 3
    found = call("score", pairs)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # sums of other batches come in another order
    assert (found.dtype, call("score", []).shape) == (np.float32, (0,))
    for name, module, most in (("MAX_PAIRS", methods, 5), ("MAX_REQUEST_BYTES", contents, 10_000)):
        monkeypatch.setattr(module, name, most)  # several requests
        np.testing.assert_allclose(call("score", iter(pairs)), found, atol=1e-6)


def test_vectors_are_those_of_the_retriever(
    call: Caller, picture_retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture_bytes(50), picture_bytes(51)]
    images = global_vectors(picture_retriever.encode_images(pictures).encoded.tensors)
    words = global_vectors(picture_retriever.encode_texts(CAPTIONS[:2]).encoded.tensors)
    expected = np.stack([words[0], images[0], images[1], words[1]])
    items = [CAPTIONS[0], *pictures, CAPTIONS[1]]
    found = call("embed", items)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)  # sums of other batches come in another order
    monkeypatch.setattr(methods, "MAX_INPUTS", 3)
    np.testing.assert_allclose(call("embed", iter(items)), expected, atol=1e-6)
    assert call("embed", []).shape == (0, 0)


def test_the_server_is_described(call: Caller, picture_retriever: Retriever) -> None:
    found = call("info")
    assert (found.fingerprint, found.variant) == (picture_retriever.bundle.fingerprint, "scalar")
    assert (found.kind, found.store, found.items, found.writable, found.shortlist) == (
        "image",
        "index",
        COUNT,
        False,
        None,
    )
    assert found.reads_pictures
    assert found.backend == "onnxruntime"


def test_a_thumbnail_is_a_jpeg(call: Caller, server: Served) -> None:
    found = call("thumbnail", KEYS[0])
    with Image.open(io.BytesIO(found)) as opened:
        assert (opened.format, opened.size) == ("JPEG", (60, 40))
    with pytest.raises(InputError, match="no item"):
        call("thumbnail", "nothing")


# Items


def seen(items: Any) -> list[IndexItem]:
    return [replace(item, document=None) for item in items]


def test_items_are_read_in_pages(call: Caller, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_ITEMS", 2)
    assert call("keys") == KEYS
    even = {"even": True}
    assert call("where", {}) == seen(index)
    for offset, limit in ((0, None), (1, 3), (2, 2), (0, 4), (4, None), (9, None), (0, 100)):
        assert call("where", even, offset, limit) == seen(index.where(even, offset, limit))
    expected = index.get(KEYS[1])
    assert expected is not None
    assert [call("get", KEYS[1])] == seen([expected])
    assert call("get", "nothing") is None


def test_wrong_conditions_are_found_before_anything_is_sent(call: Caller) -> None:
    for conditions in ({"year": {"above": 3}}, "year", {"year": object()}):
        with pytest.raises(InputError):
            call("where", conditions)
        with pytest.raises(InputError):
            call("rank", QUERY, where=conditions)


# The clients themselves


def test_both_clients_have_the_same_calls() -> None:
    sync, asynchronous = ({name for name in dir(one) if not name.startswith("_")} for one in (Client, AsyncClient))
    assert sync == asynchronous
    assert all(getattr(Client, name).__doc__ for name in sync)


def test_what_a_bundle_or_corpus_lacks(
    feature_bundle: Path, feature_retriever: Retriever, tmp_path: Path, kind: str
) -> None:
    features = np.random.default_rng(0).standard_normal((3, 5, 12), dtype=np.float32)
    feature_retriever.encode_images(features).save(tmp_path / "gallery")
    with served(bundle=feature_bundle, gallery=tmp_path / "gallery", backend="onnxruntime") as running:
        caller = Caller(running, kind)
        expected = feature_retriever.rank(QUERY, feature_retriever.open_gallery(tmp_path / "gallery"))
        found = caller("rank", QUERY)
        assert [(one.corpus_id, one.logit, one.metadata) for one in found] == [
            (one.corpus_id, one.logit, one.metadata) for one in expected
        ]
        for arguments in (("keys",), ("get", "0"), ("explain", QUERY, picture_bytes(1)), ("embed", [picture_bytes(1)])):
            with pytest.raises(BundleError):
                caller(*arguments)
        caller.close()


def test_threads_share_a_client(server: Served, picture_retriever: Retriever, index: Index) -> None:
    queries = [CAPTIONS[number % 4] for number in range(16)]
    expected = {query: without_paths(picture_retriever.rank(query, index)) for query in set(queries)}
    found: dict[int, Any] = {}
    call = Caller(server, "sync")
    threads = [
        threading.Thread(target=lambda k=k: found.setdefault(k, list(call("rank", queries[k])))) for k in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, query in enumerate(queries):
        assert [match.key for match in found[k]] == [match.key for match in expected[query]]
        # Texts that are scored together: sums come in another order.
        scores = [match.score for match in expected[query]]
        assert [match.score for match in found[k]] == pytest.approx(scores, abs=1e-6)
    call.close()
