"""What `camp doctor`, `camp eval`, `camp rank` and `camp index search` do with rankings in two passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import InputError, Retriever
from camp_sdk.agreement import Agreement, Agreements, TwoPasses, agreement, mean_agreements
from camp_sdk.data import load_split
from camp_sdk.evaluation import evaluate
from camp_sdk.first_pass import FirstPass
from camp_sdk.first_pass_speed import first_pass_states
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest
from tests.helpers.command import Camp
from tests.helpers.tiny import CAPTIONS

Matrix = NDArray[np.float32]
INT8 = ("--precision", "int8")


@pytest.fixture
def precomputed(tmp_path: Path, many: NDArray[np.float32]) -> Path:
    """A split of precomputed features, with five captions an image."""
    np.save(tmp_path / "test_ims.npy", many[:20])
    texts = [f"{CAPTIONS[number % 6]} {CAPTIONS[number % 5]}" for number in range(100)]
    (tmp_path / "test_caps.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return tmp_path


def test_doctor_measures_first_passes(feature_bundle: Path) -> None:
    states = first_pass_states(Bundle(feature_bundle), ["onnxruntime"])
    assert [(state.precision, state.backend, state.problem) for state in states] == [("int8", "onnxruntime", "")]
    assert all(state.speed is not None and state.speed > 0 for state in states)
    assert first_pass_states(Bundle(feature_bundle), []) == ()


def test_doctor_says_why_a_first_pass_does_not_run(bundle_copy: Path) -> None:
    graph = bundle_copy / "int8/scorer.onnx"
    graph.write_bytes(b"not a graph")
    write_manifest(bundle_copy, read_manifest(bundle_copy / MANIFEST_FILE))
    (state,) = first_pass_states(Bundle(bundle_copy), ["onnxruntime"])
    assert state.speed is None
    assert "int8/scorer.onnx" in state.problem


def test_agreement_counts_what_two_passes_change() -> None:
    logits = np.float32([[5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6]] * 2)
    coarse = logits.copy()
    coarse[1, 9:11] = [-5, -4]  # the tenth and the eleventh change places
    engine: Any = None
    assert agreement(coarse, logits, FirstPass("int8", engine, 0.5)) == Agreement(1, 1, 1, 0.5, 11)
    assert agreement(coarse, logits, FirstPass("int8", engine, 0.0, 10)) == Agreement(1, 0.5, 0.5, 0.5, 10)
    first = Agreements("int8", Agreement(1, 1, 1, 0.5, 11), Agreement(1, 1, 0, 0, 12))
    second = Agreements("int8", Agreement(0, 1, 0, 0.5, 13), Agreement(1, 1, 0, 0, 12))
    assert mean_agreements([first, second]).text_to_image == Agreement(0.5, 1, 0.5, 0.5, 12)


def test_eval_compares_two_passes_with_one(
    feature_retriever: Retriever, precomputed: Path, camp: Camp, feature_bundle: Path
) -> None:
    split = load_split(precomputed, "test")
    found = evaluate(feature_retriever, split, two_passes=TwoPasses("int8"))
    assert replace(found, two_passes=None) == evaluate(feature_retriever, split)
    assert found.two_passes is not None
    assert found.two_passes.text_to_image.same_order == found.two_passes.image_to_text.same_order == 1
    with pytest.raises(InputError, match="mean of 2 networks has no first pass"):
        evaluate([feature_retriever] * 2, split, two_passes=TwoPasses("int8"))
    options = ("--precision", "int8", "--backend", "onnxruntime")
    printed = camp("eval", feature_bundle, "--data", precomputed, *options, "--json")
    assert json.loads(printed.out)["two_passes"] == found.as_dict()["two_passes"]
    printed = camp("eval", feature_bundle, "--data", precomputed, "--precision", "auto", "--backend", "onnxruntime")
    assert printed.code == 0
    table = camp("eval", feature_bundle, "--data", precomputed, *options, "--rescore", "12").out
    assert "two passes, the first in int8, against one" in table


def test_rank_and_search_take_two_passes(
    camp: Camp,
    feature_bundle: Path,
    many: NDArray[np.float32],
    feature_retriever: Retriever,
    two_passes: list[Matrix],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "images.npy", many)
    with feature_retriever.open_index(tmp_path / "photos.index", create=True, precision="float32") as index:
        index.add(many, [f"image {number}" for number in range(len(many))])
    asked = ("--query", CAPTIONS[0], "--backend", "onnxruntime", "--json")
    for command in (
        ("rank", feature_bundle, "--images", tmp_path / "images.npy", *asked),
        ("index", "search", tmp_path / "photos.index", "--bundle", feature_bundle, *asked),
    ):
        one, *two = [camp(*command, *more).out for more in ((), INT8, ("--rescore", "20", *INT8))]
        expected, *found = [_rows(json.loads(answer)) for answer in (one, *two)]
        for keys, logits in found:
            assert keys == expected[0]
            np.testing.assert_allclose(logits, expected[1], rtol=0, atol=1e-5)
    assert len(two_passes) == 4
    refused = camp("rank", feature_bundle, "--images", tmp_path / "images.npy", *asked, "--rescore", "auto")
    assert refused.code == 1
    assert "--precision 'float32': expected one of" in refused.err


def _rows(answer: Any) -> tuple[list[Any], list[float]]:
    matches = answer["matches"] if "matches" in answer else answer["rankings"][0]["matches"]
    return [match.get("key", match["corpus_id"]) for match in matches], [match["logit"] for match in matches]
