"""Pair scoring on a GPU: pairs a second of every engine that this machine has, beside PyTorch in half precision.

    python benchmarks/gpu.py --output build/bench-gpu

Networks of the paper's sizes (d = 1024, 36 regions) with random weights score random features and captions of one length.
What is compared runs in turns; figures are medians. Each stands beside what the device could do at its own rate of matrix
products, and of copies. The tables also go to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from gpu_measure import Block, attempt, floors_of, measure_case
from gpu_report import add_shares, tables, targets_of
from gpu_ways import (
    GRAPHS,
    Case,
    Opened,
    encode,
    event_s,
    forget_torch,
    limits_for,
    open_built,
    openers_of,
    require_torch_cuda,
)
from machine import copy_rate, describe, half_product_rate, median_s
from pairs import EXACT_PAIRS, REGIONS, WIDTH, make_bundle, make_inputs
from rich.console import Console

from camp_sdk import Gallery, Retriever
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.runtime.backends import library_version
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.errors import BackendError
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.tensorrt.plans import LIBRARIES
from camp_sdk.terminal import run_command, stderr

RESULTS = Path(__file__).parent / "results" / "gpu.json"
VARIANTS = ("paper", "scalar")
WORDS = (16, 32)
BLOCKS: tuple[Block, ...] = ((1, 1000), (4, 1000), (16, 256), (64, 256), (256, 256))  # texts, images
IMAGES, TEXTS = max(images for _, images in BLOCKS), max(texts for texts, _ in BLOCKS)
GALLERIES, QUERIES = (1000, 5000), (1, 64)
RANK_REPEATS = 15
PRODUCT_ROWS = (1000 * REGIONS, 4096 * REGIONS)  # regions of a block of 1 x 1000, and of all pairs in one call
PACKAGES = ("camp-sdk", "numpy", "torch", "triton", "cuda-bindings")
HOW = {
    "blocks": "texts x images",
    "pytorch": "the scorer's module in float16 on the tensors that the encoders keep (maps folded into them included), "
    "which are on the device; compiled: torch.compile(dynamic=True); CUDA events around a call; logits stay on the device",
    "engines": "the clock around all blocks of the size an engine likes, two on their way with TensorRT, both sides in device "
    "memory; logits come back to the host; CUDA graphs: runs of the same shapes are replayed; TensorRT tunes for a quarter of "
    "the texts of tensorrt_limits, of 16 words; TensorRT-RTX compiles kernels for a shape while others run already, and keeps "
    "them: a second run of this benchmark has them from the start",
    "rank": "Retriever.rank of float16 graphs by the clock, texts encoded, gallery in device memory, best 10",
    "exact": f"the published order of operations in float64, on {EXACT_PAIRS[0]} images x {EXACT_PAIRS[1]} texts",
}


@dataclass(frozen=True)
class Setup:
    """What is measured, and with what: random features [I, R, 2048]; captions by their number of words, markers counted.

    limits: what TensorRT is built for. flops, copied_bytes: the device's own rates a second, None if not known.
    """

    features: np.ndarray
    captions: dict[int, list[str]]
    limits: Limits
    rounds: int
    blocks: Sequence[Block] = BLOCKS
    flops: float | None = None
    copied_bytes: float | None = None


def inputs_of(images: int, texts: int) -> tuple[np.ndarray, dict[int, list[str]]]:
    """Features and captions, of words that the tokenizer of `pairs.make_inputs` knows."""
    rng = np.random.default_rng(1)
    features = np.maximum(rng.standard_normal((images, REGIONS, 2048), dtype=np.float32), 0)
    return features, {words: captions_of(rng, words, texts) for words in WORDS}


def captions_of(rng: np.random.Generator, words: int, count: int) -> list[str]:
    """Captions that are so many tokens long, start and end included."""
    return [" ".join(f"word{k}" for k in rng.integers(0, 2000, words - 2)) for _ in range(count)]


def device_rates() -> tuple[dict[str, float], dict[str, str]]:
    """FLOP/s of half-precision products by their rows, bytes a second of "copies", by PyTorch; why others are not known."""
    try:
        require_torch_cuda()
    except BackendError as error:
        return {}, {"the device's rates": str(error)}
    calls = {str(rows): partial(half_product_rate, rows, WIDTH, event_s) for rows in PRODUCT_ROWS}
    return attempt({**calls, "copies": partial(copy_rate, event_s)})


def measure_variant(folder: Path, variant: str, setup: Setup) -> tuple[dict[str, Any], dict[str, str]]:
    """Every way to score one variant, and rankings; and what is absent, with the reason."""
    checkpoint, bundle_folder = make_bundle(folder, variant, *make_inputs(), precisions=("float16",))
    model, origin = load_checkpoint(checkpoint)
    bundle, words = Bundle(bundle_folder), {}
    with ExitStack() as stack:
        openers = openers_of(model, bundle, setup.limits, stack)
        opened, absent = attempt(openers, lambda name: stderr.print(f"{variant}: opening {name}"))
        for count, captions in setup.captions.items():
            stderr.print(f"{variant}, {count} words: float64 first")
            case = encode(model, origin, setup.features, captions)
            words[str(count)], failed = measure_words(opened, case, variant, count, setup)
            absent |= failed
    backends = [backend for backend in (*LIBRARIES, "onnxruntime-cuda") if f"{backend} float16" in opened]
    ranked, failed = measure_first(bundle, backends, setup)
    return {"words": words, **ranked}, absent | failed


def measure_words(
    opened: Mapping[str, Opened], case: Case, variant: str, words: int, setup: Setup
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every way that was opened, on captions of one length; and what failed, with the reason."""
    makers = {name: partial(open_case, case) for name, open_case in opened.items()}
    rows, failed = measure_case(makers, case.exact, setup.blocks, setup.rounds)
    floors = floors_of(variant, words, setup.flops, setup.copied_bytes)
    add_shares(rows, floors)
    return {"floor_pairs_per_s": floors, "rows": rows}, failed


def measure_first(bundle: Bundle, backends: Sequence[str], setup: Setup) -> tuple[dict[str, Any], dict[str, str]]:
    """Rankings by the first backend that can; why those before it cannot."""
    absent: dict[str, str] = {}
    for backend in backends:
        stderr.print(f"ranking on {backend}")
        found, failed = attempt({f"rank on {backend}": partial(measure_ranks, bundle, backend, setup)})
        absent |= failed
        if found:
            return {"rank_backend": backend, "rank_ms": found[f"rank on {backend}"]}, absent
    return {"rank_backend": None, "rank_ms": {}}, absent or {"rank": "no engine for a GPU was opened"}


def measure_ranks(bundle: Bundle, backend: str, setup: Setup) -> dict[str, float]:
    """Milliseconds of `rank` as an app calls it, text encoding included: float16 graphs, galleries of copied images."""
    for graph in ("image", "text") if backend in LIBRARIES else ():
        open_built(bundle, graph, backend, setup.limits).close()
    found = {}
    captions = next(iter(setup.captions.values()))
    for cuda_graphs in (False, True) if backend in LIBRARIES else (False,):
        with Retriever(bundle, backend, "float16", cuda_graphs=cuda_graphs) as retriever:
            few = retriever.encode_images(setup.features)
            for images in GALLERIES:
                tensors = {
                    name: np.resize(array, (images, *array.shape[1:])) for name, array in few.encoded.tensors.items()
                }
                gallery = Gallery(EncodedImages(tensors), [None] * images, bundle, few.precision)
                for count in QUERIES:
                    title = f"{count} queries, {images} images{GRAPHS * cuda_graphs}"
                    rank = partial(retriever.rank, captions[:count], gallery, 10)
                    found[title] = 1000 * median_s(rank, RANK_REPEATS)
    return found


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, and of the libraries of the backends, however they came here."""
    calls = {name: partial(version, name) for name in packages}
    found, _ = attempt(calls | {name: partial(library_version, name) for name in ("onnxruntime", *LIBRARIES)})
    return found


def main(
    output: Annotated[Path, typer.Option(help="Folder of bundles and engines; kept from run to run.")] = Path(
        "build/bench-gpu"
    ),
    rounds: Annotated[int, typer.Option(help="How often each way scores a block.", min=3)] = 20,
) -> None:
    """Measure pair scoring on the GPU of this machine."""
    gpu = cuda.gpu()  # first: without one there is nothing to wait for
    output.mkdir(parents=True, exist_ok=True)
    stderr.print(f"{gpu.name}: measuring its own rates")
    rates, absent = device_rates()
    copied = rates.pop("copies", None)
    limits = limits_for(gpu.total_bytes)
    setup = Setup(*inputs_of(IMAGES, TEXTS), limits, rounds, BLOCKS, max(rates.values(), default=None), copied)
    variants = {}
    for variant in VARIANTS:
        forget_torch()
        variants[variant], failed = measure_variant(output, variant, setup)
        absent |= {f"{variant}: {name}": reason for name, reason in failed.items()}
    report = {
        **describe(),
        "versions": versions_of(PACKAGES),
        "gpu": asdict(gpu),
        "sizes": {"d": WIDTH, "regions": REGIONS, "words": WORDS},
        "how": HOW,
        "tensorrt_limits": asdict(limits),
        "device": {"matmul_flops": rates, "copied_bytes": copied},
        "variants": variants,
        "targets": targets_of(variants["paper"]["words"]),
        "absent": absent,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with write_aside(RESULTS) as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for table in tables(report):
        Console(width=170).print(table)
    stderr.print(f"wrote {RESULTS}", highlight=False)


if __name__ == "__main__":
    run_command(main)
