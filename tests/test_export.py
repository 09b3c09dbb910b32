"""The export: the graphs' form, PyTorch's numbers at any shape, and that a wrong graph is never written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from camp_sdk import Bundle, BundleError, InputError, Retriever
from camp_sdk.export.bundling import writer
from camp_sdk.export.bundling.cases import require
from camp_sdk.export.bundling.graphs import Graph, export_graph
from camp_sdk.export.bundling.onnx_files import ExportError, check_graph
from camp_sdk.export.bundling.parity import FAILURE, MAX_ERROR, check_parity, same_order
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.checkpoint import KEY, load_checkpoint
from camp_sdk.export.network.encoders import word_mask
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.files import sha256_of
from tests.helpers.tiny import FEATURE_WIDTH, files_of, save_tiny_checkpoint, tiny_model, tiny_origin

ROOT = Path(__file__).parents[1]
Checkpoints = Callable[[str, bool], Path]

# Float32 sums of 16 terms in another order; engines and PyTorch differ by about 1e-6 here.
SAME = {"rtol": 0, "atol": 2e-5}

both_variants = pytest.mark.parametrize("variant", ["paper", "scalar"])


@pytest.fixture(scope="session")
def bundles(feature_bundle: Path, picture_bundle: Path) -> dict[str, Path]:
    """A bundle of each variant. Read only."""
    return {"paper": feature_bundle, "scalar": picture_bundle}


def model_of(variant: str) -> Camp:
    """The network that the bundle of a variant was exported from."""
    return tiny_model(variant, pictures=variant == "scalar")


def read_graph(bundle: Path, name: str) -> Any:
    return onnx.load(bundle / f"{name}.onnx").graph


def axes(graph: Any) -> dict[str, list[str | int]]:
    """The declared shape of every input and output, letters for dynamic axes."""
    values = (*graph.input, *graph.output)
    return {v.name: [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in values}


def producer(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if name in node.output)


def run_graph(bundle: Path, name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(bundle / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True))


def some_inputs(images: int, regions: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [I, R, 12], tokens [T, longest] and lengths [T]."""
    rng = np.random.default_rng(3)
    features = torch.from_numpy(rng.standard_normal((images, regions, FEATURE_WIDTH), dtype=np.float32))
    tokens = torch.from_numpy(rng.integers(1, 20, (len(lengths), max(lengths))))
    return features, tokens * word_mask(torch.tensor(lengths), max(lengths)), torch.tensor(lengths)


# What the graphs look like


@both_variants
def test_the_axes_of_every_graph_are_dynamic(bundles: dict[str, Path], variant: str) -> None:
    image, text, scorer = (axes(read_graph(bundles[variant], name)) for name in ("image", "text", "scorer"))
    assert image["features"] == ["I", "R", FEATURE_WIDTH]
    assert (text["tokens"], text["lengths"]) == (["T", "N"], ["T"])
    assert image["image.V"][:2] == scorer["image.V"][:2] == ["I", "R"]
    assert text["text.T"][:2] == scorer["text.T"][:2] == ["T", "N"]
    assert scorer["text.mask"] == ["T", "N"]
    assert scorer["logits"] == ["I", "T"]


@both_variants
def test_the_explainer_gives_one_weight_a_region_and_word(bundles: dict[str, Path], variant: str) -> None:
    explainer = axes(read_graph(bundles[variant], "explainer"))
    assert explainer["attention.to_words"] == explainer["attention.to_regions"] == ["I", "T", "R", "N"]
    assert (explainer["gates.regions"], explainer["gates.words"]) == (["I", "T", "R"], ["I", "T", "N"])


def test_the_vision_graph_takes_any_number_of_pictures(picture_bundle: Path) -> None:
    vision = axes(read_graph(picture_bundle, "vision"))
    assert (vision["pixels"], vision["features"][1:]) == (["B", 3, 96, 96], [36, FEATURE_WIDTH])
    assert isinstance(vision["features"][0], str)


@both_variants
def test_the_manifest_says_what_the_files_declare(bundles: dict[str, Path], variant: str) -> None:
    for name, spec in Bundle(bundles[variant]).manifest.graphs.items():
        declared = axes(read_graph(bundles[variant], name))
        assert {s.name: list(s.shape) for s in (*spec.inputs, *spec.outputs)} == declared


@both_variants
def test_the_text_graph_reverses_each_text_by_its_length(bundles: dict[str, Path], variant: str) -> None:
    """Not by the lengths of the GRU operator, which not every engine heeds."""
    graph = read_graph(bundles[variant], "text")
    lengths = 4  # its place among the inputs of GRU
    assert [node.input[lengths] for node in graph.node if node.op_type == "GRU"] == ["", ""]
    reversals = [node for node in graph.node if node.op_type == "ReverseSequence"]
    assert [node.input[1] for node in reversals] == ["lengths", "lengths"]


@both_variants
def test_the_scorer_reads_the_mask(bundles: dict[str, Path], variant: str) -> None:
    graph = read_graph(bundles[variant], "scorer")
    assert "text.mask" in {name for node in graph.node for name in node.input}


@both_variants
def test_logits_leave_the_scorer_without_a_sigmoid(bundles: dict[str, Path], variant: str) -> None:
    graph = read_graph(bundles[variant], "scorer")
    name, shaping = "logits", {"Squeeze", "Reshape", "Identity", "Cast", "Transpose", "Unsqueeze"}
    while (node := producer(graph, name)).op_type in shaping:
        name = node.input[0]
    assert node.op_type in {"Add", "Gemm", "MatMul"}


@both_variants
def test_the_key_maps_are_one_folded_matrix_in_the_text_graph(bundles: dict[str, Path], variant: str) -> None:
    graph, scorer = read_graph(bundles[variant], "text"), model_of(variant).scorer
    node = producer(graph, "text.K")
    weights = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    folded = (scorer.W_t.weight.T @ scorer.W_v.weight / 4).detach()  # sqrt(d) = 4
    assert node.op_type == "MatMul"
    np.testing.assert_allclose(weights[node.input[1]], folded, **SAME)


@both_variants
def test_no_weight_is_multiplied_at_run_time(bundles: dict[str, Path], variant: str) -> None:
    for name in ("image", "text", "scorer"):
        graph = read_graph(bundles[variant], name)
        fixed = {value.name for value in graph.initializer}
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        assert not [node.name for node in products if fixed.issuperset(node.input)]


@both_variants
def test_w_v_is_not_on_the_image_side(bundles: dict[str, Path], variant: str) -> None:
    W_v = model_of(variant).scorer.W_v.weight.detach().numpy()
    arrays = [numpy_helper.to_array(value) for value in read_graph(bundles[variant], "image").initializer]
    assert not any(a.shape == W_v.shape and (np.allclose(a, W_v) or np.allclose(a, W_v.T)) for a in arrays)


@pytest.mark.parametrize(
    ("variant", "names"),
    [("paper", ["image.V", "image.global"]), ("scalar", ["image.V", "image.P", "image.Q", "image.global"])],
)
def test_the_image_side_keeps_what_a_pair_needs_and_no_more(
    bundles: dict[str, Path], variant: str, names: list[str]
) -> None:
    assert [output.name for output in read_graph(bundles[variant], "image").output] == names


# ONNX = PyTorch


@both_variants
@pytest.mark.parametrize(
    ("images", "regions", "lengths"),
    [(4, 1, [7, 3]), (4, 9, [7, 3, 5]), (1, 7, [4]), (2, 5, [1]), (3, 6, [1, 1]), (2, 36, [49, 2])],
    ids=["R=1", "R=9", "I=T=1", "N=1,T=1", "N=1", "longest"],
)
@torch.no_grad()
def test_onnx_equals_torch_at_other_shapes_than_the_example(
    bundles: dict[str, Path], variant: str, images: int, regions: int, lengths: list[int]
) -> None:
    features, tokens, counts = some_inputs(images, regions, lengths)
    sides = run_graph(bundles[variant], "image", {"features": features.numpy()})
    sides |= run_graph(bundles[variant], "text", {"tokens": tokens.numpy(), "lengths": counts.numpy()})
    model = model_of(variant)
    for name, expected in (model.encode_images(features) | model.encode_texts(tokens, counts)).items():
        np.testing.assert_allclose(sides[name], expected, **SAME, err_msg=name)
    logits = run_graph(bundles[variant], "scorer", sides)["logits"]
    np.testing.assert_allclose(logits, model(features, tokens, counts), **SAME)


@both_variants
@torch.no_grad()
def test_the_explainer_equals_torch(bundles: dict[str, Path], variant: str) -> None:
    model, (features, tokens, lengths) = model_of(variant), some_inputs(3, 9, [7, 1, 4])
    image, text = model.encode_images(features), model.encode_texts(tokens, lengths)
    feeds = {name: tensor.numpy() for name, tensor in (image | text).items()}
    found = run_graph(bundles[variant], "explainer", feeds)
    for name, expected in model.scorer.explain(image, text).items():
        np.testing.assert_allclose(found[name], expected, **SAME, err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_the_vision_graph_equals_torch(picture_bundle: Path, count: int) -> None:
    pixels = tiny_origin("scalar", True).example_batch()[:count]
    vision = model_of("scalar").vision
    assert vision is not None
    found = run_graph(picture_bundle, "vision", {"pixels": pixels.numpy()})["features"]
    np.testing.assert_allclose(found, vision(pixels), **SAME)


@both_variants
def test_parity_figures_are_in_the_manifest(bundles: dict[str, Path], variant: str) -> None:
    figures = json.loads((bundles[variant] / "manifest.json").read_text())["parity"]
    assert {"one text", "one image", "ragged", "padded by 7"} <= {check["name"] for check in figures}
    assert {check["texts"] for check in figures} >= {1}
    assert all(check["same_top"] and check["max_logit_error"] <= 1e-4 for check in figures)


@both_variants
def test_golden_examples_reproduce_through_the_runtime(bundles: dict[str, Path], variant: str) -> None:
    golden = np.load(bundles[variant] / "golden.npz", allow_pickle=False)
    sides = run_graph(bundles[variant], "image", {"features": golden["features"]})
    sides |= run_graph(bundles[variant], "text", {"tokens": golden["tokens"], "lengths": golden["lengths"]})
    logits = run_graph(bundles[variant], "scorer", sides)["logits"]
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=MAX_ERROR)  # the export's own limit


def test_golden_pixels_give_golden_features(picture_bundle: Path) -> None:
    golden = np.load(picture_bundle / "golden.npz", allow_pickle=False)
    found = run_graph(picture_bundle, "vision", {"pixels": golden["pixels"]})["features"]
    np.testing.assert_allclose(found, golden["features"], **SAME)


def test_the_retriever_gives_the_logits_of_the_network(feature_retriever: Retriever, features: np.ndarray) -> None:
    texts = ["a red circle", "a small red star, left of a large blue circle!"]
    tokens = tiny_origin("paper", False).open_tokenizer().encode(texts)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    with torch.no_grad():
        expected = tiny_model("paper")(torch.from_numpy(features), ids, lengths)
    np.testing.assert_allclose(feature_retriever.score_matrix(features, texts, logits=True), expected, **SAME)


# The gate


@pytest.fixture
def copied_graphs(monkeypatch: pytest.MonkeyPatch, feature_bundle: Path) -> None:
    """Instead of exporting (a minute), take the graphs of the feature bundle: those of the network of seed 0."""

    def copy_graph(graph: Graph, path: Path) -> Any:
        shutil.copy(feature_bundle / path.name, path)
        return check_graph(path, graph.axes)

    monkeypatch.setattr(writer, "export_graph", copy_graph)


@pytest.fixture
def other_checkpoint(tmp_path: Path) -> Path:
    """A network that the feature bundle's graphs do not compute."""
    return save_tiny_checkpoint(tmp_path / "other.ckpt", "paper", pictures=False, seed=1)


@pytest.mark.usefixtures("copied_graphs")
def test_graphs_of_the_right_network_pass_the_gate(tmp_path: Path, checkpoints: Checkpoints) -> None:
    bundle = export_bundle(checkpoints("paper", False), tmp_path / "bundle")
    assert bundle.folder == tmp_path / "bundle"


@pytest.mark.usefixtures("copied_graphs")
def test_graphs_of_another_network_leave_no_bundle(tmp_path: Path, other_checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="do not give PyTorch's scores"):
        export_bundle(other_checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["other.ckpt"]


@pytest.mark.usefixtures("copied_graphs")
def test_a_failed_export_leaves_an_older_bundle_untouched(bundle_copy: Path, other_checkpoint: Path) -> None:
    before = {path.name: sha256_of(path) for path in files_of(bundle_copy)}
    with pytest.raises(ExportError):
        export_bundle(other_checkpoint, bundle_copy)
    assert {path.name: sha256_of(path) for path in files_of(bundle_copy)} == before
    assert {path.name for path in bundle_copy.parent.iterdir()} == {"bundle", "other.ckpt"}


@pytest.mark.usefixtures("copied_graphs")
def test_an_export_replaces_an_older_bundle(bundle_copy: Path, checkpoints: Checkpoints) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"]["vision.onnx"] = {"bytes": 3, "sha256": "0"}
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    (bundle_copy / "vision.onnx").write_bytes(b"old")
    export_bundle(checkpoints("paper", False), bundle_copy)
    assert "vision.onnx" not in Bundle(bundle_copy).manifest.files
    assert not (bundle_copy / "vision.onnx").exists()


def test_a_bundle_with_something_else_in_it_is_not_replaced(bundle_copy: Path, checkpoints: Checkpoints) -> None:
    (bundle_copy / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="or holds other files too: name another folder"):
        export_bundle(checkpoints("paper", False), bundle_copy)
    assert (bundle_copy / "thesis.txt").read_text() == "mine"


def test_what_a_killed_build_left_does_not_keep_a_bundle_from_being_replaced(bundle_copy: Path) -> None:
    left = bundle_copy / "engines" / ".0123456789abcdef.x1_yz23w"
    left.mkdir(parents=True)
    (left / "engine.plan").write_bytes(b"half")
    writer.check_output(bundle_copy)
    (bundle_copy / "engines" / "x.x1_yz23w").mkdir()
    (bundle_copy / "engines" / "x.x1_yz23w" / "mine").touch()
    with pytest.raises(InputError, match="or holds other files too"):
        writer.check_output(bundle_copy)


def test_a_folder_with_the_manifest_of_another_program_is_not_replaced(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an extension of a browser"}')
    with pytest.raises(InputError, match="is not a bundle"):
        export_bundle(checkpoints("paper", False), tmp_path)


def perturb(bundle: Path, name: str, change: Callable[[Any], None]) -> Bundle:
    """Change one graph of a bundle, and its hash with it, as a wrong exporter would have."""
    model = onnx.load(bundle / f"{name}.onnx")
    change(model.graph)
    onnx.save(model, bundle / f"{name}.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    path = bundle / f"{name}.onnx"
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return Bundle(bundle)


def spoil_output(name: str, factor: float) -> Callable[[Any], None]:
    """Multiply one output of a graph by a factor."""

    def change(graph: Any) -> None:
        node = producer(graph, name)
        node.output[list(node.output).index(name)] = f"{name}.right"
        for reader in graph.node:  # they go on reading the right numbers
            reader.input[:] = [f"{name}.right" if read == name else read for read in reader.input]
        graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), f"{name}.factor"))
        graph.node.append(onnx.helper.make_node("Mul", [f"{name}.right", f"{name}.factor"], [name]))

    return change


@pytest.mark.parametrize(
    ("graph", "output"),
    [
        ("scorer", "logits"),
        ("text", "text.K"),
        ("image", "image.V"),
        ("explainer", "attention.to_words"),
        ("explainer", "gates.words"),
        ("image", "image.global"),
        ("text", "text.global"),
    ],
)
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_output_fails_the_gate(bundle_copy: Path, graph: str, output: str, factor: float) -> None:
    bundle = perturb(bundle_copy, graph, spoil_output(output, factor))
    checks = check_parity(tiny_model("paper"), tiny_origin("paper", False), bundle)
    with pytest.raises(ExportError):
        require(checks, FAILURE)


def test_the_untouched_bundle_passes_the_gate(feature_bundle: Path) -> None:
    require(check_parity(tiny_model("paper"), tiny_origin("paper", False), Bundle(feature_bundle)), FAILURE)


def test_a_tie_may_come_in_either_order_and_a_swap_may_not() -> None:
    expected = np.array([[0.0], [1e-5], [1.0]], np.float32)
    assert same_order(expected, np.array([[1e-5], [0.0], [1.0]], np.float32))
    assert not same_order(expected, np.array([[1.0], [0.0], [1e-5]], np.float32))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path, checkpoints: Checkpoints, kind: str) -> None:
    output = tmp_path / "precious"
    (output if kind == "file" else tmp_path / "precious" / "thesis.txt").parent.mkdir(exist_ok=True)
    (output if kind == "file" else output / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        export_bundle(checkpoints("paper", False), output)
    assert (output if kind == "file" else output / "thesis.txt").read_text() == "mine"


# The look at each file

FEATURES = {"features": (torch.zeros(3, 7, 4), ("I", "R", "D"))}
WITH_LENGTHS = FEATURES | {"lengths": (torch.zeros(3, dtype=torch.int64), ("I",))}


class Identity(nn.Module):
    """Stands in for a network where only the contract matters."""

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        return (features * 2,)


class FrozenRegions(nn.Module):
    """Works for seven regions and for no other number."""

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return (features + torch.arange(7.0)[None, :, None],)


def write_model(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> g {text}'), path)
    return path


def test_a_sound_file_gives_its_contract(tmp_path: Path) -> None:
    path = write_model(tmp_path / "g.onnx", "(float[s0,s1,4] features) => (float[s0,s1,4] out) {out = Relu(features)}")
    inputs, outputs = check_graph(path, Graph("image", Identity(), FEATURES, {"out": ("I", "R", "d")}).axes)
    assert (inputs[0].name, inputs[0].shape, outputs[0].shape) == ("features", ("I", "R", 4), ("I", "R", 4))


@pytest.mark.parametrize("declared", ["I d", "I R R", "I R d d"])
def test_an_output_with_other_axes_than_declared(tmp_path: Path, declared: str) -> None:
    path = write_model(tmp_path / "g.onnx", "(float[s0,s1,4] features) => (float[s0,s1,4] out) {out = Relu(features)}")
    with pytest.raises(ExportError, match=rf"the image graph makes out \[I R 4\], declared as '{declared}'"):
        check_graph(path, Graph("image", Identity(), FEATURES, {"out": tuple(declared.split())}).axes)


@pytest.mark.parametrize(("shape", "letter"), [("3,s1,4", "I"), ("s0,7,4", "R")])
def test_a_frozen_axis_is_refused(tmp_path: Path, shape: str, letter: str) -> None:
    path = write_model(
        tmp_path / "g.onnx", f"(float[{shape}] features) => (float[{shape}] out) {{out = Relu(features)}}"
    )
    with pytest.raises(ExportError, match=f"image graph froze axis {letter} of features"):
        check_graph(path, Graph("image", Identity(), FEATURES, {"out": ("I", "R", "d")}).axes)


def test_two_axes_tied_together_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "g.onnx", "(float[s0,s0,4] features) => (float[s0,s0,4] out) {out = Relu(features)}")
    with pytest.raises(ExportError, match="ties axis I to axis R"):
        check_graph(path, Graph("image", Identity(), FEATURES, {"out": ("I", "R", "d")}).axes)


def test_an_input_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    body = "(float[s0,s1,4] features, int64[s0] lengths) => (float[s0,s1,4] out) {out = Relu(features)}"
    path = write_model(tmp_path / "g.onnx", body)
    with pytest.raises(ExportError, match="does not read its input lengths"):
        check_graph(path, Graph("text", Identity(), WITH_LENGTHS, {"out": ("T", "N")}).axes)


def test_an_input_that_is_gone_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "g.onnx", "(float[s0,s1,4] features) => (float[s0,s1,4] out) {out = Relu(features)}")
    with pytest.raises(ExportError, match="does not read its input lengths"):
        check_graph(path, Graph("text", Identity(), WITH_LENGTHS, {"out": ("T", "N")}).axes)


def test_an_output_of_another_name_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "g.onnx", "(float[s0,s1,4] features) => (float[s0,s1,4] out) {out = Relu(features)}")
    with pytest.raises(ExportError, match="has outputs"):
        check_graph(path, Graph("image", Identity(), FEATURES, {"image.V": ("I", "R", "d")}).axes)


def test_exporting_a_module_that_ignores_an_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not read its input lengths"):
        export_graph(Graph("text", Identity(), WITH_LENGTHS, {"out": ("T", "N")}), tmp_path / "g.onnx")


def test_exporting_a_module_that_freezes_an_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export_graph(Graph("image", FrozenRegions(), FEATURES, {"out": ("I", "R", "d")}), tmp_path / "g.onnx")


# Checkpoints


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def edited_checkpoint(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    loaded = torch.load(save_tiny_checkpoint(path, "paper", pictures=False), weights_only=True)
    edit(loaded)
    torch.save(loaded, path)
    return path


def drop_weight(loaded: dict[str, Any]) -> None:
    del loaded["state_dict"]["model.scorer.W_v.weight"]


def misshape_weight(loaded: dict[str, Any]) -> None:
    loaded["state_dict"]["model.scorer.W_v.weight"] = torch.zeros(3, 3)


def test_a_checkpoint_rebuilds_its_own_network(checkpoints: Checkpoints) -> None:
    model, origin = load_checkpoint(checkpoints("paper", False))
    features, tokens, lengths = some_inputs(2, 5, [4, 2])
    with torch.no_grad():
        assert torch.equal(model(features, tokens, lengths), tiny_model("paper")(features, tokens, lengths))
    assert origin.model == tiny_origin("paper", False).model
    assert not model.training


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.ckpt not found: expected a checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, checkpoints: Checkpoints, keep: int) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoints("paper", False).read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"cut\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, writer: Callable[[Any, Path], Any]) -> None:
    writer({KEY: Hostile(f"touch {tmp_path / 'ran'}")}, tmp_path / "evil.ckpt")
    with pytest.raises(BundleError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("foreign", [{"model": {}}, {KEY: {"format": 99}}, {KEY: 3}, [1, 2], torch.zeros(3)])
def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "foreign.ckpt")
    with pytest.raises(BundleError, match="is not a checkpoint of camp train"):
        load_checkpoint(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("edit", [drop_weight, misshape_weight])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = edited_checkpoint(tmp_path / "bad.ckpt", edit)
    with pytest.raises(BundleError, match=r"does not fit its own configuration(.|\n)*scorer\.W_v\.weight"):
        load_checkpoint(path)


@pytest.mark.parametrize("key", ["model", "tokenizer", "example_images", "pixels"])
def test_a_checkpoint_without_a_part_of_itself_is_refused(tmp_path: Path, key: str) -> None:
    path = edited_checkpoint(tmp_path / "bad.ckpt", lambda loaded: loaded[KEY].pop(key))
    with pytest.raises(BundleError, match="does not fit its own configuration"):
        load_checkpoint(path)


def test_a_checkpoint_whose_weights_are_no_dict_is_refused(tmp_path: Path) -> None:
    path = edited_checkpoint(tmp_path / "bad.ckpt", lambda loaded: loaded.update(state_dict=[1]))
    with pytest.raises(BundleError, match="does not fit its own configuration"):
        load_checkpoint(path)


# The script


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "export/to_onnx.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("damage", ["missing", "truncated", "misshapen"])
def test_the_script_says_in_one_line_what_is_wrong(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.ckpt"
    if damage == "truncated":
        path.write_bytes(b"PK\x03\x04 cut")
    if damage == "misshapen":
        edited_checkpoint(path, misshape_weight)
    done = run_script("--checkpoint", path, "--output", tmp_path / "bundle")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "bundle").exists()
