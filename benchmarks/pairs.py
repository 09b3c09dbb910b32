"""Pair scoring: pairs a second of every backend and precision, beside plain PyTorch and the machine's matrix products.

    python benchmarks/pairs.py --output build/bench

Networks of the paper's sizes (d = 1024, 36 regions) with random weights score the same random features and captions of 8 to
30 words. What is compared runs in turns, round after round, so that a busy minute hits all alike; figures are medians. The
tables also go to benchmarks/results/pairs.json, the plot to benchmarks/results/pairs.png.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import describe, matmul_rates, median_s
from reference import reference_logits
from rich.console import Console
from rich.table import Table

from camp_sdk import Gallery, Retriever
from camp_sdk.export.checkpoint import KEY, Origin, load_checkpoint
from camp_sdk.export.model import Camp, ModelConfig
from camp_sdk.export.to_onnx import export_bundle
from camp_sdk.export.vocabulary import build_tokenizer
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.scoring import plan_blocks
from camp_sdk.terminal import progress, run_command, stderr

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("paper", "scalar", "gate_fusion_new")
WIDTH, REGIONS = 1024, 36
IMAGES, TEXTS = 128, 64
REFERENCE_PAIRS = (16, 8)  # of the same images and texts: plain PyTorch takes long
EXACT_PAIRS = (100, 8)
BLOCKS = ((1, 1), (4, 1), (16, 1), (64, 1), (4, 4), (8, 4), (16, 4), (32, 4), (16, 16), (1, 32))
# Backend, precision of the scorer, precision of the gallery.
WAYS = (
    ("onnxruntime", "float32", "float32"),
    ("onnxruntime", "float32", "float16"),
    ("onnxruntime", "float32", "int8"),
    ("openvino", "float32", "float32"),
    ("openvino", "bfloat16", "float32"),
    ("openvino", "bfloat16", "int8"),
)
ENGINES = [(backend, precision) for backend, precision, kept in WAYS if kept == "float32"]
# Multiply-adds per pair that the factored network cannot do without, at N words: its d x d maps.
MULTIPLY_ADDS: dict[str, Callable[[float], float]] = {
    "paper": lambda words: (REGIONS + words) * WIDTH**2 + WIDTH**2,
    "scalar": lambda words: 5 * REGIONS * words * WIDTH + WIDTH**2,  # it has none but the last; this is its attention
    "gate_fusion_new": lambda words: (REGIONS + words) * WIDTH**2 + 2 * WIDTH**2,
}


@dataclass(frozen=True)
class Inputs:
    """What every way of scoring is given: features [I, R, 2048], captions, and their mean length with both markers."""

    features: np.ndarray
    captions: list[str]
    words: float


def make_inputs() -> tuple[Inputs, str]:
    """Random features and captions, and the text of a tokenizer that knows their words."""
    rng = np.random.default_rng(0)
    words = [f"word{k}" for k in range(2000)]
    lengths = np.clip(np.round(8 + rng.gamma(2.0, 3.0, TEXTS)), 8, 30).astype(int)
    captions = [" ".join(rng.choice(words, length - 2)) for length in lengths]
    features = np.maximum(rng.standard_normal((IMAGES, REGIONS, 2048), dtype=np.float32), 0)
    return Inputs(features, captions, float(lengths.mean())), build_tokenizer([" ".join(words)], 1).to_str()


def make_bundle(
    folder: Path, variant: str, inputs: Inputs, tokenizer: str, precisions: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    """A checkpoint of random weights and its bundle; kept from an earlier run of this benchmark if they are there."""
    checkpoint, bundle = folder / f"{variant}.ckpt", folder / variant
    if not bundle.is_dir():
        torch.manual_seed(0)
        config = ModelConfig(len(json.loads(tokenizer)["model"]["vocab"]), variant, WIDTH)
        model, examples = Camp(config), torch.from_numpy(inputs.features[:12])
        spread_weights(model)
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        origin = Origin(config, None, tokenizer, examples, inputs.captions[:24], {"note": "random weights"})
        torch.save({"state_dict": weights, KEY: origin.as_dict()}, checkpoint)
        export_bundle(checkpoint, bundle, precisions)
    return checkpoint, bundle


@torch.no_grad()
def spread_weights(model: Camp) -> None:
    """Scale random weights until attention looks somewhere and logits differ by about one, as a trained network's do."""
    for name, weight in model.named_parameters():
        if "global" not in name and weight.ndim == 2 and "rnn" not in name:
            weight.mul_(2)
    last = [
        module for module in model.scorer.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1
    ][-1]
    last.weight.mul_(8)


def measure_variant(folder: Path, variant: str, inputs: Inputs, tokenizer: str, rounds: int) -> dict[str, Any]:
    """Pairs a second and errors of every way to score one variant."""
    checkpoint, bundle = make_bundle(folder, variant, inputs, tokenizer)
    V, T, lengths, weights = encode_by_torch(checkpoint, inputs)
    ways: dict[str, Callable[[], object]] = {}
    pairs: dict[str, int] = {}
    scores: dict[str, np.ndarray] = {}
    retrievers = []
    images, texts = REFERENCE_PAIRS
    ways["pytorch"] = lambda: reference_logits(variant, weights, V[:images], T[:texts], lengths[:texts])
    pairs["pytorch"] = images * texts
    for backend, precision, kept in WAYS:
        name = f"{backend} {precision}, gallery {kept}"
        retriever = Retriever(bundle, backend, precision)
        retrievers.append(retriever)
        gallery, captions = (
            retriever.encode_images(inputs.features, precision=kept),
            retriever.encode_texts(inputs.captions),
        )
        scores[name] = retriever.score_matrix(gallery, captions, logits=True)
        ways[name] = partial(retriever.score_matrix, gallery, captions)
        pairs[name] = IMAGES * TEXTS
    exact = exact_logits(variant, weights, V, T, lengths)
    times = interleave(ways, rounds, variant)
    rows = {}
    for name, seconds in times.items():
        rows[name] = {"pairs_per_s": pairs[name] / statistics.median(seconds), "rounds": len(seconds)}
        rows[name] |= differences(scores[name], exact) if name in scores else {}
    shapes = {
        f"{backend} {precision}": sweep_blocks(bundle, backend, precision, inputs) for backend, precision in ENGINES
    }
    for retriever in retrievers:
        retriever.close()
    return {"rows": rows, "gallery_bytes_per_image": gallery_bytes(bundle, inputs), "blocks": shapes}


@torch.no_grad()
def encode_by_torch(
    checkpoint: Path, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """V, T and lengths by PyTorch's encoders, which are no part of what is compared, and the scorer's weights."""
    model, origin = load_checkpoint(checkpoint)
    tokens = origin.open_tokenizer().encode(inputs.captions)
    lengths = torch.from_numpy(tokens.lengths)
    V = model.image_encoder(torch.from_numpy(inputs.features))
    return V, model.text_encoder(torch.from_numpy(tokens.ids), lengths), lengths, model.scorer.state_dict()


def exact_logits(
    variant: str, weights: dict[str, torch.Tensor], V: torch.Tensor, T: torch.Tensor, lengths: torch.Tensor
) -> np.ndarray:
    """Logits of the reference in float64, for a part of the pairs."""
    images, texts = EXACT_PAIRS
    double = {name: tensor.double() for name, tensor in weights.items()}
    return reference_logits(variant, double, V[:images].double(), T[:texts].double(), lengths[:texts]).numpy()


def differences(logits: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The largest difference of scores from float64, and how many of each text's ten best images are the same."""
    found = logits[: exact.shape[0], : exact.shape[1]].astype(np.float64)
    best = [np.argsort(-matrix, axis=0, kind="stable")[:10] for matrix in (found, exact)]
    agreement = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best[0].T, best[1].T, strict=True)])
    scores = [1 / (1 + np.exp(-matrix)) for matrix in (found, exact)]
    return {
        "max_score_error": float(np.abs(scores[0] - scores[1]).max()),
        "top10_agreement": float(agreement),
        "logit_spread": float(exact.std()),
    }


def interleave(ways: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of every call, ``rounds`` times each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in progress(range(rounds), f"scoring pairs, {title}"):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def sweep_blocks(bundle: Path, backend: str, precision: str, inputs: Inputs) -> dict[str, Any]:
    """Pairs a second of one call of the scorer at many block shapes, and what the rule of `plan_blocks` reaches of the best."""
    with Retriever(bundle, backend, precision) as retriever:
        images = retriever._images_of(retriever.encode_images(inputs.features))
        texts = retriever._texts_of(retriever.encode_texts(inputs.captions))
        scorer = retriever._scorer("float32")
        middle = np.argsort(texts.lengths)[len(texts) // 2 - 16 :]  # texts of about the median length

        def rate(shape: tuple[int, int]) -> float:
            block, own = images.take(slice(0, shape[0])), texts.take(middle[: shape[1]])
            return shape[0] * shape[1] / median_s(lambda: scorer.run(block, own), 15)

        planned = plan_blocks(images, texts.select(middle))
        single = plan_blocks(images, texts.select(middle[:1]))
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
    """Bytes an image takes in a gallery of each precision."""
    with Retriever(bundle, "onnxruntime") as retriever:
        few = inputs.features[:2]
        return {
            kept: retriever.encode_images(few, precision=kept).nbytes // 2 for kept in ("float32", "float16", "int8")
        }


def measure_queries(bundles: dict[str, Path], inputs: Inputs) -> dict[str, dict[str, float]]:
    """Milliseconds of `rank` as an app calls it: one query against 1,000 images, five against ten; text encoding included."""
    found: dict[str, dict[str, float]] = {}
    for variant, bundle in bundles.items():
        for backend, precision in ENGINES:
            with Retriever(bundle, backend, precision) as retriever:
                images = retriever._images_of(retriever.encode_images(inputs.features))
                many = EncodedImages({n: np.concatenate([a] * 8)[:1000] for n, a in images.tensors.items()})
                thousand = Gallery(many, [None] * 1000, retriever.bundle)
                ten, captions = thousand.select(slice(0, 10)), inputs.captions
                one_query = partial(retriever.rank, captions[0], thousand)
                five_queries = partial(retriever.rank, captions[:5], ten)
                found[f"{variant}, {backend} {precision}"] = {
                    "1 x 1000": 1000 * median_s(one_query),
                    "5 x 10": 1000 * median_s(five_queries),
                }
    return found


MEMORY = """
import re, sys
import numpy as np
from camp_sdk import Retriever
def held(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
bundle, backend, precision, captions = sys.argv[1:5]
retriever = Retriever(bundle, backend, precision)
gallery = retriever.encode_images(np.load(sys.argv[5], mmap_mode="r"))
texts = retriever.encode_texts(captions.split("|"))
before = held("VmRSS")
retriever.score_matrix(gallery, texts)
print(held("VmHWM"), held("VmHWM") - before)
"""


def measure_memory(bundle: Path, inputs: Inputs, folder: Path) -> dict[str, dict[str, float]]:
    """Peak resident bytes of a process that scores the matrix, and by how much scoring raised it."""
    np.save(folder / "features.npy", inputs.features)
    found = {}
    for backend, precision in ENGINES:
        arguments = [str(bundle), backend, precision, "|".join(inputs.captions), str(folder / "features.npy")]
        peak, grown = _run_python(MEMORY, *arguments).split()
        found[f"{backend} {precision}"] = {"peak_bytes": int(peak), "scoring_bytes": int(grown)}
    return found


FIRST = """
import sys, time
start = time.perf_counter()
import numpy as np
from camp_sdk import Retriever
imported = time.perf_counter()
features = np.load(sys.argv[2])[:100]
loaded = time.perf_counter()
retriever = Retriever(sys.argv[1], sys.argv[3])
retriever.rank(sys.argv[4], features)
print(imported - start, time.perf_counter() - loaded)
"""
RESIDENT = """
import re
import camp_sdk
print(int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def measure_start(bundle: Path, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Seconds of imports, each in a process of its own; of opening a bundle and the first ranking of 100 feature arrays."""

    def import_s(module: str) -> float:
        return median_s(lambda: _run_python(f"import {module}"))

    bare, numpy, ours = (import_s(module) for module in ("sys", "numpy", "camp_sdk"))
    first = {
        backend: statistics.median(
            float(_run_python(FIRST, str(bundle), str(folder / "features.npy"), backend, inputs.captions[0]).split()[1])
            for _ in range(5)
        )
        for backend in ("onnxruntime", "openvino")
    }
    return {
        "import_s": {"python": bare, "numpy": numpy, "camp_sdk": ours},
        "import_ratio": ours / numpy,
        "resident_bytes": int(_run_python(RESIDENT)),
        "open_and_first_rank_s": first,
    }


def _run_python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def floor_of(variant: str, precision: str, rates: dict[str, dict[str, float]], words: float) -> float:
    """Pairs a second if nothing but the network's products were done, at the machine's best rate."""
    return max(rates[precision].values()) * 1e9 / (2 * MULTIPLY_ADDS[variant](words))


def main(
    output: Annotated[Path, typer.Option(help="Folder of bundles; kept from run to run.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(help="How often each way scores.", min=3)] = 7,
) -> None:
    """Measure pair scoring, first answers, memory and imports."""
    output.mkdir(parents=True, exist_ok=True)
    inputs, tokenizer = make_inputs()
    rates = matmul_rates(rows=32 * round(REGIONS + inputs.words), width=WIDTH)
    variants = {variant: measure_variant(output, variant, inputs, tokenizer, rounds) for variant in VARIANTS}
    bundles = {variant: output / variant for variant in VARIANTS}
    report = {
        **describe("camp-sdk", "numpy", "onnxruntime", "openvino", "torch"),
        "sizes": {"d": WIDTH, "regions": REGIONS, "mean_words": inputs.words, "images": IMAGES, "texts": TEXTS},
        "matmul_gflops": rates,
        "floor_pairs_per_s": {v: {p: floor_of(v, p, rates, inputs.words) for p in rates} for v in VARIANTS},
        "variants": variants,
        "memory": measure_memory(bundles["paper"], inputs, output),
        "rank_ms": measure_queries(bundles, inputs),
        "start": measure_start(bundles["paper"], inputs, output),
    }
    RESULTS.mkdir(exist_ok=True)
    with write_aside(RESULTS / "pairs.json") as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with write_aside(RESULTS / "pairs.png") as aside:
        draw(report, aside)
    for table in tables(report):
        Console(width=140).print(table)
    stderr.print(f"wrote {RESULTS / 'pairs.json'} and pairs.png", highlight=False)


def tables(report: dict[str, Any]) -> list[Table]:
    """The report for a terminal."""
    released = report["variants"]["gate_fusion_new"]["rows"]["pytorch"]["pairs_per_s"]
    speed = Table(
        title=f"pairs a second, d = {WIDTH}, {REGIONS} regions, {report['sizes']['mean_words']:.1f} words on average"
    )
    for column in ("", "pairs/s", "of the floor", "x PyTorch", "x released", "max score error", "top 10"):
        speed.add_column(column, justify="left" if not column else "right")
    for variant, found in report["variants"].items():
        own = found["rows"]["pytorch"]["pairs_per_s"]
        for name, row in found["rows"].items():
            precision = "bfloat16" if "bfloat16" in name else "float32"
            share = row["pairs_per_s"] / report["floor_pairs_per_s"][variant][precision]
            errors = (
                [f"{row['max_score_error']:.1e}", f"{row['top10_agreement']:.1%}"]
                if "max_score_error" in row
                else ["", ""]
            )
            ratios = [f"{row['pairs_per_s'] / own:.1f}", f"{row['pairs_per_s'] / released:.1f}"]
            speed.add_row(f"{variant}: {name}", f"{row['pairs_per_s']:,.0f}", f"{share:.0%}", *ratios, *errors)
        speed.add_section()
    rest = Table(title="block rule against the best of a sweep; rank; start; memory")
    rest.add_column("")
    rest.add_column("", justify="right")
    for variant, found in report["variants"].items():
        for backend, shapes in found["blocks"].items():
            for kind, rule in shapes["rule"].items():
                block = " x ".join(map(str, rule["block"]))
                rest.add_row(f"{variant}, {backend}, {kind}: {block}", f"{rule['of_best']:.0%} of the best")
    for name, row in report["rank_ms"].items():
        rest.add_row(f"rank: {name}", ", ".join(f"{shape}: {ms:.1f} ms" for shape, ms in row.items()))
    start = report["start"]
    rest.add_row("import camp_sdk / import numpy", f"{start['import_ratio']:.2f}")
    rest.add_row("resident after import", f"{start['resident_bytes'] / 1e6:.0f} MB")
    for backend, seconds in start["open_and_first_rank_s"].items():
        rest.add_row(f"open a bundle and rank 100 images, {backend}", f"{seconds:.2f} s")
    for name, row in report["memory"].items():
        rest.add_row(
            f"peak memory, {name}", f"{row['peak_bytes'] / 1e6:.0f} MB, scoring {row['scoring_bytes'] / 1e6:.0f} MB"
        )
    return [speed, rest]


def draw(report: dict[str, Any], path: Path) -> None:
    """Pairs a second of each variant as bars on a logarithmic axis, the float32 floor as a mark."""
    from matplotlib.figure import Figure

    names = ["pytorch", *(f"{b} {p}, gallery float32" for b, p, g in WAYS if g == "float32")]
    labels = ["PyTorch, as published", "ONNX Runtime", "OpenVINO", "OpenVINO, bfloat16"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (name, label, colour) in enumerate(
        zip(names, labels, ("#9aa0a6", "#3b6fb6", "#2a9d72", "#e08a2e"), strict=True)
    ):
        values = [report["variants"][variant]["rows"][name]["pairs_per_s"] for variant in VARIANTS]
        bars = axes.bar(np.arange(len(VARIANTS)) + 0.2 * (k - 1.5), values, 0.19, label=label, color=colour)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=8)
    floors = [report["floor_pairs_per_s"][variant]["float32"] for variant in ("paper", "gate_fusion_new")]
    axes.hlines(
        floors, [-0.45, 1.55], [0.45, 2.45], color="black", linewidth=1, linestyle="dashed", label="float32 floor"
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(VARIANTS)), VARIANTS)
    axes.set_ylabel("pairs a second")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.6)
    axes.set_title(
        f"d = {WIDTH}, {REGIONS} regions; {report['machine']['processor']}, {report['machine']['cores']} cores",
        fontsize=10,
    )
    axes.legend(fontsize=8, ncols=5, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    run_command(main)
