"""Lower precision, written into a graph: some operators compute in 16 bits, with casts where the precision changes.

Strongly typed engines (TensorRT), and engines configured to compute in float32 (OpenVINO), then compute exactly what
the graph specifies.

float16: operators that need the range or the digits of float32 stay in float32. These are softmax, normalisation, sums,
products of two activations (a sum of 1,024 squares overflows at a root mean square of 8), quotients without a bound and
the logits.

bfloat16: for processors that multiply matrices in it. It has only three digits, so it is used only for the maps of
every region and word of every pair, which are nine tenths of the work in the variants that have them. Attention,
messages and the match network in bfloat16 would change scores by up to 0.02 and save little.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from camp_sdk.export.bundling.anonymous import anonymise
from camp_sdk.export.bundling.onnx_files import METADATA, ExportError, describe, spec_of
from camp_sdk.export.bundling.ranges import (
    FLOATS,
    MOVES,
    PRODUCTS,
    activations,
    is_normalised,
    is_square,
    shares_of,
    sides_of,
    unbounded_values,
)
from camp_sdk.runtime.contract import GLOBAL_SUFFIX, TensorSpec

# Elementwise operators that lose little accuracy in half precision.
ELEMENTWISE = {"Add", "Cast", "Gelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh", "Where", "AveragePool", "MaxPool"}
SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
FLOAT = ir.DataType.FLOAT


def lower_graph(
    source: Path, target: Path, precision: str, halves: Collection[str] = ()
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write a float32 graph in a lower precision.

    In float16, outputs named image.* and text.* keep the precision they are computed in, and vectors of unit length,
    which are computed in float32, are rounded to float16. Global vectors and all other outputs are float32.

    Args:
        source: the float32 graph.
        target: the file to write.
        precision: "float16" or "bfloat16".
        halves: the names of the inputs that are float16.

    Returns:
        The contract of the new graph: its inputs and outputs.

    Raises:
        ExportError: a constant is out of float16's range, the graph holds branches or loops, or nothing in it is worth
            bfloat16.
    """
    model = normalised(source)
    graph = model.graph
    dtypes = {"float16": (ir.DataType.FLOAT16, half_nodes), "bfloat16": (ir.DataType.BFLOAT16, bulk_nodes)}
    dtype, plan = dtypes[precision]
    for value in graph.inputs:
        if value.name in halves:
            value.dtype = dtype
    low = plan(graph)
    if precision == "bfloat16" and not low:
        raise ExportError(f"the {source.stem} of this variant has no product that is worth bfloat16: export without it")
    casts = _Casts(dtype)
    for node in list(graph):
        _retype(node, dtype if node in low else FLOAT, casts)
    for index, value in enumerate(list(graph.outputs)):
        if value.dtype == dtype and not _is_kept(value.name or ""):
            _cast_output(graph, index, value, FLOAT)
        elif value.dtype == FLOAT and dtype == ir.DataType.FLOAT16 and _is_kept(value.name or "") and _is_unit(value):
            _cast_output(graph, index, value, dtype)
    proto = saved(model, target)
    return [spec_of(value) for value in proto.graph.input], [spec_of(value) for value in proto.graph.output]


def normalised(source: Path) -> ir.Model:
    """Load a graph, with all constants as initializers and no initializers among the inputs.

    Raises:
        ExportError: the graph holds branches or loops.
    """
    model = ir.load(source)
    attributes = (attribute for node in model.graph for attribute in node.attributes.values())
    if any(attribute.type in SUBGRAPHS for attribute in attributes):
        raise ExportError(
            f"{source.stem} holds branches or loops, which cannot be lowered: export it without --precision"
        )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.ShapeInferencePass()(model)  # types of intermediate values, which a graph need not declare
    return model


def saved(model: ir.Model, target: Path) -> onnx.ModelProto:
    """Check a changed graph and write it, without the constants that nothing reads any more.

    Raises:
        ExportError: the graph is not valid.
    """
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    network = model.metadata_props.get(f"{METADATA}network", "")
    proto = anonymise(ir.to_proto(model), target.stem)
    describe(proto, target.stem, network)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker and its shape inference have types of their own
        raise ExportError(f"{target.stem} cannot be lowered: {' '.join(str(error).split())[:600]}") from None
    onnx.save(proto, target)
    return proto


def half_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute in float16."""
    low: set[ir.Node] = set()
    made_low = {value for value in graph.inputs if value.dtype == ir.DataType.FLOAT16}
    logits, shares, sides, unbounded = _behind_logits(graph), shares_of(graph), sides_of(graph), unbounded_values(graph)
    nodes = [node for node in graph if _is_float(node)]
    for node in nodes:
        inputs = activations(node)
        if any(value in unbounded for value in (*inputs, *node.outputs)):
            continue
        if node.op_type in PRODUCTS:
            is_map = node.op_type == "GRU" or len(inputs) < 2  # a GRU's second is its initial state
            chosen = is_map and node not in logits
            chosen = chosen or _is_mean(inputs, shares, made_low) or _is_cross(inputs, sides, made_low)
        else:
            chosen = _follows(node) and (not inputs or any(v in made_low for v in inputs))
        if chosen:
            low.add(node)
            made_low.update(node.outputs)
    for node in reversed(nodes):  # a value that is read in one precision only is computed, or moved, in that precision
        uses = [user for value in node.outputs for user, _ in value.uses()]
        if not uses or any(value.is_graph_output() for value in node.outputs):
            continue
        if _follows(node) and not any(user in low for user in uses):
            low.discard(node)
        elif node.op_type in MOVES and all(user in low for user in uses):
            low.add(node)
    return low


def bulk_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute in bfloat16: the maps of every region and word of every pair.

    Maps to four columns or fewer are not worth the casts.
    """
    return {node for node in graph if node.op_type == "MatMul" and _is_bulk(*node.inputs[:2])}


def _is_bulk(rows: ir.Value | None, weights: ir.Value | None) -> bool:
    if rows is None or rows.shape is None or weights is None or weights.const_value is None:
        return False
    return len(rows.shape) == 4 and weights.const_value.numpy().shape[-1] > 4


def _follows(node: ir.Node) -> bool:
    """Whether an operator is as accurate in half precision as its inputs are."""
    if is_square(node):
        return False  # a sum often follows, and the sum of many squares would overflow
    by_constant = node.op_type == "Div" and node.inputs[1] is not None and node.inputs[1].const_value is not None
    return by_constant or node.op_type in MOVES | ELEMENTWISE


def _is_mean(inputs: list[ir.Value], shares: set[ir.Value], made_low: set[ir.Value]) -> bool:
    """Whether a product of two activations is a weighted mean of float16 vectors or of softmax weights.

    A mean is no larger than the values it averages, so it cannot overflow.
    """
    return (
        len(inputs) == 2
        and any(value in shares for value in inputs)
        and all(value in shares or value in made_low for value in inputs)
    )


def _is_cross(inputs: list[ir.Value], sides: dict[ir.Value, str], made_low: set[ir.Value]) -> bool:
    """Whether a product multiplies vectors of an image with vectors of a text, both unchanged inputs in float16."""
    return {sides.get(value) for value in inputs} == {"image", "text"} and all(v in made_low for v in inputs)


def _behind_logits(graph: ir.Graph) -> set[ir.Node]:
    """The last matrix products before the output `logits`."""
    found: set[ir.Node] = set()
    waiting = [value.producer() for value in graph.outputs if value.name == "logits"]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if node.op_type in PRODUCTS:
            found.add(node)
        else:
            waiting += [value.producer() for value in activations(node)]
    return found


def _is_float(node: ir.Node) -> bool:
    return any(value is not None and value.dtype in FLOATS for value in (*node.inputs, *node.outputs))


class _Casts:
    """Values in another precision. A value is cast once, right after it is computed; a constant is rounded once."""

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if (value, dtype) not in self.made:
            made = self._constant(value, dtype) if value.const_value is not None else self._cast(value, dtype, reader)
            self.made[value, dtype] = made
        return self.made[value, dtype]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        wide = value.const_value.numpy()
        if dtype == ir.DataType.FLOAT16:
            check_half(value.name or "", wide)
        name = f"{value.name}.{dtype.name.lower()}"
        tensor = ir.tensor(wide.astype(dtype.numpy()), name=name)
        lowered = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
        graph = value.graph
        assert graph is not None
        graph.initializers[name] = lowered
        return lowered

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        made = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.to_{dtype.name.lower()}")
        out = made.outputs[0]
        out.name, out.dtype, out.shape = f"{value.name}.{dtype.name.lower()}", dtype, value.shape
        graph = reader.graph
        assert graph is not None
        producer = value.producer()
        graph.insert_before(graph[0], made) if producer is None else graph.insert_after(producer, made)
        return out


def emulate_half(source: Path, target: Path) -> None:
    """Write a float16 graph as a float32 graph that rounds every float16 input and result to float16.

    On a processor, ONNX Runtime runs a float16 graph in float32 without rounding between operators. That hides the
    rounding errors and overflows of half precision.

    Args:
        source: the float16 graph.
        target: the file to write; all floating-point inputs and outputs of this graph are float32.
    """
    model = ir.load(source)
    graph = model.graph
    nodes = list(graph)
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT16:
            value.dtype = FLOAT
            if value.const_value is None:
                _round(graph, None, value)
            else:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in nodes:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT16:
                value.dtype = FLOAT
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
                if node.op_type not in MOVES:
                    _round(graph, node, value)
    saved(model, target)


def _round(graph: ir.Graph, node: ir.Node | None, value: ir.Value) -> None:
    """Round a value to float16 after the node that computes it, or, without a node, before all nodes."""
    there = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
    back = ir.node("Cast", [there.outputs[0]], {"to": FLOAT})
    for made, dtype in ((there, ir.DataType.FLOAT16), (back, FLOAT)):
        made.outputs[0].dtype, made.outputs[0].shape = dtype, value.shape
    name, rounded = value.name, back.outputs[0]
    users = [use for use in value.uses() if use[0] is not there]
    for user, index in users:
        user.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index], value.name, rounded.name = rounded, f"{name}.exact", name
    if node is None:
        graph.insert_before(graph[0], [there, back])
    else:
        graph.insert_after(node, [there, back])


def check_half(name: str, values: np.ndarray) -> None:
    """Raise ExportError if float16 cannot represent a constant.

    That is so if a finite number becomes infinite, or if all numbers become zero.

    Args:
        name: the name of the constant.
        values: its numbers in float32.
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half[np.isfinite(values)]).all():
        raise ExportError(f"constant {name} holds {np.abs(values).max():g}, more than float16 can represent")
    if values.any() and not half.any():
        raise ExportError(f"constant {name} holds {np.abs(values).max():g} at most, which becomes zero in float16")


def _retype(node: ir.Node, dtype: ir.DataType, casts: _Casts) -> None:
    """Give the floating-point inputs and outputs of a node one precision."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in FLOATS and value.dtype != dtype and node.op_type != "Cast":
            node.replace_input_with(index, casts.of(value, dtype, node))
    for value in node.outputs:
        if value.dtype in FLOATS:
            value.dtype = dtype
    if node.op_type == "Cast" and node.outputs[0].dtype in FLOATS:
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))


def _is_kept(name: str) -> bool:
    return name.startswith(("image.", "text.")) and not name.endswith(GLOBAL_SUFFIX)


def _is_unit(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Div" and is_normalised(node)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, dtype: ir.DataType) -> None:
    node = ir.node("Cast", [value], {"to": dtype})
    out, name = node.outputs[0], value.name
    out.dtype, out.shape, value.name = dtype, value.shape, f"{name}.half" if dtype == FLOAT else f"{name}.wide"
    out.name = name
    graph.append(node)
    graph.outputs[index] = out
