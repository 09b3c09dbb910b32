"""Pictures per second: decoding, the pretrained vision network, and both as `Retriever.encode_images` runs them.

    python benchmarks/pictures.py --output build/bench

The benchmark makes JPEGs of two sizes that resemble photographs, from smooth noise with grain. The compared methods
take turns, round after round; figures are medians. The results are written to benchmarks/results/pictures.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import describe, is_current
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from camp_sdk import Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.backbones import EfficientNetLite
from camp_sdk.export.network.checkpoint import KEY, Origin
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.export.training.vision_setup import LITE
from camp_sdk.features import FeatureReader
from camp_sdk.pictures import normalise
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.terminal import progress, run_command, stderr

RESULTS = Path(__file__).parent / "results" / "pictures.json"
SIZE, WIDTH = 192, 256
KINDS = {"500 x 375": (500, 375, 96), "4000 x 3000": (4000, 3000, 16)}  # width, height, number of files
BATCH = 32
BACKENDS = ("onnxruntime", "openvino")


def make_bundle(folder: Path) -> Path:
    """Export the pretrained vision network with random weights behind it; reuses a current bundle of an earlier run."""
    bundle = folder / "pictures"
    if is_current(bundle):
        return bundle
    torch.manual_seed(0)
    captions = [f"word{k} word{k + 1}" for k in range(24)]
    tokenizer = build_tokenizer(captions, 1)
    vision = EfficientNetLite(SIZE)
    vision.load_pretrained()
    config = ModelConfig(
        tokenizer.get_vocab_size(), "scalar", WIDTH, vision.WIDTH, 64, SIZE, vision="efficientnet-lite0"
    )
    model = Camp(config)
    model.vision = vision
    pixels = PixelSpec(SIZE, SIZE, *LITE, (vision.grid, vision.grid), "letterbox")
    examples = torch.randint(0, 256, (12, SIZE, SIZE, 3), dtype=torch.uint8)
    origin = Origin(config, pixels, tokenizer.to_str(), examples, captions, {"note": "random weights"})
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, KEY: origin.as_dict()}, folder / "pictures.ckpt")
    return export_bundle(folder / "pictures.ckpt", bundle).folder


def make_pictures(folder: Path) -> dict[str, list[Path]]:
    """Write JPEGs of quality 90: smooth shapes with grain, because grain is what makes files of photographs large.

    Returns:
        The paths, by the pictures' size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Path]] = {}
    for kind, (width, height, count) in KINDS.items():
        rng = np.random.default_rng(0)
        for number in range(count):
            path = folder / f"{width}x{height}-{number}.jpg"
            made.setdefault(kind, []).append(path)
            smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
            grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
            picture = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(path, quality=90)
    return made


def methods_of(retrievers: dict[str, Retriever], paths: list[Path]) -> dict[str, Callable[[], object]]:
    """The calls to time on the pictures of one size: decoding, and per backend the network and `encode_images`."""
    manifest = next(iter(retrievers.values())).bundle.manifest
    spec = manifest.pixels
    assert spec is not None

    def decode() -> None:
        reader = FeatureReader(spec, 3, lambda pixels: pixels.reshape(len(pixels), -1, 3))
        for _ in reader.batches(paths):
            pass

    pixels = normalise(np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8), spec)
    methods: dict[str, Callable[[], object]] = {"decoding": decode}
    for backend, retriever in retrievers.items():
        engine = open_engine(retriever.bundle, "vision", backend)
        methods[f"network, {backend}"] = partial(engine.run, {"pixels": pixels})
        methods[f"encode_images, {backend}"] = partial(retriever.encode_images, paths)
    return methods


def measure(methods: dict[str, Callable[[], object]], pictures: dict[str, int], rounds: int) -> dict[str, float]:
    """Median pictures per second of each method, after a warm-up round.

    Args:
        methods: the calls to time.
        pictures: how many pictures a call of each method handles.
        rounds: timed rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in progress(range(rounds + 1), "measuring"):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: round(pictures[name] / statistics.median(times), 1) for name, times in seconds.items()}


def main(
    output: Annotated[Path, typer.Option(help="Folder for the bundle and the pictures.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 7,
) -> None:
    """Measure how many pictures per second are decoded and encoded."""
    bundle, pictures = make_bundle(output), make_pictures(output / "jpegs")
    retrievers = {backend: Retriever(bundle, backend) for backend in BACKENDS}
    table = Table("JPEGs", "", Column("pictures per second", justify="right"))
    results: dict[str, Any] = {}
    for kind, paths in pictures.items():
        methods = methods_of(retrievers, paths)
        counts = {name: BATCH if name.startswith("network") else len(paths) for name in methods}
        results[kind] = measure(methods, counts, rounds)
        for name, rate in results[kind].items():
            table.add_row(kind, name, f"{rate:.0f}")
    Console().print(table)
    found = {**describe("pillow", "numpy", "onnxruntime", "openvino"), "rounds": rounds, "pictures_per_s": results}
    with write_aside(RESULTS) as aside:
        aside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    stderr.print(f"wrote {RESULTS}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
