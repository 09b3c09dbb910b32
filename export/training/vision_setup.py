"""The vision network of a run and the pixels that it takes, from the run's options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from camp_sdk.data import Split
from camp_sdk.export.bundling.anonymous import anonymous_bytes
from camp_sdk.export.bundling.packing import Facts, grid_of
from camp_sdk.export.network.backbones import EfficientNetLite, OnnxVision, read_vision
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint
from camp_sdk.export.network.encoders import VisionNet
from camp_sdk.export.network.frozen import FrozenNetwork
from camp_sdk.export.network.model import BACKBONE, Camp
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.options import EFFICIENTNET, SMALL, Channels
from camp_sdk.pictures import read_picture
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import MAX_PIXELS, PixelSpec

IMAGENET = Facts.pixel_mean, Facts.pixel_std  # of most pretrained networks
Network = TypeVar("Network")
LITE = (127 / 255,) * 3, (128 / 255,) * 3  # the same of EfficientNet-Lite


@dataclass(frozen=True)
class Vision:
    """The vision network of a run.

    Args:
        name: Its name in `ModelConfig`.
        pixels: The pixels that it takes.
        width: Width D of its features.
        network: The network with its weights; None for the small network, which each run trains from scratch.
    """

    name: str
    pixels: PixelSpec
    width: int
    network: EfficientNetLite | OnnxVision | FrozenNetwork | None = None


def checkpoint_in(path: Path) -> Path:
    """A checkpoint, or the best one of a run's folder."""
    return path / "best.ckpt" if path.is_dir() else path


def open_backbone(path: Path) -> tuple[FrozenNetwork, Origin]:
    """Open the frozen network that a run is trained on top of.

    Args:
        path: The checkpoint, or the folder of its best.ckpt.

    Returns:
        The network, and the metadata of its checkpoint, with the pixels that give the frozen network's regions.

    Raises:
        BundleError: The checkpoint is broken.
        InputError: It takes features, has no global vectors, or cannot be below another network.
    """
    network, origin = load_checkpoint(checkpoint_in(path))
    if origin.pixels is None:
        raise InputError(f"`backbone` {path}: takes features, expected a network that takes pictures")
    if origin.model.backbone:
        raise InputError(f"`backbone` {path}: was itself trained on a frozen network, give that one")
    if not (origin.model.global_vectors or origin.model.towers):
        raise InputError(f"`backbone` {path}: has no global vectors, expected a network with them")
    if isinstance(network.vision, OnnxVision):
        raise InputError(f"`backbone` {path}: its vision network is an ONNX graph, expected one of this package")
    frozen = FrozenNetwork(network)
    return frozen, replace(origin, pixels=replace(origin.pixels, grid=(frozen.grid, frozen.grid)))


def open_vision(
    config: TrainConfig,
    train: Split,
    started: tuple[Camp, Origin] | None = None,
    backbone: tuple[FrozenNetwork, Origin] | None = None,
) -> Vision | None:
    """Open the vision network of a run.

    Args:
        config: The run's options, which name the network.
        train: The training split.
        started: The checkpoint that the run starts from; its vision network, if it has one, takes precedence.
        backbone: The frozen network that the run is trained on top of, if there is one.

    Returns:
        The network, or None for a data set of features.

    Raises:
        InputError: The options do not fit the network.
        BundleError: The ONNX file is broken.
        MissingExtraError: The pretrained network is not installed.
    """
    if not train.has_pictures:
        return None
    if started and started[1].pixels:
        return _of_checkpoint(*started)
    if backbone:
        network, origin = backbone
        assert origin.pixels is not None
        return Vision(BACKBONE, origin.pixels, network.width, network)
    if config.vision == SMALL:
        return _open_small(config, train)
    return _open_efficientnet(config) if config.vision == EFFICIENTNET else _open_onnx(config)


def anonymous(network: Network) -> Network:
    """The same vision network; a user's graph without what it says of the machine that made it."""
    if isinstance(network, OnnxVision):
        network.graph = anonymous_bytes(network.graph, "vision")
    return network


def _of_checkpoint(model: Camp, origin: Origin) -> Vision:
    assert origin.pixels is not None
    pretrained = isinstance(model.vision, (EfficientNetLite, OnnxVision, FrozenNetwork))
    network: Any = anonymous(model.vision) if pretrained else None
    return Vision(model.config.vision, origin.pixels, model.config.feature_width, network)


def _open_small(config: TrainConfig, train: Split) -> Vision:
    size = config.picture_size
    VisionNet(1, size)  # raises for a wrong size before any picture is read
    _check_size(size, size)
    open_ = PixelSpec(size, size, (0, 0, 0), (1, 1, 1), (VisionNet.GRID, VisionNet.GRID), config.fit or "stretch")
    mean, std = measure_pixels(train, open_)
    return Vision(SMALL, replace(open_, mean=mean, std=std), config.width)


def measure_pixels(train: Split, spec: PixelSpec) -> tuple[Channels, Channels]:
    """Mean and deviation of each channel over up to 512 pictures of a data set, scaled to 0..1."""
    paths = train.images[:: max(1, len(train.images) // 256)]
    sample = np.stack([read_picture(path, spec.height, spec.width, str(path), spec.fit) for path in paths]) / 255
    rounded = [
        tuple(round(float(v), 4) for v in values)
        for values in (sample.mean((0, 1, 2)), np.maximum(sample.std((0, 1, 2)), 1e-3))
    ]
    return rounded[0], rounded[1]  # type: ignore[return-value]  # three channels


def _open_efficientnet(config: TrainConfig) -> Vision:
    size = config.picture_size
    network = EfficientNetLite(size)
    network.load_pretrained()
    grid = network.grid, network.grid
    return Vision(EFFICIENTNET, _pixels(config, size, size, LITE, grid), network.WIDTH, network)


def _open_onnx(config: TrainConfig) -> Vision:
    network = anonymous(read_vision(Path(config.vision)))
    (height, width), (regions, feature_width) = network.size, network.shape
    if config.picture_size not in (0, height):
        raise InputError(f"`picture_size` {config.picture_size}: {config.vision} takes {height} x {width} pixels")
    return Vision("onnx", _pixels(config, height, width, IMAGENET, grid_of(regions)), feature_width, network)


def _pixels(
    config: TrainConfig, height: int, width: int, made_with: tuple[Channels, Channels], grid: tuple[int, int]
) -> PixelSpec:
    _check_size(height, width)
    mean, std = config.mean or made_with[0], config.std or made_with[1]
    return PixelSpec(height, width, mean, std, grid, config.fit or "letterbox")


def _check_size(height: int, width: int) -> None:
    if not (0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS):
        raise InputError(f"`vision` of {height} x {width} pixels: expected 1 to {MAX_PIXELS} in height and width")
