"""Graphs that other programs made, packed as a bundle: axes measured, pairs compared alone and in blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import camp_sdk.export
from camp_sdk import Bundle, BundleError, InputError, Retriever
from camp_sdk.export import Facts, Parts, pack
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.packing import grid_of
from camp_sdk.runtime.golden import read_golden
from tests.helpers.command import Camp
from tests.helpers.processes import run_blocked
from tests.helpers.tiny import CAPTIONS

FEATURES = np.random.default_rng(2).random((7, 4, 6), dtype=np.float32)
HEAD = '<ir_version: 9, opset_import: ["": 20]> g '
# One vector a side, and their product; axes bear names that mean nothing here, or none.
IMAGE = """(float[batch,boxes,6] features) => (float[batch,wide] v)
    <int64[1] one = {1}> {v = ReduceMax<keepdims=0>(features, one)}"""
TEXT = """(int64[b,s] tokens, int64[b] lengths) => (float[?,6] sums)
    <int64[1] one = {1}, int64[1] two = {2}, float[64,6] table = {TABLE}, int64 zero = {0}, int64 step = {1}> {
    words = Gather(table, tokens)
    shape = Shape<start = 1, end = 2>(tokens)
    end = Squeeze(shape)
    place = Range(zero, end, step)
    last = Unsqueeze(lengths, one)
    real = Less(place, last)
    kept = Cast<to = 1>(real)
    wide = Unsqueeze(kept, two)
    own = Mul(words, wide)
    sums = ReduceSum<keepdims = 0>(own, one)
}"""
TEXT = TEXT.replace("TABLE", ", ".join(f"{value:.3f}" for value in np.random.default_rng(1).standard_normal(64 * 6)))
SCORER = "(float[x,6] v, float[y,6] sums) => (float[x,y] logits) {turned = Transpose(sums)  logits = MatMul(v, turned)}"


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    return path


@pytest.fixture
def parts(tmp_path: Path, feature_bundle: Path) -> Parts:
    """A small two-tower model, with the tokenizer of another bundle."""
    graphs = (write(tmp_path / f"{n}.onnx", t) for n, t in (("i", IMAGE), ("t", TEXT), ("s", SCORER)))
    return Parts(*graphs, feature_bundle / "tokenizer.json")


def changed(parts: Parts, role: str, old: str, new: str) -> Parts:
    """The same files, with one graph's text changed."""
    text = {"image": IMAGE, "text": TEXT, "scorer": SCORER}[role]
    assert old in text
    path = write(getattr(parts, role).with_name("changed.onnx"), text.replace(old, new))
    return replace(parts, **{role: path})


def test_axes_are_measured_whatever_they_are_called(parts: Parts, tmp_path: Path) -> None:
    bundle = pack(parts, tmp_path / "bundle", Facts("towers", "none"))
    graphs = bundle.manifest.graphs
    assert {name: [spec.shape for spec in graph.outputs] for name, graph in graphs.items()} == {
        "image": [("I", 6)],
        "text": [("T", 6)],
        "scorer": [("I", "T")],
    }
    assert (bundle.manifest.variant, bundle.manifest.activation, bundle.manifest.feature_width) == ("towers", "none", 6)
    (check,) = bundle.manifest.parity
    assert check["max_logit_error"] <= 1e-4
    golden = read_golden(bundle)
    assert golden.logits.shape == (8, 8)
    assert len(set(golden.lengths.tolist())) > 4


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_packed_bundle_ranks_as_numpy_does(parts: Parts, tmp_path: Path, backend: str) -> None:
    table = np.array(TEXT.split("table = {")[1].split("}")[0].split(","), np.float64).reshape(64, 6)
    with Retriever(pack(parts, tmp_path / "bundle", Facts(activation="none")).folder, backend) as retriever:
        tokens = retriever._tokenizer.encode(CAPTIONS)
        t = np.stack([table[ids[:length]].sum(0) for ids, length in zip(tokens.ids, tokens.lengths, strict=True)])
        expected = FEATURES.max(1) @ t.T
        # Float32 sums of up to 50 numbers of about one.
        np.testing.assert_allclose(retriever.score_matrix(FEATURES, CAPTIONS), expected, rtol=0, atol=1e-4)


def test_an_exported_bundle_can_be_packed_again(feature_bundle: Path, tmp_path: Path) -> None:
    names = ("image.onnx", "text.onnx", "scorer.onnx", "tokenizer.json")
    parts = Parts(*(feature_bundle / name for name in names), explainer=feature_bundle / "explainer.onnx")
    packed = pack(parts, tmp_path / "bundle", Facts("paper"))
    exported = Bundle(feature_bundle)
    assert packed.manifest.graphs == exported.manifest.graphs
    features = np.random.default_rng(0).standard_normal((5, 4, 12), dtype=np.float32)
    with Retriever(exported.folder, "onnxruntime") as one, Retriever(packed.folder, "onnxruntime") as other:
        np.testing.assert_array_equal(one.score_matrix(features, CAPTIONS), other.score_matrix(features, CAPTIONS))
        assert other.explain(CAPTIONS[0], features[0]).words == one.explain(CAPTIONS[0], features[0]).words


def test_a_vision_graph_is_packed_with_its_preprocessing(picture_bundle: Path, tmp_path: Path) -> None:
    names = ("image.onnx", "text.onnx", "scorer.onnx", "tokenizer.json")
    parts = Parts(*(picture_bundle / name for name in names), picture_bundle / "vision.onnx")
    own = Bundle(picture_bundle).manifest.pixels
    assert own is not None
    packed = pack(parts, tmp_path / "bundle", Facts(fit=own.fit, pixel_mean=own.mean, pixel_std=own.std))
    assert packed.manifest.pixels == own
    picture = np.random.default_rng(0).integers(0, 256, (1, 120, 80, 3), dtype=np.uint8)
    with Retriever(picture_bundle, "onnxruntime") as one, Retriever(packed.folder, "onnxruntime") as other:
        np.testing.assert_array_equal(one.score_matrix(picture, CAPTIONS), other.score_matrix(picture, CAPTIONS))


def test_a_vision_graph_of_another_width(parts: Parts, picture_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="makes features of width 12, the image graph reads 6"):
        pack(replace(parts, vision=picture_bundle / "vision.onnx"), tmp_path / "bundle")


def test_further_image_inputs_are_packed(parts: Parts, tmp_path: Path) -> None:
    text = IMAGE.replace("features)", "features, float[batch,boxes,2] boxes)", 1).replace(
        "{v = ReduceMax", "{c = ReduceMean<keepdims=1>(boxes, last)  own = Mul(features, c)  v = ReduceMax"
    )
    text = text.replace("(features, one)", "(own, one)").replace("one = {1}", "one = {1}, int64[1] last = {2}")
    parts = replace(parts, image=write(tmp_path / "boxes.onnx", text))
    bundle = pack(parts, tmp_path / "bundle")
    assert bundle.manifest.feature_width == 8
    assert {spec.name: spec.shape[2] for spec in bundle.manifest.graphs["image"].inputs} == {"features": 6, "boxes": 2}


@pytest.mark.parametrize(
    ("role", "old", "new", "error"),
    [
        ("image", "batch,boxes", "1,boxes", r"does not run, as image, for I, R, T, N of .*expected axes that vary"),
        ("image", "batch,boxes,6", "batch,boxes,d", r"reads features .*expected, as image, \[I, R, D\]"),
        ("image", "ReduceMax<keepdims=0>(features, one)", "Flatten(features)", "makes an axis of v 42 and 36 long"),
        ("scorer", "sums", "means", "reads means: expected, as scorer, some of .*v, sums"),
        (
            "scorer",
            "logits",
            "scores",
            r"do not make a bundle: the scorer graph makes \['scores'\], expected \['logits'\]",
        ),
        ("text", "Mul(words, wide)", "Identity(words)", "other logits for pairs in a batch than for each pair alone"),
    ],
)
def test_graphs_that_do_not_fit(parts: Parts, tmp_path: Path, role: str, old: str, new: str, error: str) -> None:
    with pytest.raises(ExportError, match=error):
        pack(changed(parts, role, old, new), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_files_that_are_not_what_they_should_be(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="broken cannot be read as an ONNX graph"):
        pack(replace(parts, image=tmp_path / "broken"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="absent cannot be read"):
        pack(replace(parts, tokenizer=tmp_path / "absent"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="tokenizer"):
        pack(replace(parts, tokenizer=tmp_path / "broken"), tmp_path / "bundle")
    with pytest.raises(InputError, match="activation 'softmax': expected one of"):
        pack(parts, tmp_path / "bundle", Facts(activation="softmax"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(InputError, match="mine exists and is not a bundle"):
        pack(parts, tmp_path / "mine")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("regions", "grid"), [(36, (6, 6)), (1, (1, 1)), (50, (0, 0))])
def test_a_square_number_of_regions_is_a_grid(regions: int, grid: tuple[int, int]) -> None:
    assert grid_of(regions) == grid


def test_what_the_package_offers_is_there() -> None:
    assert {name: getattr(camp_sdk.export, name).__name__ for name in camp_sdk.export.__all__} == {
        name: name for name in camp_sdk.export.__all__
    }
    with pytest.raises(AttributeError, match="has no attribute 'packed'"):
        _ = camp_sdk.export.packed


# The commands


def test_camp_pack_and_camp_info(parts: Parts, tmp_path: Path, camp: Camp) -> None:
    (tmp_path / "captions.txt").write_text("a red circle\n\na large blue star\n")
    files = [f"--{role}={getattr(parts, role)}" for role in ("image", "text", "scorer", "tokenizer")]
    options = ("--name", "towers", "--activation", "none", "--captions", tmp_path / "captions.txt")
    done = camp("pack", *files, *options, "--output", tmp_path / "bundle")
    assert (done.code, done.out) == (0, "")
    assert len(read_golden(Bundle(tmp_path / "bundle")).lengths) == 2
    shown = camp("info", tmp_path / "bundle")
    assert shown.code == 0
    for part in ("towers, scores by none", "v [I, 6]", "logits [I, T]", "in blocks and alone", "engines: none"):
        assert part in shown.out
    found = json.loads(camp("info", tmp_path / "bundle", "--json").out)
    assert found["fingerprint"] == Bundle(tmp_path / "bundle").fingerprint
    assert found["engines"] == []


def test_camp_info_shows_every_part_of_an_exported_bundle(picture_bundle: Path, camp: Camp) -> None:
    bundle = Bundle(picture_bundle)
    shown = camp("info", picture_bundle).out
    entries = [*bundle.manifest.files, *(entry.sha256 for entry in bundle.manifest.files.values())]
    names = [spec.name for graph in bundle.manifest.graphs.values() for spec in (*graph.inputs, *graph.outputs)]
    cases = [check["name"] for check in bundle.manifest.parity]
    for part in (*entries, *names, *cases, *bundle.manifest.training, "stretch to 96 x 96 pixels", bundle.fingerprint):
        assert str(part) in shown
    found = json.loads(camp("info", picture_bundle, "--json").out)
    assert found["graphs"] == bundle.manifest.as_dict()["graphs"]
    assert found["bytes"] == sum(entry.bytes for entry in bundle.manifest.files.values())


@pytest.mark.parametrize("value", ["NaN", "[" * 800 + "]" * 800])
def test_camp_info_of_odd_figures(bundle_copy: Path, camp: Camp, value: str) -> None:
    manifest = bundle_copy / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["training"] = {"\x1b[31modd": "HERE"}
    manifest.write_text(json.dumps(raw).replace('"HERE"', value))
    shown, as_json = camp("info", bundle_copy), camp("info", bundle_copy, "--json")
    assert shown.code == 0
    assert "\x1b" not in shown.out
    if value == "NaN":
        assert json.loads(as_json.out)["training"] == {"\x1b[31modd": None}
    else:
        assert (as_json.code, as_json.err.count("\n")) == (1, 1)


def test_camp_info_needs_no_training_library(feature_bundle: Path) -> None:
    code = "sys.argv = ['camp', 'info', sys.argv[1]]\nfrom camp_sdk.commands.app import main\nmain()"
    assert "scorer" in run_blocked(code, feature_bundle).stdout
