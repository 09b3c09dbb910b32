"""Lower precision in graphs: what is lowered, what is not, and that the gate sees what half precision breaks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from camp_sdk import BackendError, BundleError, Retriever
from camp_sdk.export.bundling import precision_gate, writer
from camp_sdk.export.bundling.cases import require
from camp_sdk.export.bundling.lowering import check_half, emulate_half, lower_graph
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.precision_gate import PrecisionCheck, check_precision, top_agreement
from camp_sdk.export.bundling.writer import add_precision, export_bundle, write_lowered
from camp_sdk.export.network.camp import Scorer, Tensors
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.networks import NETWORKS
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.tensorrt.plans import graph_of
from tests.helpers.hardware import bfloat16_here, needs_bfloat16
from tests.helpers.tiny import CAPTIONS, save_tiny_checkpoint, tiny_model, tiny_origin


@pytest.fixture(scope="module", params=NETWORKS)
def lowered(request: pytest.FixtureRequest, half_bundle: Callable[[str], Path]) -> dict[str, Path]:
    """Every graph of a variant in float16."""
    return {path.stem: path for path in (half_bundle(request.param) / "fp16").iterdir()}


def types_of(path: Path, op_type: str) -> list[str]:
    """The precision of every node of a kind."""
    graph = ir.load(path).graph
    return [node.outputs[0].dtype.name for node in graph if node.op_type == op_type and node.outputs[0].dtype]


def test_what_half_breaks_stays_in_float32(lowered: dict[str, Path]) -> None:
    for path in lowered.values():
        for op_type in ("Softmax", "ReduceSum", "ReduceMean", "ReduceL2", "Sqrt"):
            assert set(types_of(path, op_type)) <= {"FLOAT", "INT64"}, (path, op_type)


def test_most_products_are_in_half(lowered: dict[str, Path]) -> None:
    for name in ("image", "text", "scorer"):
        products = types_of(lowered[name], "MatMul")
        assert "FLOAT16" in products, name
    assert types_of(lowered["text"], "GRU") == ["FLOAT16", "FLOAT16"]


def test_half_products_need_nothing_that_tensorrt_10_adds_in_float32(lowered: dict[str, Path]) -> None:
    """Its parser begins a GRU without an initial state from float32, and scales a Gemm by float32 constants."""
    for path in lowered.values():
        for node in ir.load(path).graph:
            if node.op_type == "GRU":
                begin = node.inputs[5]
                assert begin is not None
                assert begin.dtype == ir.DataType.FLOAT16
            if node.op_type == "Gemm":
                assert [node.attributes[name].value for name in ("alpha", "beta") if name in node.attributes] in (
                    [],
                    [1.0, 1.0],
                )


def test_encoders_hand_halves_to_the_scorer_and_answers_are_float32(lowered: dict[str, Path]) -> None:
    kept = {v.name: v.dtype for name in ("image", "text") for v in ir.load(lowered[name]).graph.outputs}
    assert kept["image.V"] == kept["text.T"] == ir.DataType.FLOAT16
    assert all(dtype == ir.DataType.FLOAT for name, dtype in kept.items() if name and name.endswith(".global"))
    for name in ("scorer", "explainer"):
        graph = ir.load(lowered[name]).graph
        assert all(value.dtype == kept[value.name] for value in graph.inputs)
        assert all(value.dtype == ir.DataType.FLOAT for value in graph.outputs)


def test_gram_matrices_are_float32(lowered: dict[str, Path]) -> None:
    # 1,024 squares of a root mean square of 8 are more than half precision holds.
    outputs = {value.name: value.dtype for value in ir.load(lowered["image"]).graph.outputs}
    assert all(outputs[name] == ir.DataType.FLOAT for name in ("image.G", "image.VV") if name in outputs)


def test_onnxruntime_opens_every_half_graph(lowered: dict[str, Path]) -> None:
    for path in lowered.values():
        OnnxRuntimeEngine(HeldFile(path)).close()


def half_square(path: Path) -> Path:
    """x * x in float16, between casts."""
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "half"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1]) for name in ("half", "square")]
    graph = helper.make_graph(nodes, "square", values[:1], values[1:], value_info=inner)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("x", "expected"), [(300.0, math.inf), (1e-4, 0.0), (1.0004, 1.0), (3.0, 9.0)])
def test_emulation_rounds_as_half_precision_does(tmp_path: Path, x: float, expected: float) -> None:
    emulate_half(half_square(tmp_path / "half.onnx"), tmp_path / "emulated.onnx")
    with OnnxRuntimeEngine(HeldFile(tmp_path / "emulated.onnx")) as engine:
        assert engine.run({"x": np.array([x], np.float32)})["y"][0] == expected


def test_emulation_rounds_what_comes_in(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])]
    values.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], "cast", values[:1], values[1:]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    emulate_half(tmp_path / "x.onnx", tmp_path / "emulated.onnx")
    with OnnxRuntimeEngine(HeldFile(tmp_path / "emulated.onnx")) as engine:
        assert engine.run({"x": np.array([1.0004], np.float32)})["y"][0] == 1.0


def test_emulation_computes_what_the_half_graph_says(feature_bundle: Path, tmp_path: Path) -> None:
    """Against numpy's own float16, on the image graph: a rounded product, a rounded sum."""
    path = feature_bundle / "fp16" / "image.onnx"
    emulate_half(path, tmp_path / "image.onnx")
    nodes = {node.op_type: node for node in ir.load(path).graph}
    W, b = (v.const_value.numpy() for name in ("MatMul", "Add") for v in nodes[name].inputs if v and v.const_value)
    features = np.random.default_rng(0).standard_normal((3, 5, 12), dtype=np.float32)
    with OnnxRuntimeEngine(HeldFile(tmp_path / "image.onnx")) as engine:
        found = engine.run({"features": features})["image.V"]
    product = (features.astype(np.float16).astype(np.float32) @ W.astype(np.float32)).astype(np.float16)
    # A sum of another order may round to the neighbour: one unit in the last place of numbers below 16.
    np.testing.assert_allclose(found, (product + b).astype(np.float32), rtol=0, atol=2**-7)


@pytest.mark.parametrize(
    ("value", "message"), [(-1e9, "holds 1e.09, more than float16 can"), (1e-8, "zero in float16")]
)
def test_a_constant_that_half_loses_is_an_error(value: float, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_half("epsilon", np.array(value, np.float32))


def test_constants_that_half_keeps() -> None:
    check_half("minus infinity", np.array(-np.inf, np.float32))
    check_half("nothing", np.array(0, np.float32))
    check_half("weights, some tiny", np.array([1e-9, 1], np.float32))


def lowered_text(text: str, tmp_path: Path) -> ir.Graph:
    """A graph in ONNX's own notation, lowered to float16."""
    header = '<ir_version: 10, opset_import: ["": 20]>'
    onnx.save(onnx.parser.parse_model(header + text), tmp_path / "wide.onnx")
    lower_graph(tmp_path / "wide.onnx", tmp_path / "half.onnx", "float16")
    return ir.load(tmp_path / "half.onnx").graph


def test_constants_among_the_nodes_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="zero in float16"):
        lowered_text(
            """g (float[2,2] x) => (float[2,2] y) <float[2,2] W = {1.0, 2.0, 3.0, 4.0}>
            {c = Constant <value_float = 1e-9> () z = MatMul(x, W) y = Add(z, c)}""",
            tmp_path,
        )


def test_squares_are_float32(tmp_path: Path) -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] W = {1.0, 2.0, 3.0, 4.0}> {v = MatMul(x, W) y = Mul(v, v)}"
    graph = lowered_text(text, tmp_path)
    types = {node.op_type: node.outputs[0].dtype for node in graph if node.op_type != "Cast"}
    assert types == {"MatMul": ir.DataType.FLOAT16, "Mul": ir.DataType.FLOAT}


@pytest.mark.parametrize(
    ("name", "dtype"), [("image.V", "FLOAT16"), ("image.global", "FLOAT"), ("logits", "FLOAT"), ("image.G", "FLOAT")]
)
def test_unit_vectors_are_kept_in_half(tmp_path: Path, name: str, dtype: str) -> None:
    """Computed in float32, since half has no room for a tiny norm; a product of two activations is not among them."""
    last = "MatMul (v, x)" if name == "image.G" else "Div (v, n)"
    text = f"""g (float[2,2] x) => (float[2,2] "{name}") <float[2,2] W = {{1.0, 2.0, 3.0, 4.0}}>
        {{v = MatMul(x, W) n = ReduceL2<keepdims = 1>(v) y = {last}}}"""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> ' + text.replace(f'"{name}"', "y"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = name
    onnx.save(model, tmp_path / "wide.onnx")
    lower_graph(tmp_path / "wide.onnx", tmp_path / "half.onnx", "float16")
    graph = ir.load(tmp_path / "half.onnx").graph
    assert [(value.name, value.dtype and value.dtype.name) for value in graph.outputs] == [(name, dtype)]
    assert "FLOAT" in types_of(tmp_path / "half.onnx", "MatMul" if name == "image.G" else "Div")


def test_weights_among_the_inputs_stay_weights(tmp_path: Path) -> None:
    text = "g (float[2,2] x, float[2,2] W = {1.0, 2.0, 3.0, 4.0}) => (float[2,2] y) {y = MatMul(x, W)}"
    graph = lowered_text(text, tmp_path)
    assert [value.name for value in graph.inputs] == ["x"]


def test_branches_are_refused(tmp_path: Path) -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] t) {t = Relu(x)}, else_branch = b () => (float[2] e) {e = Neg(x)}>
    }"""
    with pytest.raises(ExportError, match="holds branches or loops, which cannot be lowered"):
        lowered_text(text, tmp_path)


# The gate


def a_check(name: str = "real") -> PrecisionCheck:
    return PrecisionCheck(name, 20, 100, True, 1e-3, 1e-3, 1e-3, 1e-3, 1.0, 1e-3, 1e-4)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"finite": False}, "not finite"),
        ({"max_score_error": 6e-3}, "scores off by 6.0e-03 (at most 0.005)"),
        ({"max_score_error": math.nan}, "scores off by nan"),
        ({"top10_agreement": 0.99}, None),
        ({"top10_agreement": 0.985}, "98.5% of the top 10 (at least 99%)"),
        ({"share_of_range": 0.5}, None),  # where all logits are about the same
        ({"share_of_largest": 0.5}, None),  # where they are small
        # Scores at 0 or 1 hide it.
        ({"share_of_range": 0.11, "share_of_largest": 0.011}, "of their range, by 1.1e-01 (at most 0.1)"),
        ({"share_of_range": math.nan, "share_of_largest": math.nan}, "of their range, by nan"),
        ({"max_look_error": 0.03}, "attention off by"),
        ({"max_vector_error": math.nan}, "global vectors off by"),
        ({"name": "huge features", "max_score_error": 0.9}, None),
        ({"name": "huge features", "share_of_range": 0.5}, None),
        (
            {"name": "huge features", "usual_share": 0.051},
            "99% of the logits off, as a share of their range, by",
        ),
        ({"texts": 6, "top10_agreement": 59 / 60}, None),
        ({"texts": 6, "top10_agreement": 58 / 60}, "of the top 10"),
    ],
)
def test_what_passes_the_gate(change: dict[str, Any], fault: str | None) -> None:
    check = replace(a_check(), **change)
    assert check.passed == (fault is None)
    if fault:
        with pytest.raises(ExportError, match="the graphs are too far off, no bundle was written: ") as refused:
            require([a_check("fine"), check], "the graphs are too far off", ": advice")
        assert fault in str(refused.value)
        assert "fine" not in str(refused.value)
        assert str(refused.value).endswith(": advice")


def test_agreement_counts_ties_as_the_same() -> None:
    expected = np.array([[3.0], [1.0], [1.0], [0.0]] * 4, np.float32)  # of 16, the ten best are 3, 3, 3, 3 and six ones
    assert top_agreement(expected, expected + np.arange(16)[:, None] * np.float32(1e-3)) == 1.0
    worse = expected.copy()
    worse[3] = 5  # a zero that came first
    assert top_agreement(expected, worse) == 0.9


def test_the_gate_sees_an_overflow(
    feature_bundle: Path, checkpoints: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, origin = load_checkpoint(checkpoints("paper", False))
    assert all(check.passed for check in check_precision(model, origin, Bundle(feature_bundle), "float16"))
    monkeypatch.setattr(precision_gate, "HUGE_SCALE", 1e6)
    checks = check_precision(model, origin, Bundle(feature_bundle), "float16")
    assert [check.finite for check in checks] == [True, True, False, True]


def test_the_manifest_keeps_the_figures(feature_bundle: Path) -> None:
    checks = Bundle(feature_bundle).manifest.precisions["float16"].checks
    assert [check["name"] for check in checks] == [
        "real", "zero features", "huge features", "one word"
    ]  # fmt: skip
    assert all(check["finite"] for check in checks)


def test_a_bundle_whose_half_graphs_fail_is_not_written(
    checkpoints: Callable[[str, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gate, "MAX_SCORE_ERROR", 1e-7)
    with pytest.raises(ExportError, match="too far from PyTorch's scores, no bundle was written"):
        export_bundle(checkpoints("paper", False), tmp_path / "bundle", ["float16"])
    assert not list(tmp_path.iterdir())


# In the runtime


@pytest.fixture(scope="module")
def half(feature_bundle: Path) -> Retriever:
    return Retriever(feature_bundle, "onnxruntime", "float16")


def test_a_float16_retriever_scores_nearly_as_float32(
    half: Retriever, feature_retriever: Retriever, features: NDArray[np.float32]
) -> None:
    gallery = half.encode_images(features)
    assert gallery.precision == "float16"
    found, expected = (r.score_matrix(features, CAPTIONS) for r in (half, feature_retriever))
    assert 0 < np.abs(found - expected).max() < 5e-3  # what the gate allows
    np.testing.assert_array_equal(half.score_matrix(gallery, CAPTIONS), found)
    pairs = [(features[3], CAPTIONS[1]), (features[0], CAPTIONS[0])]
    np.testing.assert_allclose(half.score(pairs), [found[3, 1], found[0, 0]], rtol=0, atol=1e-3)
    looks = half.explain(CAPTIONS[0], gallery.select([2]))
    np.testing.assert_allclose(looks.to_words.sum(0), 1, rtol=0, atol=1e-3)  # shares of each word over the regions


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_galleries_serve_retrievers_of_either_precision(
    half: Retriever, feature_retriever: Retriever, features: NDArray[np.float32], precision: str, tmp_path: Path
) -> None:
    made = {}
    for name, retriever in (("half", half), ("wide", feature_retriever)):
        gallery = retriever.encode_images(features, precision=precision)
        gallery.save(tmp_path / name)
        texts = retriever.encode_texts(CAPTIONS)
        texts.save(tmp_path / f"{name}-texts")
        for reader in (half, feature_retriever):
            galleries = reader.open_gallery(tmp_path / name), reader.open_gallery(tmp_path / f"{name}-texts")
            made[name, reader.precision] = reader.score_matrix(*galleries)
    for scores in made.values():  # int8 rounds a hundred times coarser than half
        np.testing.assert_allclose(scores, made["wide", "float32"], rtol=0, atol=0.05 if precision == "int8" else 5e-3)


def test_encoders_stay_float32_where_half_costs_too_much(
    feature_bundle: Path,
    bundle_copy: Path,
    checkpoints: Callable[[str, bool], Path],
    features: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("fp16", "bf16"):
        shutil.rmtree(bundle_copy / folder, ignore_errors=True)
    manifest = replace(Bundle(feature_bundle).manifest, precisions={})
    monkeypatch.setattr(precision_gate, "ENCODERS_SCORE_ERROR", 0.0)
    add_precision("float16", *load_checkpoint(checkpoints("paper", False)), manifest, bundle_copy)
    assert "encoders in float16 cost too much accuracy: trying image, text in float32" in told_by(capsys)
    bundle = Bundle(bundle_copy)
    graphs = [path.name for path in sorted((bundle_copy / "fp16").iterdir())]
    assert graphs == ["explainer.onnx", "scorer.onnx"]
    assert [graph_of(bundle, name, "float16")[1] for name in ("text", "scorer")] == ["float32", "float16"]

    with Retriever(bundle, "onnxruntime", "float16") as half, Retriever(bundle, "onnxruntime") as full:
        found, expected = (r.score_matrix(features, CAPTIONS) for r in (half, full))
        assert 0 < np.abs(found - expected).max() < 5e-3
        gallery = full.encode_images(features, precision="float16")  # what both encode, rounded once
        np.testing.assert_array_equal(half.score_matrix(gallery, full.encode_texts(CAPTIONS)), found)
        looks = half.explain(CAPTIONS[0], gallery.select([2]))
        np.testing.assert_allclose(looks.to_words.sum(0), 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("errors", "kept"), [((4e-3, 1e-3), False), ((4e-3, 6e-3), True), ((6e-3, 1e-3), False)])
def test_encoders_stay_in_half_where_that_alone_passes(
    feature_bundle: Path,
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    errors: tuple[float, float],
    kept: bool,
) -> None:
    """Errors are not sure to fall with encoders in float32; 5e-3 is the bound, and half of it leaves a margin."""
    found = iter([replace(a_check(), max_score_error=error)] for error in errors)
    monkeypatch.setattr(precision_gate, "check_precision", lambda *of: next(found))
    shutil.rmtree(bundle_copy / "fp16")
    manifest = replace(Bundle(feature_bundle).manifest, precisions={})
    add_precision("float16", tiny_model("paper"), tiny_origin("paper", False), manifest, bundle_copy)
    assert f"image, text: {'float16, the only precision that passed' if kept else 'float32'}" in told_by(capsys)
    halves = Bundle(bundle_copy).manifest.precisions["float16"].graphs
    assert ("image" in halves, "text" in halves, "scorer" in halves) == (kept, kept, True)
    assert (bundle_copy / "fp16/image.onnx").exists() == kept
    assert Bundle(bundle_copy).manifest.precisions["float16"].checks[0]["max_score_error"] == min(errors)


def test_a_vision_graph_that_cannot_be_lowered_stays_float32(
    picture_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lower(source: Path, target: Path, precision: str, halves: Collection[str]) -> Any:
        if source.stem == broken:
            raise ExportError("constant big holds 1e+06, more than float16 can")
        return lower_graph(source, target, precision, halves)

    contract = Bundle(picture_bundle).manifest.graphs
    shutil.copytree(picture_bundle, tmp_path / "bundle")
    monkeypatch.setattr(writer, "lower_graph", lower)
    broken = "vision"
    assert list(write_lowered("float16", contract, tmp_path / "bundle")) == ["image", "text", "scorer", "explainer"]
    assert "the vision graph stays float32: constant big holds 1e+06, more than float16 can" in told_by(capsys)
    broken = "text"
    shutil.rmtree(tmp_path / "bundle/fp16")
    with pytest.raises(ExportError, match="constant big"):
        write_lowered("float16", contract, tmp_path / "bundle")


class _Squares(Scorer):
    """Most of a pair's work is a map of squares, which half precision does not take."""

    axes = {"image.V": "I R d", "text.t": "T d"}  # noqa: RUF012  # typed by the parent

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = torch.nn.Linear(width, 1)

    def image_side(self, V: torch.Tensor) -> Tensors:
        return {"image.V": V}

    def text_side(self, T: torch.Tensor, mask: torch.Tensor) -> Tensors:
        return {"text.t": T.sum(1)}

    def forward(self, image: Tensors, text: Tensors) -> torch.Tensor:
        far = (image["image.V"].unsqueeze(1) - text["text.t"].unsqueeze(1)).square().tanh()  # [I, T, R, d]
        return self.map(far.mean(2).square()).squeeze(-1)  # type: ignore[no-any-return]  # modules are untyped


def test_a_graph_that_half_would_hardly_touch_stays_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`camp build` refuses a float16 graph that is mostly float32; its encoders still hand over halves."""
    monkeypatch.setitem(NETWORKS, "squares", _Squares)
    bundle = export_bundle(
        save_tiny_checkpoint(tmp_path / "it.ckpt", "squares", False), tmp_path / "bundle", ["float16"]
    )
    assert "the scorer graph stays float32: most of it does not fit float16" in told_by(capsys)
    half = bundle.manifest.precisions["float16"].graphs
    assert list(half) == ["image", "text"]
    assert {spec.dtype for spec in half["image"].outputs if spec.name == "image.V"} == {"float16"}
    assert not (bundle.folder / "fp16/scorer.onnx").exists()
    images = np.random.default_rng(0).standard_normal((4, 5, 12), dtype=np.float32)
    found = []
    for precision in ("float32", "float16"):
        with Retriever(bundle, "onnxruntime", precision) as retriever:
            found.append(retriever.score_matrix(images, CAPTIONS))
    np.testing.assert_allclose(*found, rtol=0, atol=precision_gate.MAX_SCORE_ERROR)


def test_neither_way_within_the_bound_is_an_error(
    feature_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gate, "check_precision", lambda *of: [replace(a_check(), max_score_error=6e-3)])
    shutil.rmtree(bundle_copy / "fp16")
    manifest = replace(Bundle(feature_bundle).manifest, precisions={})
    with pytest.raises(ExportError, match=r"scores off by 6\.0e-03.*The float32 graphs passed: export without"):
        add_precision("float16", tiny_model("paper"), tiny_origin("paper", False), manifest, bundle_copy)


def test_a_network_close_to_the_bound_has_no_margin() -> None:
    near = replace(a_check(), max_score_error=4e-3)
    assert (near.passed, near.with_margin, a_check().with_margin) == (True, False, True)
    assert not replace(a_check(), finite=False).with_margin
    assert replace(near, name="huge features").with_margin


def told_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_pictures_in_half(checkpoints: Callable[[str, bool], Path], tmp_path: Path) -> None:
    bundle = export_bundle(checkpoints("paper", True), tmp_path / "bundle", ["float16"])
    pictures = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    scores = []
    for precision in ("float16", "float32"):
        with Retriever(bundle, "onnxruntime", precision) as retriever:
            scores.append(retriever.score_matrix(list(pictures), CAPTIONS))
    assert 0 < np.abs(scores[0] - scores[1]).max() < 5e-3


@needs_bfloat16
def test_bfloat16_graphs_compute_the_maps_of_a_pair_in_it(feature_bundle: Path) -> None:
    scorer = feature_bundle / "bf16" / "scorer.onnx"
    assert types_of(scorer, "MatMul").count("BFLOAT16") == 2  # F_v and F_t
    assert [path.name for path in (feature_bundle / "bf16").iterdir()] == ["scorer.onnx"]


@needs_bfloat16
def test_bfloat16_is_refused_where_it_saves_nothing(checkpoints: Callable[[str, bool], Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the scorer of this variant has no product that is worth bfloat16"):
        export_bundle(checkpoints("scalar", False), tmp_path / "bundle", ["bfloat16"])


@pytest.mark.parametrize(("precision", "option"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_a_bundle_without_a_precision_names_the_option(picture_bundle: Path, precision: str, option: str) -> None:
    with pytest.raises(BundleError, match=f"no {precision} graphs; export it with: camp export --precision {option}"):
        Retriever(picture_bundle, precision=precision)


@pytest.mark.parametrize(
    ("backend", "precision", "other"), [("openvino", "float16", "onnxruntime"), ("onnxruntime", "bfloat16", "openvino")]
)
def test_a_backend_without_a_precision_is_an_error(
    feature_bundle: Path, backend: str, precision: str, other: str
) -> None:
    if precision == "bfloat16" and not bfloat16_here():
        pytest.skip("this processor does not compute in bfloat16, so the bundle was exported without")
    with pytest.raises(BackendError, match=f"{backend} does not score in {precision}: use backend {other}"):
        open_engine(Bundle(feature_bundle), "scorer", backend, precision=precision)
