"""Pair scoring on a GPU: pairs per second of every engine on this machine, compared with PyTorch in half precision.

    python benchmarks/gpu.py --output build/bench-gpu

Networks of the paper's sizes (d = 1024, 36 regions) with random weights score random features and captions of one
length. The compared methods take turns, and the figures are medians. Each rate is also given as a share of two peaks:
what the device could reach at its own rate of matrix products, and at its own rate of memory copies. The results are
also written to benchmarks/results/gpu.json.
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
from gpu_measure import Block, attempt, measure_case, peaks_of
from gpu_methods import (
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
from gpu_report import add_shares, tables, targets_of
from machine import copy_rate, describe, half_product_rate, median_s
from pairs_networks import EXACT_PAIRS, REGIONS, WIDTH, make_bundle, make_inputs
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
PRODUCT_ROWS = (1000 * REGIONS, 4096 * REGIONS)  # regions of a 1 x 1000 block, and of all pairs in one call
PACKAGES = ("camp-sdk", "numpy", "torch", "triton", "cuda-bindings")
HOW = {
    "blocks": "texts x images",
    "pytorch": "the scorer module in float16, on the tensors that the encoders keep (with the maps folded into them), "
    "in device memory; compiled: torch.compile(dynamic=True); timed with CUDA events; logits stay on the device",
    "engines": "wall-clock time of all blocks, in the block size that the engine prefers, two blocks in flight with "
    "TensorRT; both sides in device memory; logits are copied to the host; CUDA graphs: runs of the same shapes are "
    "replayed; TensorRT tunes for a quarter of the texts of tensorrt_limits, of 16 words; TensorRT-RTX compiles the "
    "kernels of a shape while general ones already run, and caches them: a second run of this benchmark has them from "
    "the start",
    "rank": "wall-clock time of Retriever.rank with float16 graphs, text encoding included, gallery in device memory, "
    "top 10",
    "exact": f"the published order of operations in float64, on {EXACT_PAIRS[0]} images x {EXACT_PAIRS[1]} texts",
}


@dataclass(frozen=True)
class Setup:
    """The inputs and settings of the measurements.

    Args:
        features: random features, float32 [I, R, 2048].
        captions: captions by their number of words, start and end markers included.
        limits: the sizes that TensorRT engines are built for.
        rounds: timed calls of each method per block.
        blocks: the blocks to measure, (texts, images) each.
        flops: the device's own rate of half-precision products in FLOP/s, None if unknown.
        copied_bytes: the device's own rate of copies in bytes per second, None if unknown.
    """

    features: np.ndarray
    captions: dict[int, list[str]]
    limits: Limits
    rounds: int
    blocks: Sequence[Block] = BLOCKS
    flops: float | None = None
    copied_bytes: float | None = None


def inputs_of(images: int, texts: int) -> tuple[np.ndarray, dict[int, list[str]]]:
    """Random features and captions; the captions use words that the tokenizer of `make_inputs` knows."""
    rng = np.random.default_rng(1)
    features = np.maximum(rng.standard_normal((images, REGIONS, 2048), dtype=np.float32), 0)
    return features, {words: captions_of(rng, words, texts) for words in WORDS}


def captions_of(rng: np.random.Generator, words: int, count: int) -> list[str]:
    """Random captions of ``words`` tokens each, start and end markers included."""
    return [" ".join(f"word{k}" for k in rng.integers(0, 2000, words - 2)) for _ in range(count)]


def device_rates() -> tuple[dict[str, float], dict[str, str]]:
    """The device's own rates, measured with PyTorch.

    Returns:
        FLOP/s of half-precision products by their number of rows, and bytes per second under "copies"; and the reason
        for each rate that could not be measured.
    """
    try:
        require_torch_cuda()
    except BackendError as error:
        return {}, {"the device's rates": str(error)}
    calls = {str(rows): partial(half_product_rate, rows, WIDTH, event_s) for rows in PRODUCT_ROWS}
    return attempt({**calls, "copies": partial(copy_rate, event_s)})


def measure_variant(folder: Path, variant: str, setup: Setup) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure every scoring method and the rankings of one variant.

    Returns:
        The figures; and the reason for each method that is absent.
    """
    checkpoint, bundle_folder = make_bundle(folder, variant, *make_inputs(), precisions=("float16",))
    model, origin = load_checkpoint(checkpoint)
    bundle, cases = Bundle(bundle_folder), {}
    with ExitStack() as stack:
        openers = openers_of(model, bundle, setup.limits, stack)
        opened, absent = attempt(openers, lambda name: stderr.print(f"{variant}: opening {name}"))
        for count, captions in setup.captions.items():
            stderr.print(f"{variant}, {count} words: computing float64 logits")
            case = encode(model, origin, setup.features, captions)
            cases[str(count)], failed = measure_words(opened, case, variant, count, setup)
            absent |= failed
    backends = [backend for backend in (*LIBRARIES, "onnxruntime-cuda") if f"{backend} float16" in opened]
    ranked, failed = measure_first(bundle, backends, setup)
    return {"words": cases, **ranked}, absent | failed


def measure_words(
    opened: Mapping[str, Opened], case: Case, variant: str, words: int, setup: Setup
) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure every opened method on captions of one length.

    Returns:
        The peaks and figures; and the reason for each method that failed.
    """
    makers = {name: partial(open_case, case) for name, open_case in opened.items()}
    rows, failed = measure_case(makers, case.exact, setup.blocks, setup.rounds)
    peaks = peaks_of(variant, words, setup.flops, setup.copied_bytes)
    add_shares(rows, peaks)
    return {"peak_pairs_per_s": peaks, "rows": rows}, failed


def measure_first(bundle: Bundle, backends: Sequence[str], setup: Setup) -> tuple[dict[str, Any], dict[str, str]]:
    """Time rankings on the first backend that works.

    Returns:
        The backend's name and its times; and the reason for each earlier backend that failed.
    """
    absent: dict[str, str] = {}
    for backend in backends:
        stderr.print(f"ranking on {backend}")
        found, failed = attempt({f"rank on {backend}": partial(measure_ranks, bundle, backend, setup)})
        absent |= failed
        if found:
            return {"rank_backend": backend, "rank_ms": found[f"rank on {backend}"]}, absent
    return {"rank_backend": None, "rank_ms": {}}, absent or {"rank": "no engine for a GPU was opened"}


def measure_ranks(bundle: Bundle, backend: str, setup: Setup) -> dict[str, float]:
    """Milliseconds of `rank` as an app calls it, text encoding included: float16 graphs, on repeated images.

    Args:
        bundle: the bundle; engines that are missing are built into it.
        backend: the backend to rank on.
        setup: features, captions and limits.

    Returns:
        Milliseconds by queries, images and whether CUDA graphs are replayed.
    """
    for graph in ("image", "text") if backend in LIBRARIES else ():
        open_built(bundle, graph, backend, setup.limits).close()
    found = {}
    captions = next(iter(setup.captions.values()))
    for cuda_graphs in (False, True) if backend in LIBRARIES else (False,):
        with Retriever(bundle, backend, "float16", cuda_graphs=cuda_graphs) as retriever:
            encoded = retriever.encode_images(setup.features)
            for images in GALLERIES:
                tensors = {
                    name: np.resize(array, (images, *array.shape[1:]))
                    for name, array in encoded.encoded.tensors.items()
                }
                gallery = Gallery(EncodedImages(tensors), [None] * images, bundle, encoded.precision)
                for count in QUERIES:
                    title = f"{count} queries, {images} images{GRAPHS * cuda_graphs}"
                    rank = partial(retriever.rank, captions[:count], gallery, 10)
                    found[title] = 1000 * median_s(rank, RANK_REPEATS)
    return found


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed packages, and of the backends' libraries, however these were installed."""
    calls = {name: partial(version, name) for name in packages}
    found, _ = attempt(calls | {name: partial(library_version, name) for name in ("onnxruntime", *LIBRARIES)})
    return found


def main(
    output: Annotated[Path, typer.Option(help="Folder of bundles and engines; later runs reuse it.")] = Path(
        "build/bench-gpu"
    ),
    rounds: Annotated[int, typer.Option(help="Timed calls of each method per block.", min=3)] = 20,
) -> None:
    """Measure pair scoring on the GPU of this machine."""
    gpu = cuda.gpu()  # first: without a GPU the benchmark ends at once
    output.mkdir(parents=True, exist_ok=True)
    stderr.print(f"{gpu.name}: measuring the device's own rates")
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
