"""The images of a run: pictures decoded for a trained vision network, or encoded once by a frozen one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from camp_sdk.data import Split
from camp_sdk.export.bundling.graphs import export_graph, vision_graph
from camp_sdk.export.training.vision_setup import Vision
from camp_sdk.features import FeatureReader
from camp_sdk.pictures import read_pixels
from camp_sdk.progress import progress_bar
from camp_sdk.runtime.arrays import map_array
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import HeldFile, write_aside
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.runtime.threads import available_cores, map_ahead
from camp_sdk.terminal import progress

EXAMPLES = 24  # images of dev in each checkpoint
AHEAD = 32  # pictures decoded in advance
READING = 2  # increased whenever reading, normalising or a network changes, so that features kept before are not used

KEEP_AGAIN = "delete it: the next run encodes the pictures again"


@dataclass(frozen=True)
class Images:
    """The images of a run as training reads them.

    Args:
        stores: The images of the train and the dev split: pictures uint8 [I, H, W, 3] or features [I, R, D] of
            any float type.
        examples: A few images of dev for the checkpoint: pictures if the data set holds pictures, otherwise features.
        pixels: How to normalise the pictures in ``stores``; None for features.
    """

    stores: tuple[NDArray[Any], NDArray[Any]]
    examples: NDArray[Any]
    pixels: PixelSpec | None = None


def prepare_images(
    splits: tuple[Split, Split], vision: Vision | None, tuned: bool, scratch: Path, kept: Path
) -> Images:
    """Decode the pictures of a run for a vision network that is trained, or encode them with a frozen one.

    Args:
        splits: Train and dev.
        vision: The vision network; None for a data set of features.
        tuned: Whether a pretrained network is trained, too.
        scratch: A folder for decoded pictures, used by this run alone.
        kept: A folder for features, which runs may share.
    """
    dev = splits[1]
    if vision is None:
        stores: Any = splits[0].images, dev.images  # arrays
        return Images(stores, np.array(dev.images[:EXAMPLES], np.float32))
    spec = vision.pixels
    if vision.network is None or tuned:
        decoded = [decode_pictures(split, spec, scratch / f"{split.name}.npy") for split in splits]
        return Images((decoded[0], decoded[1]), np.array(decoded[1][:EXAMPLES]), spec)
    few = [read_pixels(path, spec, str(path)) for path in dev.images[:EXAMPLES]]
    train_store, dev_store = encode_pictures(splits, vision, kept)
    return Images((train_store, dev_store), np.stack(few))


def decode_pictures(split: Split, spec: PixelSpec, file: Path) -> NDArray[np.uint8]:
    """Decode a split's pictures into a memory-mapped file.

    Args:
        split: A split of pictures.
        spec: The size of the pixels, and how pictures are fitted to it.
        file: The .npy file to write.

    Returns:
        Pixels uint8 [I, H, W, 3], not yet normalised.
    """
    assert split.has_pictures
    pixels = open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(split.images), spec.height, spec.width, 3))
    rows = iter(pixels)

    def read(path: Path) -> NDArray[np.uint8]:
        return read_pixels(path, spec, str(path))

    with closing(map_ahead(read, split.images, available_cores(), AHEAD, lambda path: False)) as decoded:
        for picture in progress(decoded, f"decoding {split.name}", len(split.images)):
            next(rows)[:] = picture
    return pixels


def encode_pictures(splits: Sequence[Split], vision: Vision, folder: Path) -> list[NDArray[np.float32]]:
    """Encode pictures with a frozen network, through the same graph that the bundle will hold.

    Args:
        splits: Splits of pictures.
        vision: The network and its preprocessing.
        folder: The folder that keeps the features; they are computed again only if the network, its preprocessing or
            the pictures change.

    Returns:
        Features [I, R, D] of each split, memory-mapped.
    """
    files = [folder / f"features-{_key(split, vision)}.npy" for split in splits]
    missing = [(split, file) for split, file in zip(splits, files, strict=True) if not _is_whole(file)]
    if missing:
        with _engine_of(vision) as engine:
            for split, file in missing:
                with write_aside(file) as aside:
                    _encode(split, vision, engine, aside)
    return [map_array(file, KEEP_AGAIN) for file in files]


def _is_whole(file: Path) -> bool:
    try:
        map_array(file, KEEP_AGAIN)
    except BundleError:  # missing or truncated
        return False
    return True


@contextmanager
def _engine_of(vision: Vision) -> Iterator[Engine]:
    """An engine of the network, as the bundle will hold it."""
    assert vision.network is not None
    with tempfile.TemporaryDirectory(prefix="camp-") as folder:
        graph = Path(folder) / "vision.onnx"
        export_graph(vision_graph(vision.network), graph)
        with OnnxRuntimeEngine(HeldFile(graph)) as engine:
            yield engine


def _encode(split: Split, vision: Vision, engine: Engine, file: Path) -> None:
    reader = FeatureReader(vision.pixels, vision.width, lambda pixels: engine.run({"pixels": pixels})["features"])
    title, total = f"encoding {split.name}", len(split.images)
    with progress_bar(title, total) as advance, closing(reader.batches(split.images)) as batches:
        rows, start = None, 0  # [I, R, D], once R is known
        for batch in batches:
            features = batch.features
            assert features is not None  # a broken picture raises an error
            if rows is None:
                rows = open_memmap(file, "w+", np.float32, (total, *features.shape[1:]))
            rows[start : start + len(features)] = features
            start += len(features)
            advance(len(features))


def _key(split: Split, vision: Vision) -> str:
    """A key of the network's weights, its preprocessing, and the names, sizes and times of the pictures."""
    assert vision.network is not None
    setup = READING, version("pillow"), vision.name, asdict(vision.pixels)
    digest = hashlib.sha256(repr(setup).encode())
    for name, weight in vision.network.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.cpu().numpy().tobytes())
    for path in split.images:
        found = Path(path).stat()
        digest.update(f"{Path(path).resolve()} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
