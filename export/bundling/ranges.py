"""How large the values of a graph can get: what fits float16's range by its nature, and what may be far beyond it.

A quotient has no bound: an attention weight divided by the length of a message that is almost zero reaches 1e8, and
float16 ends at 65,504. Such values, and all that is computed from them, stay in float32 until something bounds them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

# Operators that only move values: they take the precision of their neighbours.
MOVES = {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "ReverseSequence", "Slice", "Split"}
MOVES |= {"Squeeze", "Transpose", "Unsqueeze"}
PRODUCTS = {"MatMul", "Gemm", "Conv", "GRU"}
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Their results are of another size than their inputs: roots and norms of large numbers, logarithms of zero.
UNBOUNDED = {"Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum"}
UNBOUNDED |= {"ReduceLogSumExp", "ReduceProd", "ReduceSumSquare"}
# Their results are small, whatever they read.
BOUNDED = {"Erf", "HardSigmoid", "Sigmoid", "Softmax", "Softsign", "Tanh", "GRU"}
BOUNDED |= {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization"}


def activations(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are floating-point numbers and not constants."""
    return [v for v in node.inputs if v is not None and v.const_value is None and v.dtype in FLOATS]


def is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def unbounded_values(graph: ir.Graph) -> set[ir.Value]:
    """Quotients, powers, norms and logarithms, and all values computed from them up to an operator with a bound.

    A vector divided by its own length is bounded. So is a message in a scorer: the weights of a message may be divided
    by its length, and have no bound then, but the sum of one side's vectors under these weights has about unit length.
    """
    found: set[ir.Value] = set()
    sides = sides_of(graph)
    for node in graph:
        inputs = activations(node)
        is_message = node.op_type == "MatMul" and any(sides.get(value) in ("image", "text") for value in inputs)
        if node.op_type in BOUNDED or (node.op_type == "Div" and is_normalised(node)) or is_message:
            continue
        begins = node.op_type in UNBOUNDED or is_square(node) or (node.op_type == "Div" and not _is_scaled(node))
        if (inputs and begins) or any(value in found for value in inputs):
            found.update(node.outputs)
    return found


def shares_of(graph: ir.Graph) -> set[ir.Value]:
    """Values that are softmax weights, including those that were moved, scaled down, averaged or added up later."""
    shares: set[ir.Value] = set()
    for node in graph:
        inputs = activations(node)
        carried = node.op_type in MOVES | {"ReduceMean", "ReduceSum"} or _is_scaled(node)
        averaged = node.op_type in {"Add", "MatMul"} and all(value in shares for value in inputs)
        if node.op_type == "Softmax" or averaged or (carried and any(value in shares for value in inputs)):
            shares.update(node.outputs)
    return shares


def sides_of(graph: ir.Graph) -> dict[ir.Value, str]:
    """The side, "image" or "text", of each input and of each value that only moves an input."""
    sides = {value: (value.name or "").split(".")[0] for value in graph.inputs}
    for node in graph:
        if node.op_type in MOVES and (inputs := activations(node)) and inputs[0] in sides:
            sides[node.outputs[0]] = sides[inputs[0]]
    return sides


def _is_scaled(node: ir.Node) -> bool:
    """Whether a node multiplies a value by a constant of at most one or by a mask or count, or divides it likewise."""
    if node.op_type not in {"Mul", "Div"}:
        return False
    factors = node.inputs[1:] if node.op_type == "Div" else node.inputs
    return any(value is not None and _is_factor(value, node.op_type) for value in factors)


def _is_factor(value: ir.Value, op_type: str) -> bool:
    if value.const_value is not None:
        size = np.abs(value.const_value.numpy())
        return bool((size <= 1).all() if op_type == "Mul" else (size >= 1).all())
    producer = _origin(value).producer()
    return producer is not None and producer.op_type == "Cast" and not activations(producer)  # a mask, or a count


def is_normalised(node: ir.Node) -> bool:
    """Whether a node divides a value by its own norm: whatever the value, no number of the result exceeds one."""
    value, norm = node.inputs[:2]
    if value is None or norm is None or (root := _origin(norm, plus=True).producer()) is None:
        return False
    if root.op_type in {"ReduceL1", "ReduceL2"}:
        return _same(root.inputs[0], value)
    mean = _origin(root.inputs[0], plus=True).producer() if root.op_type == "Sqrt" and root.inputs[0] else None
    if mean is None or mean.op_type not in {"ReduceMean", "ReduceSum", "ReduceSumSquare"} or mean.inputs[0] is None:
        return False
    if mean.op_type == "ReduceSumSquare":
        return _same(mean.inputs[0], value)
    square = _origin(mean.inputs[0]).producer()
    return square is not None and (is_square(square) or _is_power(square)) and _same(square.inputs[0], value)


def _is_power(node: ir.Node) -> bool:
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    return exponent is not None and exponent.const_value is not None and bool((exponent.const_value.numpy() == 2).all())


def _same(one: ir.Value | None, other: ir.Value) -> bool:
    return one is not None and _origin(one) is _origin(other)


def _origin(value: ir.Value, plus: bool = False) -> ir.Value:
    """The value that was moved to become this one; with ``plus``, also before it was kept above zero."""
    passed = MOVES | ({"Add", "Clip", "Max"} if plus else set())
    while (node := value.producer()) is not None and node.op_type in passed and len(inputs := activations(node)) == 1:
        value = inputs[0]
    return value
