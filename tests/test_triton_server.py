"""An exported repository on a real Triton server, with a Python stub for each graph: its results are `Retriever`'s."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import Bundle, Retriever
from camp_sdk.client.triton import TritonRanker
from camp_sdk.client.triton_server import TritonServer
from camp_sdk.triton.repository import TritonOptions, export_repository
from tests.helpers.tiny import CAPTIONS
from tests.helpers.triton import needs_triton, triton_server, with_stubs

pytestmark = needs_triton
# Texts are padded to the longest and images come in other batches, which changes the last bits of float32 sums.
TOLERANCE = 1e-5


class Served(NamedTuple):
    folder: Path
    urls: dict[str, str]


@pytest.fixture(scope="module")
def served(picture_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(Bundle(picture_bundle), repository, TritonOptions(device="cpu"))
    with_stubs(repository)
    with triton_server(repository, tmp_path_factory.mktemp("server")) as (http, grpc):
        yield Served(picture_bundle, {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"})


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(6)]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_rankings_are_those_of_the_retriever(
    served: Served, picture_retriever: Retriever, pictures: list[np.ndarray], protocol: str
) -> None:
    names = [f"picture {number}" for number in range(6)]
    expected_images = picture_retriever.encode_images(pictures, names)
    with TritonRanker(served.folder, served.urls[protocol], protocol) as ranker:
        gallery = ranker.encode_images(pictures, names)
        for name, array in expected_images.encoded.tensors.items():
            np.testing.assert_allclose(gallery.encoded.tensors[name], array, atol=TOLERANCE, err_msg=name)
        for query in CAPTIONS:
            found = ranker.rank(query, gallery, top_k=4)
            expected = picture_retriever.rank(query, expected_images, top_k=4, shortlist=0)
            assert [(m.corpus_id, m.document, m.rank) for m in found] == [
                (m.corpus_id, m.document, m.rank) for m in expected
            ]
            np.testing.assert_allclose([m.logit for m in found], [m.logit for m in expected], atol=TOLERANCE)
            np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], atol=TOLERANCE)
            assert found.unknown_words == expected.unknown_words


def test_texts_padded_to_the_longest_are_those_of_the_retriever(served: Served, picture_retriever: Retriever) -> None:
    expected = picture_retriever.encode_texts(CAPTIONS).encoded.tensors
    with TritonRanker(served.folder, served.urls["grpc"]) as ranker:
        found = ranker.encode_texts(CAPTIONS).encoded.tensors
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=TOLERANCE, err_msg=name)


def test_the_ensemble_is_both_encoders(served: Served, picture_retriever: Retriever) -> None:
    spec = picture_retriever.bundle.manifest.pixels
    assert spec is not None
    pixels = np.random.default_rng(3).standard_normal((3, 3, spec.height, spec.width), dtype=np.float32)
    server = TritonServer(served.urls["grpc"], "grpc", 60.0)
    features = server.infer("vision", {"pixels": pixels})["features"]
    expected = server.infer("image", {"features": features})
    found = server.infer("vision_image", {"pixels": pixels})
    server.close()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=TOLERANCE, err_msg=name)


def test_requests_of_different_texts_are_encoded_together(served: Served) -> None:
    from tritonclient.grpc import InferenceServerClient

    url = served.urls["grpc"]
    with TritonRanker(served.folder, url) as ranker, ThreadPoolExecutor(16) as threads:
        ranker.encode_texts(["a red circle"])
        before = _counts(InferenceServerClient(url))
        list(threads.map(lambda number: ranker.encode_texts([CAPTIONS[number % len(CAPTIONS)]]), range(160)))
    requests, runs = (after - old for after, old in zip(_counts(InferenceServerClient(url)), before, strict=True))
    assert requests == 160
    assert runs < requests


def test_float16_graphs_rank_as_the_retriever_in_float16(
    feature_bundle: Path, tmp_path: Path, features: NDArray[np.float32]
) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "server"
    export_repository(Bundle(feature_bundle), repository, TritonOptions("float16", device="cpu"))
    with_stubs(repository)
    folder.mkdir()
    with (
        Retriever(feature_bundle, "onnxruntime", "float16") as retriever,
        triton_server(repository, folder) as (_, port),
        TritonRanker(feature_bundle, f"127.0.0.1:{port}") as ranker,
    ):
        found = ranker.rank(CAPTIONS[0], ranker.encode_images(features), 10)
        expected = retriever.rank(CAPTIONS[0], retriever.encode_images(features), 10, shortlist=0)
    assert [match.corpus_id for match in found] == [match.corpus_id for match in expected]
    # Half precision has eleven bits; other batches may round a sum the other way.
    np.testing.assert_allclose([m.logit for m in found], [m.logit for m in expected], rtol=2**-10)


def _counts(client: object) -> tuple[int, int]:
    (one,) = client.get_inference_statistics("text", as_json=True)["model_stats"]  # type: ignore[attr-defined]  # of tritonclient, which has no types
    client.close()  # type: ignore[attr-defined]  # likewise
    return int(one["inference_count"]), int(one["execution_count"])
