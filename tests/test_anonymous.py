"""Nothing of the machine in what export and training write; the same checkpoint gives the same bytes anywhere."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from camp_sdk import Bundle
from camp_sdk.export.bundling.anonymous import anonymise, anonymous_bytes
from camp_sdk.export.bundling.graphs import export_graph, vision_graph
from camp_sdk.export.bundling.lowering import lower_graph
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.export.network.backbones import OnnxVision, read_vision
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
from camp_sdk.export.training.vision_setup import anonymous
from tests.helpers.hardware import lower_precisions
from tests.helpers.tiny import files_of

ROOT = Path(__file__).parents[1]
RELEASED = Path(__file__).parent / "released"


def marks_of_this_machine() -> set[bytes]:
    """The project's, the packages', the home and the temporary folder, and the names of user and machine."""
    folders = {str(ROOT), sysconfig.get_path("purelib"), str(Path.home()), tempfile.gettempdir()}
    names = {name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4}  # shorter ones are words
    return {text.encode() for text in folders | names | {f"/{getpass.getuser()}/", "site-packages", ".py"}}


def content_of(path: Path) -> bytes:
    """A file's bytes, those of an archive unpacked, and its name."""
    packed = [path.read_bytes(), path.name.encode()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed += [member.encode() + archive.read(member) for member in archive.namelist()]
    return b"\n".join(packed)


def assert_nothing_of_this_machine(folder: Path, least: int) -> None:
    files = files_of(folder)
    assert len(files) >= least
    found = {(path.name, mark) for path in files for mark in marks_of_this_machine() if mark in content_of(path)}
    assert found == set()


# Bundles


def test_two_exports_of_a_checkpoint_are_equal_to_the_byte(
    feature_bundle: Path, checkpoints: Callable[[str, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "a folder" / "other name.ckpt"
    elsewhere.parent.mkdir()
    shutil.copy(checkpoints("paper", False), elsewhere)
    monkeypatch.chdir(elsewhere.parent)
    export_bundle(Path("other name.ckpt"), Path("again"), lower_precisions())
    again = elsewhere.parent / "again"
    names = [path.relative_to(feature_bundle) for path in files_of(feature_bundle)]
    assert [path.relative_to(again) for path in files_of(again)] == names
    assert [name for name in names if (again / name).read_bytes() != (feature_bundle / name).read_bytes()] == []


@pytest.mark.parametrize("bundle", ["feature_bundle", "picture_bundle"])
def test_bundles_hold_nothing_of_this_machine(bundle: str, request: pytest.FixtureRequest) -> None:
    assert_nothing_of_this_machine(request.getfixturevalue(bundle), 7)


def test_bundles_of_imported_checkpoints_hold_nothing_of_this_machine(
    released_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    assert_nothing_of_this_machine(released_bundle("gate_fusion_new"), 7)
    import_checkpoint(RELEASED / "gate_fusion.pth.tar", RELEASED / "vocab.pkl", tmp_path / "run")
    assert_nothing_of_this_machine(tmp_path / "run", 1)


def test_figures_have_three_digits(feature_bundle: Path) -> None:
    manifest = Bundle(feature_bundle).manifest
    checks = [*manifest.parity, *manifest.precisions["float16"].checks]
    figures = [value for check in checks for value in check.values() if isinstance(value, float)]
    assert figures
    assert all(float(f"{value:.3g}") == value for value in figures)


# The user's own graph


SECRET = "/home/somebody/models/net.py"


def secretive_graph(path: Path) -> Path:
    """A vision graph, with a branch, that has a path wherever ONNX has room for text."""
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["map"], strides=[8, 8], name=SECRET),
        helper.make_node("Reshape", ["map", "shape"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["regions"], perm=[0, 2, 1]),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        SECRET,
        [helper.make_tensor_value_info("picture", floats, ["batch", 3, 16, 16], doc_string=SECRET)],
        [helper.make_tensor_value_info("regions", floats, ["batch", 4, 5])],
        [
            onnx.numpy_helper.from_array(np.ones((5, 3, 8, 8), np.float32), "kernel"),
            onnx.numpy_helper.from_array(np.array([0, 5, -1], np.int64), "shape"),
        ],
        doc_string=SECRET,
        value_info=[helper.make_tensor_value_info("map", floats, ["batch", 5, 2, 2], doc_string=SECRET)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name=SECRET, doc_string=SECRET
    )
    model.producer_version, model.domain, model.model_version = SECRET, SECRET, 7
    nodes_and_values: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (model, model.graph, *nodes_and_values):
        item.doc_string = SECRET
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.metadata_props.add(key="stack_trace", value=SECRET)
    for attribute in model.graph.node[0].attribute:
        attribute.doc_string = SECRET
    onnx.save(model, path)
    return path


def test_a_users_graph_keeps_nothing_but_its_computation(tmp_path: Path) -> None:
    path = secretive_graph(tmp_path / "net.onnx")
    vision = read_vision(path)
    pixels = torch.rand(2, 3, 16, 16)
    expected = vision(pixels)
    target = tmp_path / "vision.onnx"
    export_graph(vision_graph(vision), target)
    assert SECRET.encode() in path.read_bytes()
    assert SECRET.encode() not in target.read_bytes()
    torch.testing.assert_close(OnnxVision(target.read_bytes())(pixels), expected, rtol=0, atol=0)
    lower_graph(path, tmp_path / "half.onnx", "float16")  # a graph that was not exported here
    half = onnx.load(tmp_path / "half.onnx")
    assert SECRET not in str([node.metadata_props for node in half.graph.node]) + half.producer_name
    kept = anonymous(read_vision(path))
    assert SECRET.encode() not in kept.graph
    assert anonymous_bytes(kept.graph, "vision") == kept.graph


def test_branches_and_functions_are_cleared_too() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]> g (float[2] x, bool c) => (float[2] y) {
        z = own.f(x) y = If (c) <then_branch = a () => (float[2] t) {t = Relu(z)}, else_branch = b () => (float[2] e)
        {e = Neg(z)}>
    }
    <domain: "own", opset_import: ["": 20]> f (x) => (y) {y = Abs(x)}"""
    model = onnx.parser.parse_model(text)
    inner = [attribute.g for attribute in model.graph.node[1].attribute]
    for item in (model.functions[0], model.functions[0].node[0], *inner, *(graph.node[0] for graph in inner)):
        item.doc_string = SECRET
        item.metadata_props.add(key="stack_trace", value=SECRET)
    assert SECRET.encode() not in anonymise(model, "g").SerializeToString()


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of eight images with three regions of width six, five captions each."""
    folder = tmp_path_factory.mktemp("precomp")
    for split in ("train", "dev"):
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(0).standard_normal((8, 3, 6), dtype=np.float32))
        (folder / f"{split}_caps.txt").write_text("".join(f"a thing of kind {k}\n" for k in range(40)))
    return folder


@pytest.mark.usefixtures("one_thread")
def test_a_run_writes_nothing_of_this_machine(data: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"width": 8, "word_width": 8, "batch_size": 8, "min_count": 1, "devices": "1"}
    config = TrainConfig(data, tmp_path / "run", variant="gate_fusion", attention_epochs=1, epochs=2, **sizes)
    run_training(config)
    assert_nothing_of_this_machine(config.output, 8)
    events = [path.name for path in config.output.rglob("events.*")]
    assert events
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d+\.camp\.\d+\.\d+", name) for name in events)
    assert json.loads((config.output / "run.json").read_text())["options"]["variant"] == "gate_fusion"
    (state,) = (
        state
        for state in torch.load(config.output / "best.ckpt", weights_only=True)["callbacks"].values()
        if state.get("monitor") == "rsum" and "best_model_path" in state
    )
    assert (state["best_model_path"], state["dirpath"], list(state["best_k_models"])) == (
        "best.ckpt",
        None,
        ["best.ckpt"],
    )
    (config.output / "finished").unlink()  # as if killed right before
    config.output.rename(tmp_path / "moved")
    moved = replace(config, output=tmp_path / "moved", resume=True)
    assert run_training(moved) == tmp_path / "moved/best.ckpt"
    assert_nothing_of_this_machine(moved.output, 8)
