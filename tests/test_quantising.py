"""int8 in graphs: what is quantised, how, and that every engine computes the same from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from camp_sdk import Retriever
from camp_sdk.export.bundling import coarse_gate, writer
from camp_sdk.export.bundling.coarse_gate import CoarseCheck, held_out
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.quantising import HEADROOM, largest_inputs, quantise_graph
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.gallery import texts_of
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.manifest import write_manifest
from camp_sdk.runtime.scoring import logit_matrix
from tests.helpers.hardware import needs_bfloat16
from tests.helpers.tiny import CAPTIONS

K, M = 16, 8


def a_map(path: Path, W: NDArray[np.float32]) -> Path:
    """x [A, B, C, K] @ W [K, M]."""
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["A", "B", "C", K])]
    values.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B", "C", M]))
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    graph = helper.make_graph([node], "map", values[:1], values[1:], [numpy_helper.from_array(W, "W")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def uneven(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and weights; one channel of the inputs is fifty times as large as the others."""
    rng = np.random.default_rng(seed)
    x, W = rng.standard_normal((2, 3, 5, K), dtype=np.float32), rng.standard_normal((K, M), dtype=np.float32)
    x[..., 3] *= 50
    return x, W


ENGINES = [OnnxRuntimeEngine, OpenVinoEngine]


@pytest.fixture(params=ENGINES, ids=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> Callable[[Path], Engine]:
    if request.param is OpenVinoEngine:
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return lambda path: request.param(HeldFile(path))


def test_the_largest_inputs_are_those_of_all_examples(tmp_path: Path) -> None:
    x, W = uneven()
    (found,) = largest_inputs(a_map(tmp_path / "scorer.onnx", W), [{"x": x[:1]}, {"x": x[1:]}])
    np.testing.assert_array_equal(found, np.abs(x).max((0, 1, 2)))


def test_bytes_are_multiplied_as_the_graph_says(tmp_path: Path, engine: Callable[[Path], Engine]) -> None:
    """Against numpy, with the steps and factors that the graph holds."""
    x, W = uneven()
    source = a_map(tmp_path / "scorer.onnx", W)
    quantise_graph(source, tmp_path / "int8.onnx", largest_inputs(source, [{"x": x}]))
    constants = ir.load(tmp_path / "int8.onnx").graph.initializers.values()
    part = {str(one.name).removeprefix("int8.0."): one.const_value.numpy() for one in constants if one.const_value}
    assert part["weights"].dtype == np.int8
    assert np.abs(part["weights"]).max(0).tolist() == [127] * M  # every column uses all steps
    rows = np.clip(np.round(x * part["smoothing"] / part["step"]), -128, 127)
    assert np.abs(rows).max() == round(127 / HEADROOM)  # there is room for larger values
    expected = (rows.astype(np.float64) @ part["weights"]) * part["step"] * part["steps"]
    with engine(tmp_path / "int8.onnx") as opened:
        found = opened.run({"x": x})["y"]
    # A number between two steps may be rounded either way: it changes a sum by one step times one weight.
    unit = float((part["step"] * part["steps"] * 127).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 * unit)
    assert np.mean(np.abs(found - expected) > 1e-4 * unit) < 0.05


def test_float8_rounds_to_three_bits_of_fraction(tmp_path: Path) -> None:
    """Against numpy: both factors are rounded to float8, which keeps four significant bits, and multiplied exactly."""
    x, W = uneven()
    source = a_map(tmp_path / "scorer.onnx", W)
    quantise_graph(source, tmp_path / "fp8.onnx", largest_inputs(source, [{"x": x}]), "float8")
    constants = ir.load(tmp_path / "fp8.onnx").graph.initializers.values()
    part = {str(one.name).removeprefix("float8.0."): one.const_value.numpy() for one in constants if one.const_value}
    weights = part["weights"].astype(np.float32)
    assert np.abs(weights).max(0).tolist() == [448] * M
    scaled = W / part["smoothing"][:, None] / part["steps"]
    normal = np.abs(scaled) >= 2**-6  # smaller ones have a fixed step
    assert np.abs(weights / scaled - 1)[normal].max() <= 2**-4 * (1 + 1e-6)
    rows = (x * part["smoothing"] / part["step"]).astype(part["weights"].dtype).astype(np.float64)
    assert np.abs(rows).max() == pytest.approx(448 / HEADROOM, rel=2**-4)
    with OnnxRuntimeEngine(HeldFile(tmp_path / "fp8.onnx")) as opened:
        found = opened.run({"x": x})["y"]
    # Factors of float8 multiply exactly in float32; sums of 16 of them round 16 times.
    np.testing.assert_allclose(found, rows @ weights * part["step"] * part["steps"], rtol=1e-5, atol=1e-4)


def test_smoothing_saves_the_small_channels(tmp_path: Path) -> None:
    x, W = uneven()
    source = a_map(tmp_path / "scorer.onnx", W)
    sizes = largest_inputs(source, [{"x": x}])
    errors = []
    for name, largest in (("smooth", sizes[0]), ("flat", np.full(K, sizes[0].max(), np.float32))):
        quantise_graph(source, tmp_path / f"{name}.onnx", [largest])
        with OnnxRuntimeEngine(HeldFile(tmp_path / f"{name}.onnx")) as opened:
            errors.append(float(np.abs(opened.run({"x": x})["y"] - x @ W).mean()))
    assert errors[0] < errors[1] / 2


def test_values_beyond_the_examples_are_cut_off(tmp_path: Path, engine: Callable[[Path], Engine]) -> None:
    x, W = uneven()
    source = a_map(tmp_path / "scorer.onnx", W)
    quantise_graph(source, tmp_path / "int8.onnx", largest_inputs(source, [{"x": x}]))
    with engine(tmp_path / "int8.onnx") as opened:
        far, further = (opened.run({"x": x * np.float32(scale)})["y"] for scale in (1e4, 1e6))
    np.testing.assert_allclose(far, further, rtol=1e-5)


def test_channels_that_are_zero_on_all_examples(tmp_path: Path) -> None:
    x, W = uneven()
    W[2] = 0
    source = a_map(tmp_path / "scorer.onnx", W)
    for sizes in (np.abs(x).max((0, 1, 2)) * (np.arange(K) != 5), np.zeros(K)):
        quantise_graph(source, tmp_path / "int8.onnx", [sizes.astype(np.float32)])
        with OnnxRuntimeEngine(HeldFile(tmp_path / "int8.onnx")) as opened:
            assert np.isfinite(opened.run({"x": x})["y"]).all()


def test_examples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    x, W = uneven()
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="scorer computes NaN or infinity on the examples"):
        largest_inputs(a_map(tmp_path / "scorer.onnx", W), [{"x": x}])


# In a bundle


def test_only_the_maps_of_regions_and_words_are_int8(feature_bundle: Path) -> None:
    graph = ir.load(feature_bundle / "int8/scorer.onnx").graph
    products = [node for node in graph if node.op_type == "MatMul"]
    quantised = [node for node in products if node.inputs[0].producer().op_type == "DequantizeLinear"]  # type: ignore[union-attr]  # both inputs are there
    assert len(quantised) == 2  # F_v and F_t
    assert len(products) > 6
    manifest = Bundle(feature_bundle).manifest
    lowered = manifest.precisions["int8"]
    assert list(lowered.graphs) == ["scorer"]
    assert lowered.graphs["scorer"].inputs == manifest.graphs["scorer"].inputs
    assert [check["name"] for check in lowered.checks] == ["real", "zero features", "huge features", "one word"]
    assert lowered.logit_error is not None
    assert 0 < lowered.logit_error < 1


def test_the_error_is_measured_on_what_was_held_out() -> None:
    out = held_out(4, 6)
    assert out.sum() == 4 * 6 - 2 * 3
    assert not out[::2, ::2].any()
    assert held_out(1, 1).all()


def test_a_variant_without_such_maps_is_refused(checkpoints: Callable[[str, bool], Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the scorer of this variant has no product that is worth int8"):
        export_bundle(checkpoints("scalar", False), tmp_path / "bundle", ["int8"])
    assert not list(tmp_path.iterdir())


@needs_bfloat16
def test_openvino_computes_the_rest_in_bfloat16(bundle_copy: Path, features: NDArray[np.float32]) -> None:
    """Where the error was measured so, and the processor can; else in float32."""
    manifest = Bundle(bundle_copy).manifest
    lowered = manifest.precisions["int8"]
    assert lowered.rest_in_bfloat16
    assert lowered.logit_error is not None
    found = {}
    for rest in (True, False):
        changed = manifest.precisions | {"int8": replace(lowered, rest_in_bfloat16=rest)}
        write_manifest(bundle_copy, replace(manifest, precisions=changed))
        with Retriever(bundle_copy, "openvino") as retriever:
            images, texts = retriever.encode_images(features), retriever.encode_texts(CAPTIONS)
            model = retriever.model
            found[rest] = logit_matrix(model.scorer("int8"), model.images_of(images), texts_of(texts))
    difference = np.abs(found[True] - found[False]).max()
    assert 0 < difference < 3 * lowered.logit_error  # other pairs than those of the export


@pytest.mark.parametrize("passes", [(True,), (False, True), (False, False)])
def test_the_rest_stays_in_float32_if_bfloat16_fails_the_gate(
    checkpoints: Callable[[str, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: tuple[bool, ...]
) -> None:
    left, rests = list(passes), []

    def checks(model: Any, origin: Any, bundle: Bundle, precision: str) -> list[CoarseCheck]:
        rests.append(bundle.manifest.precisions[precision].rest_in_bfloat16)
        return [a_check() if left.pop(0) else a_check(top10_agreement=0.5)]

    monkeypatch.setattr(writer, "check_coarse", checks)
    monkeypatch.setattr(writer, "is_fast", lambda precision: True)
    with nullcontext() if any(passes) else pytest.raises(ExportError, match="int8 is too coarse"):
        lowered = export_bundle(checkpoints("paper", False), tmp_path / "b", ["int8"]).manifest.precisions["int8"]
        assert (lowered.rest_in_bfloat16, lowered.logit_error) == (passes[0], 0.1)
    assert rests == [True, False][: len(passes)]


def a_check(**change: Any) -> CoarseCheck:
    values: dict[str, Any] = {"name": "real", "images": 20, "texts": 100, "finite": True, "logit_error": 0.1}
    return CoarseCheck(**values | {"share_of_range": 0.01, "top10_agreement": 1.0, "rescored": 11.0} | change)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"finite": False}, "not finite"),
        ({"share_of_range": 0.11}, "99.9% error, as a share of the range, 11.0% (at most 10%)"),
        ({"share_of_range": float("nan")}, "of the range, nan"),
        ({"name": "huge features", "share_of_range": 0.5}, None),  # the second pass sees it, and scores more
        ({"top10_agreement": 0.985}, "98.5% of the top 10 (at least 99%)"),
    ],
)
def test_what_passes_the_gate(change: dict[str, Any], fault: str | None) -> None:
    faults = a_check(**change).faults()
    assert (faults == []) if fault is None else (fault in faults[0])


def test_a_network_too_coarse_for_int8_is_refused(
    checkpoints: Callable[[str, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse_gate, "MAX_SHARE_OF_RANGE", 1e-9)
    with pytest.raises(
        ExportError,
        match=r"int8 is too coarse for this network, no bundle was written: real: 99.*export without --precision",
    ):
        export_bundle(checkpoints("paper", False), tmp_path / "bundle", ["int8"])
    assert not list(tmp_path.iterdir())
