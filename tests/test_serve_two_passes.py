"""`camp serve --precision int8`: searches in two passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BundleError, InputError, Retriever
from camp_sdk.server.settings import Settings
from tests.helpers.serving import served
from tests.helpers.tiny import CAPTIONS


def test_searches_in_two_passes(
    feature_bundle: Path,
    feature_retriever: Retriever,
    features: NDArray[np.float32],
    tmp_path: Path,
    two_passes: list[NDArray[np.float32]],
) -> None:
    path = tmp_path / "features.index"
    with feature_retriever.open_index(path, create=True, precision="float32") as index:
        index.add(features, [f"image {number}" for number in range(len(features))])
        expected = feature_retriever.rank(CAPTIONS[0], index, 5)
    with served(bundle=feature_bundle, index=path, backend="onnxruntime", precision="int8") as running:
        matches = running.found("/v1/search", {"query": CAPTIONS[0], "top_k": 5})["matches"]
        assert running("GET", "/v1/models").json()["data"][0]["precision"] == "float32"
    assert [match["key"] for match in matches] == [match.key for match in expected]
    assert [logits.shape for logits in two_passes] == [(1, len(features))]
    # Both passes score blocks of other shapes: sums are made in another order, of logits of about one.
    np.testing.assert_allclose([match["logit"] for match in matches], [match.logit for match in expected], atol=1e-5)


def test_a_bundle_without_int8_does_not_start(picture_bundle: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="this bundle has no int8 graphs"),
        served(bundle=picture_bundle, index=tmp_path / "no.index", backend="onnxruntime", precision="int8"),
    ):
        pytest.fail("it started")


def test_parts_are_searched_in_one_pass(picture_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`precision` is 'int8': parts are searched in one pass"):
        Settings(bundle=picture_bundle, parts=tmp_path, precision="int8")
