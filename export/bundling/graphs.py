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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import Tensor, nn

from camp_sdk.export.bundling.anonymous import anonymise, anonymous_bytes
from camp_sdk.export.network.backbones import EfficientNetLite, OnnxVision
from camp_sdk.export.network.camp import Scorer, Tensors, TextEncoder, VisionNet, word_mask
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.contract import GLOBAL_SUFFIX, SIDES, TensorSpec
from camp_sdk.runtime.errors import CampError

BELONGS = {"image": {"I", "R"}, "text": {"T", "N"}}  # the axes of a side's tensors that vary
EXPLAINED = {
    "attention.to_words": ("I", "T", "R", "N"),
    "attention.to_regions": ("I", "T", "R", "N"),
    "gates.regions": ("I", "T", "R"),
    "gates.words": ("I", "T", "N"),
}
OPSET = 20  # the newest that TensorRT 10.3 (JetPack 6) parses
FOLD_LIMIT = 1 << 31  # elements


class ExportError(CampError):
    """An exported graph is wrong, or does not give PyTorch's scores; no bundle is written."""


@dataclass(frozen=True)
class Graph:
    """One graph to export.

    Args:
        name: its name in the bundle.
        module: maps the inputs, in this order, to the outputs.
        inputs: an example of each input, with its axes, by name.
        outputs: the axes of each output, by name. Axes are letters, as in `Scorer.axes`.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[Tensor, tuple[str, ...]]]
    outputs: dict[str, tuple[str, ...]]


class _Images(nn.Module):
    def __init__(self, model: Camp) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_images(features).values())


class _OnnxTextEncoder(TextEncoder):
    """A text encoder whose GRU is two ONNX operators; packed sequences have no ONNX form.

    The backward direction runs forward over the reversed words of each text, and its output is reversed again. ONNX's
    GRU accepts lengths for this, but some engines ignore them (OpenVINO 2026.4 does), which makes every text but the
    longest wrong.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder.embed, encoder.rnn.input_size, encoder.rnn.hidden_size)
        self.rnn = encoder.rnn
        for suffix in ("l0", "l0_reverse"):
            for name in ("weight_ih", "weight_hh"):
                self.register_buffer(f"{name}_{suffix}", self._onnx_gates(f"{name}_{suffix}")[None])
            biases = [self._onnx_gates(f"{name}_{suffix}") for name in ("bias_ih", "bias_hh")]
            self.register_buffer(f"bias_{suffix}", torch.cat(biases)[None])
        # Without an initial state, TensorRT 10's parser adds one of float32 zeros, which does not fit float16 weights.
        self.register_buffer("begin", torch.zeros(1, 1, self.rnn.hidden_size))

    def _onnx_gates(self, name: str) -> Tensor:
        # ONNX orders the gates update, reset, new; PyTorch orders them reset, update, new.
        reset, update, new = getattr(self.rnn, name).detach().chunk(3)
        return torch.cat([update, reset, new])

    def _run(self, words: Tensor, suffix: str) -> Tensor:
        """One direction over words [N, T, word_width], from first to last: [N, T, d]."""
        names = (f"weight_ih_{suffix}", f"weight_hh_{suffix}", f"bias_{suffix}")
        length, count, width = words.shape[0], words.shape[1], self.rnn.hidden_size
        begin = self.get_buffer("begin").expand(1, count, width)
        out = torch.onnx.ops.symbolic(
            "GRU",
            (words, *(self.get_buffer(name) for name in names), None, begin),
            {"hidden_size": width, "linear_before_reset": 1},
            dtype=words.dtype,
            shape=(length, 1, count, width),
        )
        return out.squeeze(1)

    @staticmethod
    def _reverse(words: Tensor, lengths: Tensor) -> Tensor:
        """The words of each text in reverse order, [N, T, width]; padding stays at the end."""
        return torch.onnx.ops.symbolic(
            "ReverseSequence",
            (words, lengths),
            {"batch_axis": 1, "time_axis": 0},
            dtype=words.dtype,
            shape=tuple(words.shape),
        )

    def directions(self, words: Tensor, lengths: Tensor) -> Tensor:
        words = words.transpose(0, 1)  # [N, T, word_width]
        backward = self._reverse(self._run(self._reverse(words, lengths), "l0_reverse"), lengths)
        both = torch.cat([self._run(words, "l0"), backward], dim=-1).transpose(0, 1)  # [T, N, 2d]
        return both * word_mask(lengths, words.shape[0])[..., None]


class _Texts(nn.Module):
    def __init__(self, model: Camp) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.text_encoder = _OnnxTextEncoder(model.text_encoder)

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
        kept = {k: (v, axes[k]) for k, v in (image | text).items() if not k.endswith(GLOBAL_SUFFIX)}
        explained = model.scorer.explain(image, text)
    if missing := model.scorer.axes.keys() - kept.keys():
        raise ExportError(f"{type(model.scorer).__name__} declares {sorted(missing)}, which no side of it returns")
    text_inputs = {"tokens": (tokens, ("T", "N")), "lengths": (lengths, ("T",))}
    graphs = [
        Graph("image", _Images(model), {"features": (features, ("I", "R", "d"))}, {k: axes[k] for k in image}),
        Graph("text", _Texts(model), text_inputs, {k: axes[k] for k in text}),
        Graph("scorer", _Pairs(model, list(kept), False), kept, {"logits": ("I", "T")}),
    ]
    if explained:
        used = _read_by_explainer(model, {name: tensor for name, (tensor, _) in kept.items()})
        inputs = {name: kept[name] for name in used}
        graphs.append(Graph("explainer", _Pairs(model, list(used), True), inputs, {k: EXPLAINED[k] for k in explained}))
    if model.vision is not None:
        graphs.append(vision_graph(model.vision))
    return graphs


def vision_graph(vision: VisionNet | EfficientNetLite | OnnxVision) -> Graph:
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


DYNAMIC = frozenset({"I", "R", "T", "N", "B"})


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
        return check_graph(path, graph)
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, letter in enumerate(letters) if letter in DYNAMIC}
        for name, (_, letters) in graph.inputs.items()
    }
    variadic = isinstance(graph.module, _Pairs)
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
            reason = " ".join(str(error).split())[:600]
            raise ExportError(f"the {graph.name} graph cannot be exported: {reason}") from error
    assert program is not None
    # The folded key maps are larger than the exporter's default limits.
    fold_constants(program.model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    remove_unused_nodes(program.model)
    program.save(str(path), external_data=False)
    return check_graph(path, graph)


def check_graph(path: Path, graph: Graph) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Name the axes in an exported file after the contract's letters, and compare the file with the contract.

    Everything that describes the machine that made the file is removed.

    Args:
        path: the exported file, which is written again with the names.
        graph: what the file should contain.

    Returns:
        The inputs and outputs, as the file declares them.

    Raises:
        ExportError: the file is not valid, an input or output is missing, or an axis that should be dynamic is fixed.
    """
    model = anonymise(onnx.load(path), graph.name)
    _name_axes(model, graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and its shape inference have types of their own
        raise ExportError(f"the {graph.name} graph is not valid: {' '.join(str(error).split())[:600]}") from None
    onnx.save(model, path)
    inputs = [spec_of(value) for value in model.graph.input]
    outputs = [spec_of(value) for value in model.graph.output]
    read = {name for node in model.graph.node for name in node.input}
    for name, (_, letters) in graph.inputs.items():
        found = next((spec for spec in inputs if spec.name == name), None)
        if found is None or name not in read:
            raise ExportError(f"the {graph.name} graph does not read its input {name}: it was lost in the export")
        frozen = [
            letter for letter, size in zip(letters, found.shape, strict=True) if letter in DYNAMIC and size != letter
        ]
        if frozen:
            raise ExportError(f"the {graph.name} graph froze axis {', '.join(frozen)} of {name}: {found.shape}")
    if [spec.name for spec in outputs] != list(graph.outputs):
        names = [spec.name for spec in outputs]
        raise ExportError(f"the {graph.name} graph has outputs {names}, expected {list(graph.outputs)}")
    for spec in outputs:
        _check_output(graph, spec)
    return inputs, outputs


def _check_output(graph: Graph, spec: TensorSpec) -> None:
    """Compare an output with its declared axes."""
    axes = graph.outputs[spec.name]
    if len(axes) != len(spec.shape) or any(
        size != axis for axis, size in zip(axes, spec.shape, strict=True) if axis in DYNAMIC and axis != "B"
    ):
        found = " ".join(str(size) for size in spec.shape)
        raise ExportError(f"the {graph.name} graph makes {spec.name} [{found}], declared as {' '.join(axes)!r}")


def _name_axes(model: Any, graph: Graph) -> None:
    """Rename the exporter's symbolic axes (s0, s27, ...) to their letters, in all values of the graph."""
    letters: dict[str, str] = {}
    for value in model.graph.input:
        for dim, letter in zip(value.type.tensor_type.shape.dim, graph.inputs[value.name][1], strict=True):
            if dim.dim_param and letters.setdefault(dim.dim_param, letter) != letter:
                raise ExportError(f"the {graph.name} graph ties axis {letters[dim.dim_param]} to axis {letter}")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in letters:
                dim.dim_param = letters[dim.dim_param]


def spec_of(value: Any) -> TensorSpec:
    """The name, dtype and shape of an input or output, as the file declares them."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim))
