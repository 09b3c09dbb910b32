"""int8 and float8, written into a graph: the maps of every region and word of a pair multiply bytes.

A map's input is divided by a factor for each channel, and the weights are multiplied by it, so that channels with large
values leave the others enough of the 255 steps of int8: SmoothQuant, Xiao et al. 2023, equation 4, with alpha = 1/2.
The input then has one scale for all its values, which leaves room above the largest value on the examples, and the
weights one for each of their columns. Both are symmetric around zero, as TensorRT expects; ONNX Runtime and OpenVINO
multiply int8 as well. float8 (E4M3: four bits of exponent, three of fraction) is for TensorRT; processors compute it in
float32. Everything else stays in float32.

Values beyond that range are cut off, and logits differ from those of float32 by much more than with 16 bits. So a
ranking uses these graphs only to find what it then scores in float32 (`camp_sdk.first_pass`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from camp_sdk.export.bundling.lowering import bulk_nodes, normalised, saved
from camp_sdk.export.bundling.onnx_files import ExportError, spec_of
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.lowered import FLOAT8, INT8

Channels = NDArray[np.float32]

# The type of a byte and its largest value. int8 has 127 steps on each side of zero.
BYTES = {INT8: (ir.DataType.INT8, 127), FLOAT8: (ir.DataType.FLOAT8E4M3FN, 448)}
# The range of an input, as a multiple of the largest value on the examples. On pictures of things that a trained
# network had never seen, the 99.9% quantile of the errors was 0.44 with 1, most of it from values that were cut off,
# 0.16 with 1.5 and 0.21 with 2; on pictures like the examples it grew from 0.13 to 0.20 with 1.5.
HEADROOM = 1.5
MINIMUM_SHARE = 1e-3  # of the largest channel: one that is zero on all examples must not be divided by zero


def largest_inputs(source: Path, feeds: Iterable[Arrays]) -> list[Channels]:
    """Run a graph on examples, and find how large the inputs of its maps get.

    Args:
        source: the float32 graph.
        feeds: the graph's inputs, one call each; at least one.

    Returns:
        The largest absolute value of each channel [K], for each map in the graph's order.

    Raises:
        ExportError: the graph has no map that is worth int8, or a value is NaN or infinite.
    """
    model = normalised(source)
    inputs = [str(node.inputs[0].name) for node in _maps(model.graph, source) if node.inputs[0]]
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.initializer.append(helper.make_tensor("int8.rows", TensorProto.INT64, [3], [0, 1, 2]))
    for number, name in enumerate(inputs):
        size, largest = f"int8.{number}.size", f"int8.{number}.largest"
        proto.graph.node.append(helper.make_node("Abs", [name], [size]))
        proto.graph.node.append(helper.make_node("ReduceMax", [size, "int8.rows"], [largest], keepdims=0))
        proto.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, ["K"]))
    found: list[Channels] | None = None
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(proto, Path(folder) / source.name)
        with OnnxRuntimeEngine(HeldFile(Path(folder) / source.name)) as engine:
            for one in feeds:
                sizes = list(engine.run(one).values())
                found = sizes if found is None else [np.maximum(*both) for both in zip(found, sizes, strict=True)]
    assert found is not None
    if not all(np.isfinite(sizes).all() for sizes in found):
        raise ExportError(f"the {source.stem} computes NaN or infinity on the examples")
    return found


def quantise_graph(
    source: Path, target: Path, largest: Iterable[Channels], precision: str = INT8
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write a float32 graph with its maps in few bits.

    Args:
        source: the float32 graph.
        target: the file to write.
        largest: what `largest_inputs` found.
        precision: "int8" or "float8".

    Returns:
        The contract of the new graph, which is that of the old one: its inputs and outputs.

    Raises:
        ExportError: the graph has no map that is worth int8.
    """
    model = normalised(source)
    for number, (node, sizes) in enumerate(zip(_maps(model.graph, source), largest, strict=True)):
        _quantise(model.graph, node, sizes, precision, number)
    proto = saved(model, target)
    return [spec_of(value) for value in proto.graph.input], [spec_of(value) for value in proto.graph.output]


def _maps(graph: ir.Graph, source: Path) -> list[ir.Node]:
    chosen = bulk_nodes(graph)
    if not chosen:
        raise ExportError(f"the {source.stem} of this variant has no product that is worth int8: export without it")
    return [node for node in graph if node in chosen]


def _quantise(graph: ir.Graph, node: ir.Node, sizes: Channels, precision: str, number: int) -> None:
    """Multiply bytes in a map x [..., K] @ W [K, M], of which the largest absolute x of each channel are known."""
    (kind, most), name = BYTES[precision], f"{precision}.{number}"
    x, weights = node.inputs[:2]
    assert x is not None
    assert weights is not None
    assert weights.const_value is not None
    W = weights.const_value.numpy().astype(np.float32)
    factors = _smoothing(sizes, W)  # [K]
    scaled = W * factors[:, None]
    steps = _above_zero(np.abs(scaled).max(0)) / np.float32(most)  # [M]
    step = HEADROOM * _above_zero(sizes / factors).max() / most

    def constant(what: str, array: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(array, name=f"{name}.{what}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        graph.initializers[f"{name}.{what}"] = value
        return value

    def added(op_type: str, inputs: list[ir.Value], what: str, **attributes: int) -> ir.Value:
        made = ir.node(op_type, inputs, attributes)
        graph.insert_before(node, made)
        made.outputs[0].name = f"{name}.{what}"
        return made.outputs[0]

    scale, zero = constant("step", np.array(step, np.float32)), constant("zero", np.array(0, kind.numpy()))
    in_steps = scaled / steps if kind.is_floating_point() else np.round(scaled / steps)
    bytes_of_weights = constant("weights", in_steps.astype(kind.numpy()))
    smooth = added("Mul", [x, constant("smoothing", 1 / factors)], "smooth")
    quantised = added("QuantizeLinear", [smooth, scale, zero], "quantised")
    node.replace_input_with(0, added("DequantizeLinear", [quantised, scale, zero], "input"))
    node.replace_input_with(1, added("DequantizeLinear", [bytes_of_weights, constant("steps", steps)], "map", axis=1))


def _smoothing(sizes: Channels, W: Channels) -> Channels:
    """The factor of each channel [K]: the root of the ratio of its largest input and its largest weight."""
    factors = np.sqrt(_above_zero(sizes) / _above_zero(np.abs(W).max(1)))
    scaled: Channels = factors / np.exp(np.log(factors).mean())  # only their ratios matter
    return scaled


def _above_zero(sizes: Channels) -> Channels:
    least = np.float32(MINIMUM_SHARE * (float(sizes.max()) or 1))
    raised: Channels = np.maximum(sizes, least)
    return raised
