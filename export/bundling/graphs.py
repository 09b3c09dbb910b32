"""The subgraphs of a network as ONNX: image, text, scorer, explainer and vision, with dynamic I, R, T and N.

`torch.onnx.export` writes each graph; its axes then get the contract's names. Every file is read back and checked: an
axis that was fixed at the example's length, or an input that the tracer dropped, fails the export instead of giving
wrong scores on a device.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import Tensor, nn

from camp_sdk.export.bundling.anonymous import anonymous_bytes
from camp_sdk.export.bundling.onnx_files import DYNAMIC, ExportError, GraphAxes, check_graph
from camp_sdk.export.bundling.onnx_gru import OnnxGRU
from camp_sdk.export.network.backbones import OnnxVision
from camp_sdk.export.network.camp import Scorer, Tensors
from camp_sdk.export.network.encoders import BidirectionalGRU
from camp_sdk.export.network.model import Camp, Vision
from camp_sdk.runtime.contract import EXPLAINED, GATES, GLOBAL_SUFFIX, SIDES, TensorSpec

BELONGS = {"image": {"I", "R"}, "text": {"T", "N"}}  # the axes of a side's tensors that vary
OPSET = 20  # the newest that TensorRT 10.3 (JetPack 6) parses
FOLD_LIMIT = 1 << 31  # elements


@dataclass(frozen=True)
class Graph:
    """One graph to export.

    Args:
        name: its name in the bundle.
        module: maps the inputs, in this order, to the outputs.
        inputs: an example of each input, with its axes, by name.
        outputs: the axes of each output, by name. Axes are letters, as in `Scorer.axes`.
        network: the name of the network that it belongs to.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[Tensor, tuple[str, ...]]]
    outputs: dict[str, tuple[str, ...]]
    network: str = ""

    @property
    def axes(self) -> GraphAxes:
        """What the exported file should read and make."""
        inputs = {name: letters for name, (_, letters) in self.inputs.items()}
        return GraphAxes(self.name, self.network, inputs, self.outputs)


class _Images(nn.Module):
    def __init__(self, model: Camp) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_inputs(*inputs).values())


class _Texts(nn.Module):
    def __init__(self, model: Camp) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, BidirectionalGRU):
                self.model.set_submodule(name, OnnxGRU(module))

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_texts(tokens, lengths).values())


class _Pairs(nn.Module):
    """The scorer or the explainer, with tensors by position instead of by name, as an ONNX graph takes them."""

    def __init__(self, model: Camp, names: Sequence[str], explain: bool) -> None:
        super().__init__()
        self.scorer, self.names, self.explain = model.scorer, tuple(names), explain

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, tensors, strict=True))
        image = {name: tensor for name, tensor in named.items() if name.startswith("image.")}
        text = {name: tensor for name, tensor in named.items() if name.startswith("text.")}
        return tuple(self.scorer.explain(image, text).values()) if self.explain else (self.scorer(image, text),)


def graphs_of(model: Camp) -> list[Graph]:
    """Every graph of a network. All example sizes are odd and different, so that no two axes are taken for one."""
    images, regions, texts, words = 3, 7, 5, 11
    device = next(model.parameters()).device
    features = torch.randn(images, regions, model.config.feature_width, device=device)
    lengths = torch.tensor([11, 2, 7, 9, 5], device=device)
    tokens = torch.ones(texts, words, dtype=torch.int64, device=device)
    with torch.no_grad():
        image, text = model.encode_images(features), model.encode_texts(tokens, lengths)
        sizes = {"I": images, "R": regions, "T": texts, "N": words}
        axes = {name: _axes_of(model.scorer, name, tensor, sizes) for name, tensor in (image | text).items()}
        kept = {
            name: (tensor, axes[name])
            for name, tensor in (image | text).items()
            if name in model.scorer.axes or not name.endswith(GLOBAL_SUFFIX)
        }
        explained = model.scorer.explain(image, text)
    explanations: dict[str, tuple[str, ...]] = {**EXPLAINED, **GATES}
    if surplus := explained.keys() - explanations.keys():
        raise ExportError(f"{type(model.scorer).__name__} explains {sorted(surplus)}: expected {list(explanations)}")
    if missing := model.scorer.axes.keys() - kept.keys():
        raise ExportError(f"{type(model.scorer).__name__} declares {sorted(missing)}, which no side of it returns")
    # Contiguous: the exporter has no operator for the strides of a view.
    image_inputs: dict[str, tuple[Tensor, tuple[str, ...]]] = {
        name: (part.contiguous(), ("I", "R", "d"))
        for name, part in zip(model.inputs, model.columns_of(features), strict=True)
    }
    text_inputs = {"tokens": (tokens, ("T", "N")), "lengths": (lengths, ("T",))}
    graphs = [
        Graph("image", _Images(model), image_inputs, {k: axes[k] for k in image}),
        Graph("text", _Texts(model), text_inputs, {k: axes[k] for k in text}),
        Graph("scorer", _Pairs(model, list(kept), False), kept, {"logits": ("I", "T")}),
    ]
    if explained:
        used = _read_by_explainer(model, {name: tensor for name, (tensor, _) in kept.items()})
        inputs = {name: kept[name] for name in used}
        outputs = {name: explanations[name] for name in explained}
        graphs.append(Graph("explainer", _Pairs(model, list(used), True), inputs, outputs))
    if model.vision is not None:
        graphs.append(vision_graph(model.vision))
    return [replace(graph, network=model.config.variant) for graph in graphs]


def vision_graph(vision: Vision) -> Graph:
    """The graph of a vision network, from normalised pixels [B, 3, H, W] to features [B, R, D]."""
    device = next((weight.device for weight in vision.parameters()), None)
    pixels = torch.randn(2, 3, *vision.size, device=device)
    return Graph("vision", vision, {"pixels": (pixels, ("B", "c", "h", "w"))}, {"features": ("B", "r", "d")})


def _axes_of(scorer: Scorer, name: str, tensor: Tensor, sizes: dict[str, int]) -> tuple[str, ...]:
    """The declared axes of a tensor, compared with an example in which the axes that vary have these sizes."""
    side = name.split(".")[0]
    declared = f"{SIDES.get(side, '?')} d" if name.endswith(GLOBAL_SUFFIX) else scorer.axes.get(name)
    what = f"{type(scorer).__name__} returns {name} {tuple(tensor.shape)}"
    if declared is None:
        raise ExportError(f"{what}, whose axes it does not declare")
    axes = tuple(declared.split())
    fits = len(axes) == tensor.ndim and all(
        size == (sizes.get(axis) or (int(axis) if axis.isdecimal() else size))
        for axis, size in zip(axes, tensor.shape, strict=True)
    )
    if not fits:
        example = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
        raise ExportError(f"{what}, and declares it as {declared!r}, where {example}")
    if axes[:1] != (SIDES.get(side),) or DYNAMIC.intersection(axes) - BELONGS[side]:
        raise ExportError(f"{what}, declared as {declared!r}: expected I and then R, or T and then N")
    if "N" in axes[2:]:
        raise ExportError(f"{what}, declared as {declared!r}: expected the words N as the second axis alone")
    return axes


class _Recorder(dict[str, Tensor]):
    """A dict that records which entries were read."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


def _read_by_explainer(model: Camp, tensors: Tensors) -> Tensors:
    recorder = _Recorder(tensors)
    with torch.no_grad():
        model.scorer.explain(recorder, recorder)
    return {name: tensor for name, tensor in tensors.items() if name in recorder.read}


def export_graph(graph: Graph, path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Write one graph and check it.

    Args:
        graph: what to export.
        path: the ONNX file to write.

    Returns:
        The graph's contract: its inputs and outputs, as the file declares them.

    Raises:
        ExportError: the graph cannot be exported, an input or output is missing, or an axis that should be dynamic is
            fixed.
    """
    if isinstance(graph.module, OnnxVision):
        path.write_bytes(anonymous_bytes(graph.module.graph, graph.name))
        return check_graph(path, graph.axes)
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, letter in enumerate(letters) if letter in DYNAMIC}
        for name, (_, letters) in graph.inputs.items()
    }
    variadic = isinstance(graph.module, (_Images, _Pairs))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(tensor for tensor, _ in graph.inputs.values()),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=OPSET,
                dynamic_shapes=(tuple(shapes.values()),) if variadic else shapes,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the {graph.name} graph cannot be exported: {_reason(error)}") from error
    assert program is not None
    # The folded key maps are larger than the exporter's default limits.
    fold_constants(program.model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    remove_unused_nodes(program.model)
    program.save(str(path), external_data=False)
    return check_graph(path, graph.axes)


def _reason(error: BaseException) -> str:
    """The innermost error of a failed export: those around it hold advice for the authors of PyTorch."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
