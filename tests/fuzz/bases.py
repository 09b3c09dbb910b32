"""The whole files that mutants are made of: bundles, galleries, data sets, checkpoints, pictures and records."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camp_sdk import Bundle, Retriever
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.selftest import SelfTest
from tests.fuzz.sources import write_models, write_sources

RELEASED = Path(__file__).parents[1] / "released"
BUNDLES = {"features": ("paper", False), "pictures": ("scalar", True)}  # variant, and whether it takes pictures
QUERIES = ["a red circle", "star"]
GALLERIES = ("image-float32", "image-int8", "text-float32")
ANN_ITEMS = 1000
HAS_FAISS = importlib.util.find_spec("faiss") is not None
READY = "ready"  # a file that is written last
SPLIT_ROWS = 6


def build_bases(folder: Path, bundles: Mapping[str, Path] | None = None) -> Path:
    """Build every base, unless they are there from an earlier run of the same code.

    Args:
        folder: where to build.
        bundles: bundles that are there already, of the networks in `BUNDLES`; the others are exported.
    """
    if (folder / READY).is_file() and (folder / "indexes").is_dir() and all(_opens(folder / name) for name in BUNDLES):
        return folder
    from tests.helpers.tiny import save_tiny_checkpoint  # here: workers do not need PyTorch for most kinds

    shutil.rmtree(folder, ignore_errors=True)
    with write_aside(folder) as aside:
        aside.mkdir()
        for name, (variant, pictures) in BUNDLES.items():
            save_tiny_checkpoint(aside / f"{name}.ckpt", variant, pictures)
            _bundle(aside, name, (bundles or {}).get(name))
        _data(aside / "data")
        _galleries(aside)
        _indexes(aside)
        _pictures(aside / "formats")
        _released(aside / "released")
        _records(aside)
        write_sources(aside / "sources")
        write_models(aside / "models")
        (aside / READY).touch()
    return folder


def _opens(folder: Path) -> bool:
    try:
        Bundle(folder)
    except BundleError:
        return False
    return True


def _bundle(folder: Path, name: str, made: Path | None) -> None:
    if made is not None:
        shutil.copytree(made, folder / name)
        return
    from camp_sdk.export.bundling.writer import export_bundle  # here: tests bring their own bundles

    export_bundle(folder / f"{name}.ckpt", folder / name)


def some_features(images: int = 3) -> Any:
    """Features of a few images, [I, 5, 12]."""
    return np.random.default_rng(0).standard_normal((images, 5, 12), dtype=np.float32)


def some_pixels() -> Any:
    """A smooth picture, [40, 56, 3]."""
    rows, columns = np.mgrid[:40, :56]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def _data(folder: Path) -> None:
    """A data set of features, and one of pictures."""
    from tests.helpers.tiny import CAPTIONS

    folder.mkdir()
    for split in ("train", "dev"):
        np.save(folder / f"{split}_ims.npy", some_features(SPLIT_ROWS))
        captions = (CAPTIONS * 5)[: 5 * SPLIT_ROWS]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    pictures = folder / "test"
    pictures.mkdir()
    lines = []
    for name in ("one.png", "two.png", "three.png"):
        Image.fromarray(some_pixels()).save(pictures / name)
        lines.append(json.dumps({"file_name": name, "captions": [f"{name} is red", "a caf\xe9"]}) + "\n")
    (pictures / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def _galleries(folder: Path) -> None:
    from tests.helpers.tiny import CAPTIONS

    with Retriever(folder / "features", "onnxruntime", threads=1) as retriever:
        for precision in ("float32", "int8"):
            gallery = retriever.encode_images(some_features(), names=["a", "b", "c"], precision=precision)
            gallery.save(folder / "galleries" / f"image-{precision}")
        retriever.encode_texts(CAPTIONS).save(folder / "galleries" / "text-float32")


def _indexes(folder: Path) -> None:
    """An index of images, one of texts, and one with an approximate search if faiss is installed."""
    about = [{"album": "ab"[n % 2], "year": n, "tags": ["x"]} for n in range(ANN_ITEMS)]
    (folder / "indexes").mkdir()
    (folder / "ann").mkdir()
    with Retriever(folder / "features", "onnxruntime", threads=1) as retriever:
        images = ("indexes/image.index", "image", some_features(8))
        texts = ("indexes/text.index", "text", [f"{color} star" for color in ("red", "blue", "green")])
        many = ("ann/many.index", "image", some_features(ANN_ITEMS))
        for name, kind, items in (images, texts, *([many] if HAS_FAISS else [])):
            with retriever.open_index(folder / name, create=True, kind=kind) as index:
                index.add(items, map(str, range(len(items))), about[: len(items)])
                if len(items) == ANN_ITEMS:
                    index.build_ann()


def _pictures(folder: Path) -> None:
    """Pictures of every format, in several modes."""
    folder.mkdir()
    whole = Image.fromarray(some_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [whole.rotate(90)]}
    ways: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "png": [("RGB", {"exif": exif}), ("P", {"transparency": 0}), ("RGBA", frames), ("I;16", {}), ("1", {})],
        "jpeg": [("RGB", {"exif": exif}), ("L", {"progressive": True}), ("CMYK", {})],
        "tiff": [
            ("RGB", {"compression": "tiff_lzw"}),
            ("RGB", {"compression": "jpeg"}),
            ("F", {}),
            ("P", {}),
            ("I;16", {}),
        ],
        "webp": [("RGB", {"exif": exif}), ("RGBA", {"lossless": True}), ("RGB", frames)],
        "gif": [("P", {}), ("P", frames)],
        "bmp": [("RGB", {}), ("P", {}), ("1", {})],
        "heic": [("RGB", {"exif": exif}), ("RGBA", {})],
    }
    import pillow_heif

    pillow_heif.register_heif_opener()
    for name, modes in ways.items():
        for number, (mode, options) in enumerate(modes):
            picture = whole.convert("L").convert("I").convert("I;16") if mode == "I;16" else whole.convert(mode)
            picture.save(folder / f"{number}.{name}", "HEIF" if name == "heic" else name.upper(), **options)


class _Words:
    """Stands for the class of a released vocabulary, only to read our own recorded file."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        assert name == "Vocabulary"
        return _Words


def _released(folder: Path) -> None:
    shutil.copytree(RELEASED, folder)
    with (folder / "vocab.pkl").open("rb") as file:
        content = vars(_Reader(file).load())
    (folder / "vocab.json").write_text(json.dumps(content), encoding="utf-8")


def _records(folder: Path) -> None:
    """What programs of this project write about other files: engines, runs and results of self-tests."""
    from tests.helpers.engines import write_engine

    engines = shutil.copytree(folder / "features", folder / "engines")
    write_engine(Bundle(engines))
    write_engine(Bundle(engines), graph="scorer", built_at=2.0, precision="float16")
    (folder / "selftest.json").write_text(json.dumps(vars(SelfTest("onnxruntime-cuda", "float32", 1e-6, 1e-7))))


def write_run(bases: Path) -> None:
    """The folder of a training run, with its record; apart from the others, because it imports the trainer."""
    from camp_sdk.data import load_split
    from camp_sdk.export.training.config import TrainConfig
    from camp_sdk.export.training.resume import RECORD, run_record

    data = bases / "data"
    record = run_record(TrainConfig(data, bases / "run"), load_split(data, "train"), load_split(data, "dev"))
    with write_aside(bases / "run") as aside:
        aside.mkdir()
        os.link(bases / "features.ckpt", aside / "last.ckpt")
        (aside / RECORD).write_text(json.dumps(record), encoding="utf-8")
