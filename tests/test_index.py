"""Indexes rank as galleries of the same items do, for every precision, with filters, pages and shortlists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import Gallery, Index, InputError, Ranking, Retriever
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

Features = NDArray[np.float32]
QUERY = "a small red circle"
PRECISIONS = ("float32", "float16", "int8")
COUNT = 90


@pytest.fixture(scope="module")
def many() -> Features:
    """Features of ninety images [90, 5, 12], of which the last thirty repeat the first thirty."""
    found = np.random.default_rng(5).standard_normal((60, 5, FEATURE_WIDTH), dtype=np.float32)
    return np.concatenate([found, found[:30]])


def metadata_of(number: int) -> dict[str, Any]:
    """Metadata of an image: some fields are missing for some."""
    found: dict[str, Any] = {"number": number, "album": str(2020 + number % 3), "tags": ["dog", "sea"][: number % 3]}
    return found if number % 4 else {**found, "camera": {"maker": "Ö & Söhne"}, "rated": True}


def key_of(number: int) -> str:
    return f"image {number}"


def filled(retriever: Retriever, path: Path, images: Features, precision: str | None = None) -> Index:
    """An index of all images, with their metadata."""
    index = retriever.open_index(path, create=True, precision=precision)
    numbers = range(len(images))
    index.add(images, keys=map(key_of, numbers), metadata=map(metadata_of, numbers))
    return index


def numbers(ranking: Ranking) -> list[tuple[int, float]]:
    """The images of a ranking, and their logits."""
    return [(match.corpus_id, match.logit) for match in ranking]


@pytest.fixture(params=PRECISIONS)
def both(
    request: pytest.FixtureRequest, feature_retriever: Retriever, many: Features, tmp_path: Path
) -> Iterator[tuple[Index, Gallery]]:
    gallery = feature_retriever.encode_images(many, map(key_of, range(COUNT)), precision=request.param)
    with filled(feature_retriever, tmp_path / "photos.index", many, request.param) as index:
        yield index, gallery


@pytest.mark.parametrize("shortlist", [None, 7, 40, COUNT, 500])
def test_an_index_ranks_as_a_gallery_does(
    feature_retriever: Retriever, both: tuple[Index, Gallery], shortlist: int | None
) -> None:
    index, gallery = both
    for query in CAPTIONS:
        expected = feature_retriever.rank(query, gallery, 7, shortlist)
        found = feature_retriever.rank(query, index, 7, shortlist)
        assert numbers(found) == numbers(expected)
        assert [match.key for match in found] == [match.document for match in expected]
        assert [match.metadata for match in found] == [metadata_of(match.corpus_id) for match in expected]
        assert [match.rank for match in found] == list(range(1, 8))


def test_several_queries_rank_as_with_a_gallery(feature_retriever: Retriever, both: tuple[Index, Gallery]) -> None:
    index, gallery = both
    for shortlist in (None, 30):
        expected = feature_retriever.rank(CAPTIONS, gallery, COUNT // 3, shortlist)
        assert list(map(numbers, feature_retriever.rank(CAPTIONS, index, COUNT // 3, shortlist))) == list(
            map(numbers, expected)
        )


@pytest.mark.parametrize("shortlist", [None, 11])
def test_a_filter_ranks_as_a_gallery_of_what_it_leaves(
    feature_retriever: Retriever, both: tuple[Index, Gallery], shortlist: int | None
) -> None:
    index, gallery = both
    left = [number for number in range(COUNT) if metadata_of(number)["album"] == "2021"]
    expected = feature_retriever.rank(QUERY, gallery.select(left), 9, shortlist)
    found = feature_retriever.rank(QUERY, index, 9, shortlist, where={"album": "2021"})
    assert numbers(found) == [(left[number], logit) for number, logit in numbers(expected)]


@pytest.mark.parametrize("shortlist", [None, 40])
def test_pages_are_slices_of_the_whole(
    feature_retriever: Retriever, both: tuple[Index, Gallery], shortlist: int | None
) -> None:
    index, _ = both
    whole = feature_retriever.rank(QUERY, index, shortlist or COUNT, shortlist)
    for corpus in both:
        pages = [feature_retriever.rank(QUERY, corpus, 9, shortlist, offset=offset) for offset in range(0, 99, 9)]
        assert [numbers([match])[0] for page in pages for match in page] == numbers(whole)
        assert [match.rank for page in pages for match in page] == [match.rank for match in whole]


def test_a_changed_index_ranks_as_a_gallery_of_what_is_in_it(
    feature_retriever: Retriever, both: tuple[Index, Gallery]
) -> None:
    index, gallery = both
    assert index.remove(map(key_of, range(0, COUNT, 3))) == COUNT // 3
    left = [number for number in range(COUNT) if number % 3]
    for shortlist in (None, 20):
        expected = feature_retriever.rank(QUERY, gallery.select(left), 9, shortlist)
        assert numbers(feature_retriever.rank(QUERY, index, 9, shortlist)) == numbers(expected)
    assert list(index.keys()) == [key_of(number) for number in left]


@pytest.mark.parametrize("shortlist", [None, 4])
def test_texts_rank_as_in_a_gallery(
    feature_retriever: Retriever, many: Features, tmp_path: Path, shortlist: int | None
) -> None:
    texts = [f"{text} {more}" for more in ("star", "red", "above") for text in CAPTIONS]
    gallery = feature_retriever.encode_texts(texts)
    with feature_retriever.open_index(tmp_path / "texts.index", create=True, kind="text") as index:
        index.add(texts, metadata=[{"number": number} for number in range(len(texts))])
        for image in many[:5]:
            expected = feature_retriever.rank(image, gallery, 4, shortlist)
            found = feature_retriever.rank(image, index, 4, shortlist)
            assert numbers(found) == numbers(expected)
            assert [(match.document, match.key) for match in found] == [(match.document,) * 2 for match in expected]
        few = feature_retriever.rank(many[0], index, 4, shortlist, where={"number": {"lt": 5}})
        assert numbers(few) == numbers(feature_retriever.rank(many[0], gallery.select(range(5)), 4, shortlist))


def test_similar_images_are_those_with_the_nearest_vectors(
    feature_retriever: Retriever, many: Features, both: tuple[Index, Gallery]
) -> None:
    index, gallery = both
    found = feature_retriever.rank(many[3], index, 6, by="image")
    vectors = gallery.encoded.tensors["image.global"]
    products = vectors @ vectors[3]
    assert [match.corpus_id for match in found][:2] == [3, 63]  # the same features: in the order of the index
    np.testing.assert_allclose([match.score for match in found], np.sort(products)[::-1][:6], atol=1e-6)
    page = feature_retriever.rank(many[3], index, 3, by="image", offset=3, where={"number": {"gte": 0}})
    assert numbers(page) == numbers(found)[3:]


def test_graphs_in_float16_read_an_index_in_float16(feature_bundle: Path, many: Features, tmp_path: Path) -> None:
    with Retriever(feature_bundle, "onnxruntime", "float16") as retriever:
        gallery = retriever.encode_images(many)
        assert gallery.precision == "float16"
        with filled(retriever, tmp_path / "photos.index", many) as index:
            for shortlist in (None, 20):
                expected = retriever.rank(QUERY, gallery, 9, shortlist)
                assert numbers(retriever.rank(QUERY, index, 9, shortlist)) == numbers(expected)


@pytest.mark.parametrize("budget", [100_000, 1_000_000])
def test_a_budget_of_memory_changes_nothing(feature_bundle: Path, many: Features, tmp_path: Path, budget: int) -> None:
    with Retriever(feature_bundle, "onnxruntime", memory_budget_bytes=budget) as retriever:
        gallery = retriever.encode_images(many, precision="float16")
        with filled(retriever, tmp_path / "photos.index", many) as index:
            for shortlist in (None, 20):
                expected = retriever.rank(CAPTIONS, gallery, 9, shortlist)
                found = retriever.rank(CAPTIONS, index, 9, shortlist)
                assert list(map(numbers, found)) == list(map(numbers, expected))


def test_other_engines_rank_an_index_as_a_gallery(feature_bundle: Path, many: Features, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    with Retriever(feature_bundle, "openvino") as retriever:
        gallery = retriever.encode_images(many, precision="int8")
        with filled(retriever, tmp_path / "photos.index", many, "int8") as index:
            for shortlist in (None, 20):
                expected = retriever.rank(CAPTIONS, gallery, 9, shortlist)
                found = retriever.rank(CAPTIONS, index, 9, shortlist)
                assert list(map(numbers, found)) == list(map(numbers, expected))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"offset": -1}, "`offset` is -1: expected a whole number, 0 or more"),
        ({"offset": 1.5}, "`offset` is 1.5"),
        ({"by": "text"}, "by is 'text': expected 'image' with an index of images, or None"),
        ({"shortlist": 2, "top_k": 3}, "`shortlist` is 2"),
    ],
)
def test_arguments_of_a_ranking(
    feature_retriever: Retriever, both: tuple[Index, Gallery], arguments: dict[str, Any], error: str
) -> None:
    with pytest.raises(InputError, match=error):
        feature_retriever.rank(QUERY, both[0], **arguments)


def test_galleries_have_no_metadata_to_filter(feature_retriever: Retriever, both: tuple[Index, Gallery]) -> None:
    with pytest.raises(InputError, match="`where` filters an index"):
        feature_retriever.rank(QUERY, both[1], where={"a": 1})
    with pytest.raises(InputError, match="by is 'image': expected 'image' with an index of images"):
        feature_retriever.rank(np.zeros((5, 12), np.float32), both[1], by="image")
    with pytest.raises(InputError, match="expected a string"):
        feature_retriever.rank(Path("a.jpg"), both[0])


# Parts of an index


def test_a_gallery_of_some_items_ranks_as_the_index(feature_retriever: Retriever, both: tuple[Index, Gallery]) -> None:
    index, gallery = both
    chosen = [7, 3, 60, 11, 3]
    part = index.gallery(key_of(number) for number in chosen)
    assert (part.documents, part.precision) == (tuple(map(key_of, chosen)), gallery.precision)
    expected = feature_retriever.score_matrix(gallery.select(chosen), [QUERY], logits=True)
    assert feature_retriever.score_matrix(part, [QUERY], logits=True).tolist() == expected.tolist()
    index.remove([key_of(0), key_of(3)])
    part = index.gallery([key_of(11)])
    assert feature_retriever.explain(QUERY, part).score == feature_retriever.explain(QUERY, gallery.select([11])).score
    for keys in ([key_of(3)], [], "image 7", [7]):
        with pytest.raises(InputError, match="key"):
            index.gallery(keys)  # type: ignore[arg-type] # what is refused


def test_a_gallery_of_texts(feature_retriever: Retriever, tmp_path: Path, features: Features) -> None:
    with feature_retriever.open_index(tmp_path / "texts.index", create=True, kind="text") as index:
        index.add(CAPTIONS, keys=map(str, range(len(CAPTIONS))))
        part = index.gallery(["4", "1"])
        assert part.documents == (CAPTIONS[4], CAPTIONS[1])
        expected = feature_retriever.score_matrix(features, feature_retriever.encode_texts(CAPTIONS).select([4, 1]))
        assert feature_retriever.score_matrix(features, part).tolist() == expected.tolist()


def test_pages_of_items(both: tuple[Index, Gallery]) -> None:
    index, _ = both
    keys = [item.key for item in index.where({"album": "2021"})]
    pages = [[item.key for item in index.where({"album": "2021"}, offset, 7)] for offset in range(0, 40, 7)]
    assert [key for page in pages for key in page] == keys
    assert [item.key for item in index.where({}, 85)] == list(map(key_of, range(85, 90)))
    for offset, limit in ((-1, None), (0, 0), (0, -1), (0.5, 1)):
        with pytest.raises(InputError):
            index.where({}, offset, limit)  # type: ignore[arg-type] # what is refused
