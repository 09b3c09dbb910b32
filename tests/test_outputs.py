"""Graphs that do not make what the manifest promises: one clear error, never a score that was spread or misplaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from camp_sdk import Bundle, BundleError, Retriever
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.engines.base import check_outputs
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest
from tests.helpers.manifests import Change, drop, put, rewrite
from tests.helpers.profiles import profile_between

QUERY = "a red circle"
BACKENDS = ["onnxruntime", "openvino"]


def shorten(bundle: Path, graph: str, output: str, start: int, stop: int, axis: int = 0) -> Path:
    """Let a graph make only a part of an output, under the same name and contract."""
    path = bundle / f"{graph}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["whole" if name == output else name for name in names]
    for name, values in (("start", [start]), ("stop", [stop]), ("axis", [axis])):
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [1], values))
    model.graph.node.append(helper.make_node("Slice", ["whole", "start", "stop", "axis"], [output]))
    for dim in next(value for value in model.graph.output if value.name == output).type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_param = f"any_{dim.dim_param}"  # the engine itself would refuse another size of a named axis
    onnx.save(model, path)
    write_manifest(bundle, read_manifest(bundle / MANIFEST_FILE))
    return bundle


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("graph", "output", "stop"),
    [
        ("image", "image.V", 1),  # one row, which numpy would spread over all images
        ("image", "image.global", -1),
        ("text", "text.K", 1),
        ("text", "text.global", -1),
        ("scorer", "logits", 1),
        ("scorer", "logits", -1),
    ],
)
def test_fewer_rows_than_items(
    bundle_copy: Path, features: NDArray[np.float32], backend: str, graph: str, output: str, stop: int
) -> None:
    with (
        Retriever(shorten(bundle_copy, graph, output, 0, stop), backend) as retriever,
        pytest.raises(
            BundleError, match=rf"{graph}\.onnx made {output} \(.*\) of .*, expected \(.*breaks the contract"
        ),
    ):
        retriever.score_matrix(features, [QUERY, "star"])


@pytest.mark.parametrize("axis", [1, 3])
def test_an_explanation_of_other_words_or_regions(bundle_copy: Path, features: NDArray[np.float32], axis: int) -> None:
    folder = shorten(bundle_copy, "explainer", "attention.to_words", 0, 0 if axis == 1 else 2, axis)
    with (
        Retriever(folder, "onnxruntime") as retriever,
        pytest.raises(BundleError, match=r"explainer\.onnx made attention\.to_words"),
    ):
        retriever.explain(QUERY, features[0])


def test_parts_are_checked_before_they_are_put_together(bundle_copy: Path) -> None:
    bundle = Bundle(shorten(bundle_copy, "scorer", "logits", 0, 1))
    spec = bundle.manifest.graphs["scorer"]
    profile = profile_between(spec, {}, {"I": 2, "T": 2, "N": 8, "R": 8})
    feeds = {"image.V": (5, 5, 16), "text.K": (3, 4, 16), "text.T": (3, 4, 16), "text.mask": (3, 4)}
    arrays: dict[str, Any] = {name: np.ones(shape, np.float32) for name, shape in feeds.items()}
    arrays["text.mask"] = np.ones((3, 4), bool)
    with (
        SplittingEngine(OnnxRuntimeEngine(bundle.file(spec.file)), spec, profile) as engine,
        pytest.raises(BundleError, match=r"made logits \(1, 2\)"),
    ):
        engine.run(arrays)


def test_sound_outputs_pass(feature_bundle: Path, features: NDArray[np.float32]) -> None:
    bundle = Bundle(feature_bundle)
    with open_engine(bundle, "image", "onnxruntime") as engine:
        feeds = {"features": features}
        check_outputs(bundle.manifest.graphs["image"], feeds, engine.run(feeds))


IMAGE, TEXT = ("graphs", "image", "outputs"), ("graphs", "text", "outputs")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(drop(*TEXT, "text.global"), id="a global vector of one side"),
        pytest.param(put(["T", 17], *TEXT, "text.global", "shape"), id="global vectors of two widths"),
        pytest.param(put(["T", "d"], *TEXT, "text.global", "shape"), id="global vectors of no width"),
        pytest.param(put(["I", "R", 10**18], *IMAGE, "image.V", "shape"), id="a width of 10^18"),
        pytest.param(put(["I", "R", -1], *IMAGE, "image.V", "shape"), id="a width of -1"),
        pytest.param(put(["I", "R", 0], *IMAGE, "image.V", "shape"), id="a width of 0"),
        pytest.param(put(["I", "R", True], *IMAGE, "image.V", "shape"), id="a width that is a truth"),
        pytest.param(put(["I"] * 40, *IMAGE, "image.V", "shape"), id="40 axes"),
        pytest.param(put("I R 16", *IMAGE, "image.V", "shape"), id="a shape that is a text"),
        pytest.param(put(["R", "I", 16], *IMAGE, "image.V", "shape"), id="images that are not first"),
        pytest.param(put("object", *IMAGE, "image.V", "dtype"), id="objects"),
        pytest.param(put({"dtype": "float32", "shape": ["I"]}, "graphs", "image", "inputs", "x"), id="one more input"),
        pytest.param(put({}, "graphs", "scorer", "outputs"), id="no logits"),
        pytest.param(put(["I", "T", 1], "graphs", "scorer", "outputs", "logits", "shape"), id="logits of three axes"),
        pytest.param(put({}, "graphs", "explainer", "outputs"), id="nothing explained"),
        pytest.param(put(0, "tokenizer", "vocabulary"), id="no vocabulary"),
        pytest.param(put({}, "graphs", "g" * 10**6), id="a graph with a long name"),
        pytest.param(put("f" * 10**6, "graphs", "image", "file"), id="a file with a long name"),
        pytest.param(put("image\0.onnx", "graphs", "image", "file"), id="a file whose name ends early"),
        pytest.param(put("\ud800.onnx", "graphs", "image", "file"), id="a file whose name is no text"),
        pytest.param(put("0" * 10**6, "files", "image.onnx", "sha256"), id="a long hash"),
        pytest.param(put({}, "precisions", "p" * 10**6), id="a precision with a long name"),
    ],
)
def test_a_contract_that_cannot_be(bundle_copy: Path, change: Change) -> None:
    with pytest.raises(
        BundleError, match=r"manifest\.json breaks the contract \(\w+: .*\); export the bundle"
    ) as raised:
        Bundle(rewrite(bundle_copy, change))
    assert len(str(raised.value)) < 2000
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [("grid", [0, 6]), ("grid", [6, -1]), ("grid", [10**9, 6]), ("height", 128), ("width", 10**9)],
)
def test_pixels_that_cannot_be(picture_bundle: Path, tmp_path: Path, key: str, value: Any) -> None:
    copy = Path(shutil.copytree(picture_bundle, tmp_path / "bundle"))
    with pytest.raises(BundleError, match=r"manifest\.json breaks the contract"):
        Bundle(rewrite(copy, put(value, "pixels", key)))


def test_a_file_name_of_300_bytes(bundle_copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["n" * 300] = manifest["files"]["image.onnx"]

    with pytest.raises(BundleError, match=r"lists a file that cannot exist .*File name too long"):
        Bundle(rewrite(bundle_copy, change))
