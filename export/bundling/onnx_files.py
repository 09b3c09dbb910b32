"""ONNX files as bundles hold them: axes named by letters, checked against the contract, described in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from camp_sdk.export.bundling.anonymous import anonymise
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.errors import CampError
from camp_sdk.runtime.manifest import SCHEMA_VERSION

DYNAMIC = frozenset({"I", "R", "T", "N", "B"})  # the letters of axes that vary
METADATA = "camp_sdk."  # the prefix of a graph's metadata
Axes = tuple[str, ...]


class ExportError(CampError):
    """An exported graph is wrong, or does not give PyTorch's scores; no bundle is written."""


@dataclass(frozen=True)
class GraphAxes:
    """What a graph should read and make. Axes are letters, as in `Scorer.axes`.

    Args:
        role: the graph's name in the bundle.
        network: the name of the network that it belongs to.
        inputs: the axes of each input, by name.
        outputs: the axes of each output, by name, in order.
    """

    role: str
    network: str
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


def check_graph(path: Path, graph: GraphAxes) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Name the axes in an exported file after the contract's letters, and compare the file with the contract.

    Everything that describes the machine that made the file is removed; `describe` adds what it is.

    Args:
        path: the exported file, which is written again with the names.
        graph: what the file should contain.

    Returns:
        The inputs and outputs, as the file declares them.

    Raises:
        ExportError: the file is not valid, an input or output is missing, or an axis that should be dynamic is fixed.
    """
    model = anonymise(onnx.load(path), graph.role)
    name_axes(model, graph)
    describe(model, graph.role, graph.network)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and its shape inference have types of their own
        raise ExportError(f"the {graph.role} graph is not valid: {' '.join(str(error).split())[:600]}") from None
    onnx.save(model, path)
    inputs = [spec_of(value) for value in model.graph.input]
    outputs = [spec_of(value) for value in model.graph.output]
    read = {name for node in model.graph.node for name in node.input}
    for name, letters in graph.inputs.items():
        found = next((spec for spec in inputs if spec.name == name), None)
        if found is None or name not in read:
            raise ExportError(f"the {graph.role} graph does not read its input {name}, as every graph must")
        frozen = [
            letter for letter, size in zip(letters, found.shape, strict=True) if letter in DYNAMIC and size != letter
        ]
        if frozen:
            raise ExportError(f"the {graph.role} graph froze axis {', '.join(frozen)} of {name}: {found.shape}")
    if [spec.name for spec in outputs] != list(graph.outputs):
        names = [spec.name for spec in outputs]
        raise ExportError(f"the {graph.role} graph has outputs {names}, expected {list(graph.outputs)}")
    for spec in outputs:
        _check_output(graph, spec)
    return inputs, outputs


def _check_output(graph: GraphAxes, spec: TensorSpec) -> None:
    """Compare an output with its declared axes."""
    axes = graph.outputs[spec.name]
    if len(axes) != len(spec.shape) or any(
        size != axis for axis, size in zip(axes, spec.shape, strict=True) if axis in DYNAMIC and axis != "B"
    ):
        found = " ".join(str(size) for size in spec.shape)
        raise ExportError(f"the {graph.role} graph makes {spec.name} [{found}], declared as {' '.join(axes)!r}")


def name_axes(model: onnx.ModelProto, graph: GraphAxes) -> None:
    """Rename the exporter's symbolic axes (s0, s27, ...) to their letters, in all values of the graph."""
    letters: dict[str, str] = {}
    for value in model.graph.input:
        for dim, letter in zip(value.type.tensor_type.shape.dim, graph.inputs[value.name], strict=True):
            if dim.dim_param and letters.setdefault(dim.dim_param, letter) != letter:
                raise ExportError(f"the {graph.role} graph ties axis {letters[dim.dim_param]} to axis {letter}")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in letters:
                dim.dim_param = letters[dim.dim_param]


def describe(model: onnx.ModelProto, role: str, network: str) -> None:
    """Write into a graph's metadata what it is, for programs that use it without this package.

    The entries are camp_sdk.bundle, the version of the manifest's schema; camp_sdk.role, the graph's name in the
    bundle; camp_sdk.network; and camp_sdk.axes, a JSON object from each input and output to its axes.

    Args:
        model: the graph, which is changed in place.
        role: the graph's name in the bundle.
        network: the name of the network.
    """
    axes = {spec.name: spec.shape for spec in map(spec_of, (*model.graph.input, *model.graph.output))}
    entries = {"bundle": str(SCHEMA_VERSION), "role": role, "network": network, "axes": json.dumps(axes)}
    onnx.helper.set_model_props(model, {f"{METADATA}{name}": value for name, value in entries.items()})


def spec_of(value: Any) -> TensorSpec:
    """The name, dtype and shape of an input or output, as the file declares them."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim))
