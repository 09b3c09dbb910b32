"""Pair scoring: pairs per second of every backend and precision, compared with plain PyTorch and the machine's peak.

    python benchmarks/pairs.py --output build/bench

Networks of the paper's sizes (d = 1024, 36 regions) with random weights score the same random features and captions of
8 to 30 words. The compared methods take turns, round after round, so that other load on the machine affects all of them
alike; figures are medians. The results are written to benchmarks/results/pairs.json, and the plot to
benchmarks/results/pairs.png.
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
import typer
from machine import capabilities, describe, matmul_rates, median_s
from pairs_networks import (
    EXACT_PAIRS,
    IMAGES,
    RANKED,
    REGIONS,
    TEXTS,
    TOP,
    WIDTH,
    Inputs,
    differences,
    encode_by_torch,
    exact_logits,
    make_bundle,
    make_inputs,
    many_features,
)
from pairs_report import draw, tables
from processes import measure_memory, measure_start
from reference import reference_logits
from rich.console import Console

from camp_sdk import Bundle, Gallery, Retriever
from camp_sdk.gallery import texts_of
from camp_sdk.runtime.blocks import plan_blocks
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import progress, run_command, stderr

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("paper", "scalar", "gate_fusion_new")
REFERENCE_PAIRS = (16, 8)  # the part of these images and texts that plain PyTorch scores: it is slow
BLOCKS = ((1, 1), (4, 1), (16, 1), (64, 1), (4, 4), (8, 4), (16, 4), (32, 4), (16, 16), (1, 32))
ROUND_BLOCKS = 6  # blocks of one shape, timed together: an engine may score several at once
# Scoring methods: backend, precision of the scorer, precision of the gallery.
METHODS = (
    ("onnxruntime", "float32", "float32"),
    ("onnxruntime", "float32", "float16"),
    ("onnxruntime", "float32", "int8"),
    ("openvino", "float32", "float32"),
    ("openvino", "float32", "int8"),
    ("openvino", "bfloat16", "float32"),
    ("openvino", "bfloat16", "int8"),
)
LOWERED = ("paper", "gate_fusion_new")  # the variants whose products are faster in fewer bits
# The fewest multiply-adds per pair of the factored network, by the number of words: its d x d maps.
MULTIPLY_ADDS: dict[str, Callable[[float], float]] = {
    "paper": lambda words: (REGIONS + words) * WIDTH**2 + WIDTH**2,
    "scalar": lambda words: 5 * REGIONS * words * WIDTH + WIDTH**2,  # its attention, and its only map, the last one
    "gate_fusion_new": lambda words: (REGIONS + words) * WIDTH**2 + 2 * WIDTH**2,
}


def methods_of(bundle: Path) -> list[tuple[str, str, str]]:
    """The `METHODS` whose precision a bundle has."""
    available = {"float32", *Bundle(bundle).manifest.precisions}
    return [(backend, precision, kept) for backend, precision, kept in METHODS if precision in available]


def engines_of(bundle: Path) -> list[tuple[str, str]]:
    """The different (backend, precision) of a bundle's scoring methods."""
    return list(dict.fromkeys((backend, precision) for backend, precision, _ in methods_of(bundle)))


def measure_variant(folder: Path, variant: str, inputs: Inputs, tokenizer: str, rounds: int) -> dict[str, Any]:
    """Pairs per second and errors of every scoring method of one variant, its block shapes, and bytes per image."""
    lowered = ("bfloat16", "int8") if "BF16" in capabilities() else ("int8",)
    precisions = lowered if variant in LOWERED else ()
    checkpoint, bundle = make_bundle(folder, variant, inputs, tokenizer, precisions)
    V, T, lengths, weights = encode_by_torch(checkpoint, inputs)
    methods: dict[str, Callable[[], object]] = {}
    pairs: dict[str, int] = {}
    scores: dict[str, np.ndarray] = {}
    retrievers = []
    images, texts = REFERENCE_PAIRS
    methods["pytorch"] = lambda: reference_logits(variant, weights, V[:images], T[:texts], lengths[:texts])
    pairs["pytorch"] = images * texts
    for backend, precision, kept in methods_of(bundle):
        name = f"{backend} {precision}, gallery {kept}"
        retriever = Retriever(bundle, backend, precision)
        retrievers.append(retriever)
        gallery, captions = (
            retriever.encode_images(inputs.features, precision=kept),
            retriever.encode_texts(inputs.captions),
        )
        scores[name] = retriever.score_matrix(gallery, captions, logits=True)
        methods[name] = partial(retriever.score_matrix, gallery, captions)
        pairs[name] = IMAGES * TEXTS
        if (precision, kept) == ("float32", "float32") and "int8" in precisions:
            name = f"{backend} int8 and float32"
            some = retriever.encode_images(inputs.features[: EXACT_PAIRS[0]])
            scores[name] = ranked_matrix(retriever, some, inputs.captions)
            many = retriever.encode_images(many_features())
            methods[name] = partial(retriever.rank, inputs.captions[: RANKED[1]], many, TOP, precision="int8")
            pairs[name] = RANKED[0] * RANKED[1]
    exact_images, exact_texts = EXACT_PAIRS
    exact = exact_logits(variant, weights, V[:exact_images], T[:exact_texts], lengths[:exact_texts])
    times = interleave(methods, rounds, variant)
    rows = {}
    for name, seconds in times.items():
        rows[name] = {"pairs_per_s": pairs[name] / statistics.median(seconds), "rounds": len(seconds)}
        rows[name] |= differences(scores[name], exact) if name in scores else {}
    shapes = {
        f"{backend} {precision}": sweep_blocks(bundle, backend, precision, inputs)
        for backend, precision in engines_of(bundle)
    }
    for retriever in retrievers:
        retriever.close()
    return {"rows": rows, "gallery_bytes_per_image": gallery_bytes(bundle, inputs), "blocks": shapes}


def ranked_matrix(retriever: Retriever, images: Gallery, captions: list[str]) -> np.ndarray:
    """Logits [I, T] of the ten best images that two passes find for each caption; the others are minus infinity."""
    found = np.full((len(images), len(captions)), -np.inf, np.float32)
    for text, matches in enumerate(retriever.rank(captions, images, TOP, precision="int8")):
        for match in matches:
            found[match.corpus_id, text] = match.logit
    return found


def interleave(methods: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of every method, which take turns for ``rounds`` rounds after one warm-up call each."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for call in methods.values():
        call()
    for _ in progress(range(rounds), f"scoring pairs, {title}"):
        for name, call in methods.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def sweep_blocks(bundle: Path, backend: str, precision: str, inputs: Inputs) -> dict[str, Any]:
    """Pairs per second of blocks of several shapes, and how the rule of `plan_blocks` compares with the best of them.

    Args:
        bundle: the bundle to open.
        backend: the backend to measure.
        precision: the scorer's precision.
        inputs: features and captions.

    Returns:
        The rates by shape; and, for many texts and for one, the rule's block, its rate and its share of the best rate.
    """
    with Retriever(bundle, backend, precision) as retriever:
        images = retriever.model.images_of(retriever.encode_images(inputs.features))
        texts = texts_of(retriever.encode_texts(inputs.captions))
        scorer = retriever.model.scorer()
        middle = np.argsort(texts.lengths)[len(texts) // 2 - 16 :]  # texts of about the median length
        planned = plan_blocks(images, texts.select(middle), scorer.engine)
        single = plan_blocks(images, texts.select(middle[:1]), scorer.engine)

        def rate(shape: tuple[int, int]) -> float:
            block, own = images.take(slice(0, shape[0])), texts.take(middle[: shape[1]])
            blocks = [(None, block, own)] * ROUND_BLOCKS
            return (
                ROUND_BLOCKS * shape[0] * shape[1] / median_s(lambda: list(scorer.run_each(blocks, planned.at_once)), 7)
            )

        rates = {f"{i} x {t}": rate((i, t)) for i, t in BLOCKS}
        rule = {"many texts": (planned.images, planned.texts), "one text": (single.images, 1)}
        best = {"many texts": max(rates.values()), "one text": max(v for k, v in rates.items() if k.endswith("x 1"))}
        return {
            "rates": rates,
            "rule": {
                k: {"block": list(v), "pairs_per_s": (r := rate(v)), "of_best": r / best[k]} for k, v in rule.items()
            },
        }


def gallery_bytes(bundle: Path, inputs: Inputs) -> dict[str, int]:
    """Bytes per image in a gallery of each precision."""
    with Retriever(bundle, "onnxruntime") as retriever:
        few = inputs.features[:2]
        return {
            kept: retriever.encode_images(few, precision=kept).nbytes // 2 for kept in ("float32", "float16", "int8")
        }


def measure_queries(bundles: dict[str, Path], inputs: Inputs) -> dict[str, dict[str, float]]:
    """Milliseconds of `rank` as an app calls it, text encoding included.

    Returns:
        For each variant and scoring method, the time of one query against 1,000 images and of five queries against ten.
    """
    found: dict[str, dict[str, float]] = {}
    for variant, bundle in bundles.items():
        lowered = Bundle(bundle).manifest.precisions
        for backend, precision, kept in methods_of(bundle):
            with Retriever(bundle, backend, precision) as retriever:
                images = retriever.encode_images(inputs.features, precision=kept).encoded
                many = EncodedImages({n: np.concatenate([a] * 8)[:1000] for n, a in images.tensors.items()})
                thousand = Gallery(many, [None] * 1000, retriever.bundle, kept)
                ten, captions = thousand.select(slice(0, 10)), inputs.captions
                one_query = partial(retriever.rank, captions[0], thousand)
                five_queries = partial(retriever.rank, captions[:5], ten)
                found[f"{variant}, {backend} {precision}, gallery {kept}"] = {
                    "1 x 1000": 1000 * median_s(one_query),
                    "5 x 10": 1000 * median_s(five_queries),
                }
                if (precision, kept) == ("float32", "float32") and "int8" in lowered:
                    distinct = retriever.encode_images(many_features())  # as many images again would tie
                    two = partial(retriever.rank, captions[0], distinct, TOP, precision="int8")
                    found[f"{variant}, {backend} int8 and float32"] = {"1 x 1000": 1000 * median_s(two)}
    return found


def best_rates(*measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The highest of several measured rates, by precision and library."""
    return {p: {name: max(rates[p][name] for rates in measured) for name in measured[0][p]} for p in measured[0]}


def peak_of(variant: str, precision: str, rates: dict[str, dict[str, float]], words: float) -> float:
    """Peak pairs per second: the rate if the machine computed only the network's products, at its best rate.

    Args:
        variant: the network's variant.
        precision: "float32" or "bfloat16".
        rates: GFLOP/s by precision and library.
        words: mean number of words per caption.
    """
    return max(rates[precision].values()) * 1e9 / (2 * MULTIPLY_ADDS[variant](words))


def main(
    output: Annotated[Path, typer.Option(help="Folder of bundles; later runs reuse it.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="Timed rounds.", min=3)] = 7,
) -> None:
    """Measure pair scoring, first answers, memory and imports."""
    output.mkdir(parents=True, exist_ok=True)
    inputs, tokenizer = make_inputs()
    measure_rates = partial(matmul_rates, 32 * round(REGIONS + inputs.words), WIDTH)
    rates = measure_rates()
    variants = {variant: measure_variant(output, variant, inputs, tokenizer, rounds) for variant in VARIANTS}
    bundles = {variant: output / variant for variant in VARIANTS}
    features = output / "features.npy"
    np.save(features, inputs.features)
    start = measure_start(bundles["paper"], features, inputs.captions[0])
    rates = best_rates(rates, measure_rates())  # the better of two: other load on the machine must not lower the peak
    report = {
        **describe("camp-sdk", "numpy", "onnxruntime", "openvino", "torch"),
        "sizes": {"d": WIDTH, "regions": REGIONS, "mean_words": inputs.words, "images": IMAGES, "texts": TEXTS},
        "matmul_gflops": rates,
        "peak_pairs_per_s": {v: {p: peak_of(v, p, rates, inputs.words) for p in rates} for v in VARIANTS},
        "variants": variants,
        "memory": measure_memory({b: engines_of(b) for b in bundles.values()}, features, inputs.captions),
        "rank_ms": measure_queries(bundles, inputs),
        "start": start,
    }
    RESULTS.mkdir(exist_ok=True)
    with write_aside(RESULTS / "pairs.json") as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with write_aside(RESULTS / "pairs.png") as aside:
        draw(report, aside)
    for table in tables(report):
        Console(width=140).print(table)
    stderr.print(f"wrote {RESULTS / 'pairs.json'} and pairs.png", highlight=False)


if __name__ == "__main__":
    run_command(main)
