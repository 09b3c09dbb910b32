"""Graphs that other programs made, with their axes named after the contract.

Nothing is known of these graphs but their files. Which axes vary is measured: each graph is run on inputs of two
different sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from camp_sdk.export.bundling.onnx_files import DYNAMIC, Axes, ExportError, GraphAxes, check_graph
from camp_sdk.export.network.backbones import OnnxVision, read_vision
from camp_sdk.runtime.contract import FEATURES, GraphSpec, check_graphs, image_columns
from camp_sdk.runtime.engines.base import Arrays, Interface
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.files import HeldFile

# Two sizes of the axes that vary. An axis of an output that has the first size and then the second varies with it.
PROBES = ({"I": 3, "R": 7, "T": 5, "N": 11}, {"I": 4, "R": 6, "T": 2, "N": 9})
TEXT_AXES = {"tokens": ("T", "N"), "lengths": ("T",)}


class AdoptedGraphs:
    """The graphs of a bundle, copied into its folder with their axes named.

    Args:
        folder: the bundle's folder.
        network: the network's name.
        vocabulary: the number of tokens.
    """

    def __init__(self, folder: Path, network: str, vocabulary: int) -> None:
        self.folder, self.network, self.vocabulary = folder, network, vocabulary
        self.graphs: dict[str, GraphSpec] = {}
        self._axes: dict[str, Axes] = dict(TEXT_AXES)  # of every tensor that is known
        self._made: tuple[Arrays, Arrays] = ({}, {})  # what the encoders make of inputs of the two sizes

    def add(self, role: str, source: Path) -> None:
        """Copy a graph, and measure the axes of what it makes."""
        file = self.folder / f"{role}.onnx"
        model = _loaded(source)
        onnx.save(model, file)
        with _explained(role, source, file), OnnxRuntimeEngine(HeldFile(file)) as engine:
            reads, _ = engine.interface()
            inputs = self._inputs(role, source, reads)
            for sizes, made in zip(PROBES, self._made, strict=True):
                made |= engine.run(_feeds(reads, inputs, sizes, made, self.vocabulary))
        outputs = {value.name: self._measured(role, value.name) for value in model.graph.output}
        self._axes |= outputs
        self._write(model, GraphAxes(role, self.network, inputs, outputs))

    def add_vision(self, source: Path) -> OnnxVision:
        """Copy a vision graph, and return it."""
        vision = read_vision(source)
        if vision.shape[1] != (width := sum(image_columns(self.graphs["image"]).values())):
            raise ExportError(f"{source} makes features of width {vision.shape[1]}, the image graph reads {width}")
        axes = {"pixels": ("B", "c", "h", "w")}, {FEATURES: ("B", "r", "d")}
        self._write(onnx.load_from_string(vision.graph), GraphAxes("vision", self.network, *axes))
        return vision

    def check(self) -> None:
        """Raise ExportError unless the graphs fit each other."""
        try:
            check_graphs(self.graphs)
        except ValueError as error:
            raise ExportError(f"the graphs do not make a bundle: {error}") from None

    def _inputs(self, role: str, source: Path, reads: Interface) -> dict[str, Axes]:
        """The axes of a graph's inputs: those of the contract, or of the tensors that the encoders make."""
        if role == "image":
            return {name: _region_axes(source, name, shape) for name, (_, shape) in reads.items()}
        known = TEXT_AXES if role == "text" else self._axes
        if strange := [name for name in reads if name not in known]:
            raise ExportError(f"{source} reads {', '.join(strange)}: expected, as {role}, some of {', '.join(known)}")
        return {name: known[name] for name in reads}

    def _measured(self, role: str, name: str) -> Axes:
        """The axes of an output, from its sizes for inputs of two sizes."""
        first, second = (made[name].shape for made in self._made)
        if len(first) != len(second):
            raise ExportError(
                f"the {role} graph makes {name} {first} and {second}: expected as many axes for any input"
            )
        return tuple(_letter(role, name, pair) for pair in zip(first, second, strict=True))

    def _write(self, model: onnx.ModelProto, axes: GraphAxes) -> None:
        file = self.folder / f"{axes.role}.onnx"
        _set_axes(model, axes)
        onnx.save(model, file)
        inputs, outputs = check_graph(file, axes)
        self.graphs[axes.role] = GraphSpec(file.name, tuple(inputs), tuple(outputs))


def _loaded(source: Path) -> onnx.ModelProto:
    try:
        return onnx.load(source)  # with weights from a separate file, if there is one
    except Exception as error:  # protobuf and onnx raise types of their own
        raise BundleError(f"{source} cannot be read as an ONNX graph: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _explained(role: str, source: Path, copy: Path) -> Iterator[None]:
    """Say which file it is that does not run, and what is expected of it."""
    try:
        yield
    except (BackendError, BundleError) as error:
        reason = " ".join(str(error).replace(str(copy), "it").split())[:400]
        sizes = " and ".join(str(tuple(probe.values())) for probe in PROBES)
        raise ExportError(
            f"{source} does not run, as {role}, for I, R, T, N of {sizes}, expected axes that vary: {reason}"
        ) from None


def _region_axes(source: Path, name: str, shape: Sequence[Any]) -> Axes:
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise ExportError(f"{source} reads {name} {tuple(shape)}: expected, as image, [I, R, D] of a fixed width D")
    return "I", "R", str(shape[2])


def _feeds(
    reads: Interface, axes: Mapping[str, Axes], sizes: Mapping[str, int], made: Arrays, vocabulary: int
) -> Arrays:
    """A value of every input: what the encoders made, words, or random numbers."""
    rng = np.random.default_rng(0)
    drawn = {
        "tokens": rng.integers(0, vocabulary, (sizes["T"], sizes["N"])),
        "lengths": np.linspace(2, sizes["N"], sizes["T"]).astype(np.int64),
    }

    def value(name: str) -> NDArray[Any]:
        size = tuple(sizes.get(axis) or int(axis) for axis in axes[name])
        return rng.random(size).astype(reads[name][0])

    return {name: made[name] if name in made else drawn[name] if name in drawn else value(name) for name in reads}


def _letter(role: str, name: str, found: tuple[int, int]) -> str:
    for letter in PROBES[0]:
        if found == (PROBES[0][letter], PROBES[1][letter]):
            return letter
    if found[0] != found[1]:
        sizes = [dict(probe) for probe in PROBES]
        raise ExportError(f"the {role} graph makes an axis of {name} {found[0]} and {found[1]} long for {sizes}")
    return str(found[0])


def _set_axes(model: onnx.ModelProto, axes: GraphAxes) -> None:
    """Write the axes of inputs and outputs into a graph; what it says of the values between is left out."""
    del model.graph.value_info[:]
    for values, known in ((model.graph.input, axes.inputs), (model.graph.output, axes.outputs)):
        for value in values:
            if len(value.type.tensor_type.shape.dim) != len(known[value.name]):
                del value.type.tensor_type.shape.dim[:]
                value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in known[value.name])
            for dim, axis in zip(value.type.tensor_type.shape.dim, known[value.name], strict=True):
                if axis in DYNAMIC:
                    dim.dim_param = axis
                elif axis.isdecimal():
                    dim.dim_value = int(axis)
