"""Quotients without a bound stay in float32: read from the float16 graphs, and measured with tiny and zero inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from camp_sdk import Bundle
from camp_sdk.export.bundling.cases import Case, graph_outputs
from camp_sdk.export.bundling.lowering import emulate_half, lower_graph
from camp_sdk.export.bundling.precision_gate import PrecisionCheck, _compare
from camp_sdk.export.network.networks import NETWORKS
from camp_sdk.export.network.released import RELEASED
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.tokenizer import open_tokenizer

HALF = ir.DataType.FLOAT16
IN_FLOAT32 = {"Clip", "Div", "Exp", "Log", "Pow", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum"}
IN_FLOAT32 |= {"ReduceSumSquare", "LayerNormalization", "Softmax", "Sqrt"}
ENDS = {"Sigmoid", "Softmax"}
GRAPHS = ("image", "text", "scorer", "explainer")
WORDS = ("small red circle a", "dog man the in")  # of the tiny networks, and of the recorded ones

every_variant = pytest.mark.parametrize("variant", NETWORKS)


def float16_graphs(folder: Path) -> dict[str, ir.Graph]:
    """The float16 graphs of a bundle, with the types of all values."""
    graphs = {}
    for path in sorted((folder / "fp16").iterdir()):
        model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
        graphs[path.stem] = model.graph
    return graphs


def in_half(node: ir.Node) -> bool:
    """Whether a node reads or writes a float16 value."""
    return any(value is not None and value.dtype == HALF for value in (*node.inputs, *node.outputs))


def is_by_constant(node: ir.Node) -> bool:
    return node.op_type == "Div" and node.inputs[1] is not None and node.inputs[1].const_value is not None


@every_variant
def test_operators_that_need_float32_have_it(half_bundle: Callable[[str], Path], variant: str) -> None:
    for name, graph in float16_graphs(half_bundle(variant)).items():
        found = [node for node in graph if node.op_type in IN_FLOAT32 and not is_by_constant(node)]
        assert not [(name, node.op_type, node.outputs[0].name) for node in found if in_half(node)]


@every_variant
def test_what_is_computed_from_scaled_weights_is_float32(half_bundle: Callable[[str], Path], variant: str) -> None:
    """The weights of a message of unit length are a quotient by a root; a vector of unit length one by ReduceL2."""
    quotients = 0
    for graph in float16_graphs(half_bundle(variant)).values():
        for node in graph:
            if node.op_type == "Div" and node.inputs[1] is not None and _has_root(node.inputs[1]):
                quotients += 1
                assert not [user.name or user.op_type for user in _users(node, graph) if in_half(user)]
    assert quotients == {"gate_fusion_new": 4}.get(variant, 0)  # two in the scorer, two in the explainer


def _has_root(divisor: ir.Value) -> bool:
    node = divisor.producer()
    while node is not None and node.op_type == "Add":
        node = next((value.producer() for value in node.inputs if value is not None and value.producer()), None)
    return node is not None and node.op_type == "Sqrt"


def _users(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes that read what a node computes, up to a gate, and to the message that scaled weights give."""
    for value in node.outputs:
        for user, _ in value.uses():
            yield user
            if user.op_type not in ENDS and user.op_type != "MatMul":
                yield from _users(user, graph)


@every_variant
def test_the_large_products_are_in_half(half_bundle: Callable[[str], Path], variant: str) -> None:
    for name, graph in float16_graphs(half_bundle(variant)).items():
        maps = [n for n in graph if n.op_type in {"MatMul", "Gemm", "Conv"} and n.inputs[1].const_value is not None]
        wide = [node for node in maps if node.inputs[1].const_value.size > 100]  # not the last before the logits
        assert all(in_half(node) for node in wide), name


# Measured


@dataclass(frozen=True)
class Pair:
    """The float32 graphs of a bundle, and its float16 graphs as emulated."""

    bundle: Bundle
    wide: dict[str, Engine]
    half: dict[str, Engine]

    def case(self, scale: float) -> Case:
        """Eight images of five regions, with captions and single words."""
        manifest = self.bundle.manifest
        rng = np.random.default_rng(0)
        features = rng.standard_normal((8, 5, manifest.feature_width), dtype=np.float32) * np.float32(scale)
        text = WORDS[manifest.variant in RELEASED]
        tokens = open_tokenizer(self.bundle).encode([text, *text.split()])
        return Case("tiny", torch.from_numpy(features), torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))

    def compare(self, scale: float) -> PrecisionCheck:
        case = self.case(scale)
        wide = graph_outputs(self.wide, case)
        assert all(np.isfinite(array).all() for array in wide.values())
        return _compare(case, wide, graph_outputs(self.half, case), self.bundle.manifest)


@pytest.fixture(scope="module", params=[(name, zero) for name in NETWORKS for zero in (False, True)], ids=str)
def pair(
    request: pytest.FixtureRequest, half_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both precisions of each variant, as they are and with all biases zero."""
    variant, without_biases = request.param
    source, folder = half_bundle(variant), tmp_path_factory.mktemp("pair")
    halves: set[str] = set()
    with ExitStack() as stack:
        wide, half = {}, {}
        for name in GRAPHS:
            copy = without_bias(source / f"{name}.onnx", folder / f"{name}.onnx", without_biases)
            _, outputs = lower_graph(copy, folder / f"{name}.half.onnx", "float16", halves)
            halves |= {spec.name for spec in outputs if spec.dtype == "float16"}
            emulate_half(folder / f"{name}.half.onnx", folder / f"{name}.emulated.onnx")
            wide[name] = stack.enter_context(OnnxRuntimeEngine(HeldFile(copy)))
            half[name] = stack.enter_context(OnnxRuntimeEngine(HeldFile(folder / f"{name}.emulated.onnx")))
        yield Pair(Bundle(source), wide, half)


def without_bias(source: Path, target: Path, remove: bool) -> Path:
    model = onnx.load(source)
    for weight in model.graph.initializer:
        if remove and "bias" in weight.name:
            weight.CopyFrom(numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), weight.name))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("scale", [1, 1e-2, 1e-4, 1e-5, 0])
def test_features_of_any_size_score_as_in_float32(pair: Pair, scale: float) -> None:
    check = pair.compare(scale)
    assert check.faults() == []


@pytest.mark.parametrize(("scale", "bound"), [(1e-6, 0.05), (1e-7, 1), (1e-8, 1)])
def test_features_that_float16_can_hardly_hold_give_finite_scores(pair: Pair, scale: float, bound: float) -> None:
    """Below 6e-5, float16 has steps of 6e-8: features of 1e-6 keep four bits there, smaller ones none."""
    check = pair.compare(scale)
    assert check.finite
    assert check.max_score_error <= bound


@pytest.mark.parametrize("variant", RELEASED)
def test_vectors_of_zero_have_finite_scores(released_bundle: Callable[[str], Path], variant: str) -> None:
    """Zero divided by (its length plus 1e-8) is zero, as in PyTorch, and not 0 / 0."""
    with OnnxRuntimeEngine(HeldFile(released_bundle(variant) / "scorer.onnx")) as scorer:
        sizes = {"I": 2, "R": 5, "T": 3, "N": 4}
        inputs = {
            name: (dtype, [sizes.get(str(axis), axis) for axis in shape])
            for name, (dtype, shape) in scorer.interface()[0].items()
        }
        zeros = {name: np.full(shape, name == "text.mask", dtype) for name, (dtype, shape) in inputs.items()}
        assert np.isfinite(scorer.run(zeros)["logits"]).all()


# What a graph's values can be


def lowered_types(body: str, tmp_path: Path, constants: str = "") -> dict[str, str]:
    """The precision of each named value of a graph in ONNX's own notation, in which `h` is W times the input."""
    weights = "<float[2,2] W = {1.0, 2.0, 3.0, 4.0}, float two = {2.0}, float eps = {0.001}" + constants + ">"
    header = '<ir_version: 10, opset_import: ["": 20]> g (float[2,2] x) => (float[2,2] y)'
    text = f"{header} {weights} {{h = MatMul(x, W) {body}}}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "wide.onnx")
    lower_graph(tmp_path / "wide.onnx", tmp_path / "half.onnx", "float16")
    graph = ir.load(tmp_path / "half.onnx").graph
    return {str(value.name): value.dtype.name for node in graph for value in node.outputs if value.dtype is not None}


@pytest.mark.parametrize(
    "quotient",
    [
        "r = Relu(h) n = ReduceL2<keepdims = 1>(r) q = Div(h, n)",  # by the length of another vector
        "n = ReduceMean<keepdims = 1>(h) q = Div(h, n)",
        "q = Reciprocal(h)",
        "q = Log(h)",
        "q = Exp(h)",
        "q = Pow(h, two)",
        "q = Mul(h, h)",
        "n = Sigmoid(h) q = Div(x, n)",
    ],
)
def test_what_follows_an_unbounded_value_is_float32(tmp_path: Path, quotient: str) -> None:
    types = lowered_types(f"{quotient} t = Transpose(q) m = MatMul(t, W) a = Add(m, h) y = MatMul(a, W)", tmp_path)
    assert (types["h"], types["m"], types["a"], types["y"]) == ("FLOAT16", "FLOAT", "FLOAT", "FLOAT")


@pytest.mark.parametrize("end", ["Sigmoid", "Tanh", "Softmax", "Erf"])
def test_bounds_end_it(tmp_path: Path, end: str) -> None:
    types = lowered_types(f"q = Exp(h) m = MatMul(q, W) e = {end}(m) f = MatMul(e, W) y = Identity(f)", tmp_path)
    assert types["m"] == "FLOAT"
    assert "FLOAT16" in {types["f"], types.get("f.half", "")}


@pytest.mark.parametrize(
    "quotient",
    [
        "n = ReduceL2<keepdims = 1>(h) c = Clip(n, eps) q = Div(h, c)",
        "n = ReduceL2<keepdims = 1>(h) c = Add(n, eps) q = Div(h, c)",
        "s = Mul(h, h) n = ReduceSum<keepdims = 1>(s) c = Add(n, eps) r = Sqrt(c) q = Div(h, r)",
        "s = Pow(h, two) n = ReduceMean<keepdims = 1>(s) c = Add(n, eps) r = Sqrt(c) q = Div(h, r)",
        "n = ReduceSumSquare<keepdims = 1>(h) r = Sqrt(n) q = Div(h, r)",
        "q = Div(h, two)",
    ],
)
def test_vectors_of_unit_length_may_be_mapped_in_half(tmp_path: Path, quotient: str) -> None:
    types = lowered_types(f"{quotient} m = MatMul(q, W) y = Relu(m)", tmp_path)
    assert types["m"] == "FLOAT16"


def test_means_by_a_count_may_be_mapped_in_half(tmp_path: Path) -> None:
    body = "o = Shape(x) w = Slice(o, zero, one) c = Cast<to = 1>(w) s = ReduceSum<keepdims = 1>(h) q = Div(s, c)"
    constants = ", int64[1] zero = {0}, int64[1] one = {1}"
    types = lowered_types(f"{body} e = Expand(q, o) m = MatMul(e, W) y = Relu(m)", tmp_path, constants)
    assert types["m"] == "FLOAT16"


def test_weights_multiplied_by_more_than_one_are_no_weights(tmp_path: Path) -> None:
    for factor, expected in ((1.0, "FLOAT16"), (1000.0, "FLOAT")):
        body = "s = Softmax(h) k = Mul(s, big) m = MatMul(k, h) y = Relu(m)"
        assert lowered_types(body, tmp_path, f", float big = {{{factor}}}")["m"] == expected
