"""The networks of this folder in one command: train on drawn scenes, export, build engines, evaluate, write a page.

    python -m examples.networks.run --output build/networks

Every step is a command of the SDK. The networks take their regions from EfficientNet-Lite0, pretrained on ImageNet and
frozen, as the papers take theirs from a pretrained detector: a minute would not do to train a vision network as well.
The features of the pictures are computed once and shared; the training time of the first network includes that.
Engines are built, and pictures evaluated and ranked, in processes in which PyTorch cannot be imported.

The figures show that the networks learn, not how they compare: a minute is too short for that. The command fails if
the recall at 10 of a network is below `FACTOR` times that of a random order, in either direction.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from camp_sdk import Bundle
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.scenes import CAPTIONS, write_scenes
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
from camp_sdk.runtime.errors import CampError, InputError
from camp_sdk.terminal import run_command, show_step, stderr
from examples._shared.pages import data_uri, write_page
from examples._shared.sweep import write_json

TEMPLATE = Path(__file__).with_name("networks_page.html")
COUNTS = {"train": 3000, "dev": 100, "test": 300}
QUERY = "a large blue star left of a large pink star"
FACTOR = 10
K = 10
# Negatives narrow to the hardest over more than half of the run: from these alone, a new SGRAF learns nothing, and its
# loss stays at four times log 2.
RECIPE: dict[str, Any] = {
    "vision": "efficientnet-lite0",
    "width": 128,
    "word_width": 64,
    "epochs": 1,
    "batch_size": 32,
    "neighbours": 2,
    "negatives": 3,
    "learning_rate": 1e-3,
    "warm_part": 0.6,
    "global_weight": 0.0,
}
# A module that is None in sys.modules cannot be imported.
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "lightning", "onnx", "onnxscript")))
from camp_sdk.commands.app import main
main()
"""


@dataclass(frozen=True)
class Network:
    """A network of this folder.

    Args:
        title: its name in tables.
        source: the module and the class, as `camp train --network` takes them.
        options: options of `camp train` that differ from `RECIPE`.
    """

    title: str
    source: str
    options: dict[str, Any]


NETWORKS = (
    Network("SCAN t-i", "examples.networks.scan:ScanT2I", {}),
    Network("SCAN i-t", "examples.networks.scan:ScanI2T", {}),
    Network("SGRAF, SGR", "examples.networks.sgraf:Sgr", {}),
    Network("SGRAF, SAF", "examples.networks.saf:Saf", {}),
    Network("VSE-infinity", "examples.networks.vse:VseInfinity", {"epochs": 2}),
)


def main(output: Annotated[Path, typer.Option(help="Folder to create.")] = Path("build/networks")) -> None:
    """Train, export, build, evaluate and rank with every network, and write a table and a page."""
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: remove it, or name another folder")
    started, data = time.monotonic(), output / "data"
    show_step(f"camp scenes --output {data} --train {COUNTS['train']}")
    write_scenes(data, COUNTS)
    chance = {"text_to_image": 100 * K / COUNTS["test"], "image_to_text": chance_of_texts(COUNTS["test"], CAPTIONS)}
    rows = [measured(network, data, output) for network in NETWORKS]
    for row in rows:
        row["passed"] = all(row["recall"][side]["r10"] >= FACTOR * by_chance for side, by_chance in chance.items())
    minutes = (time.monotonic() - started) / 60
    results = {"networks": rows, "chance_r10": chance, "factor": FACTOR, "counts": COUNTS, "minutes": round(minutes, 1)}
    write_json(output / "results.json", results | {"version": version("camp-sdk")})
    Console().print(table_of(rows, chance))
    pictures = [shown(row.pop("ranking")) for row in rows]
    page = results | {"version": version("camp-sdk"), "query": QUERY, "pictures": pictures, "k": K}
    write_page(output / "index.html", TEMPLATE, page)
    stderr.print(f"wrote {output / 'index.html'} after {minutes:.1f} minutes", highlight=False)
    if failed := [row["title"] for row in rows if not row["passed"]]:
        raise CampError(f"R@{K} below {FACTOR} times chance: {', '.join(failed)}")


def chance_of_texts(images: int, captions: int, k: int = K) -> float:
    """The expected R@k of a random order of texts, in percent, where each image has several captions."""
    texts = images * captions
    return 100 * (1 - math.prod((texts - captions - place) / (texts - place) for place in range(k)))


def measured(network: Network, data: Path, output: Path) -> dict[str, Any]:
    """Train, export, build, evaluate and rank with one network, and return its entry in the results."""
    stderr.rule(network.title, align="left")
    run = output / network.source.partition(":")[2]
    checkpoint, training_s = trained(network, data, run)
    bundle = run / "bundle"
    show_step(f"camp export --checkpoint {checkpoint} --output {bundle} --precision fp16")
    manifest = export_bundle(checkpoint, bundle, ["float16"]).manifest
    engines = built(bundle)
    show_step(f"camp eval {bundle} --data {data}")
    recall = without_torch("eval", str(bundle), "--data", str(data))
    show_step(f'camp rank {bundle} --images {data / "test"} --query "{QUERY}" --top-k 5')
    ranked = without_torch("rank", str(bundle), "--images", str(data / "test"), "--query", QUERY, "--top-k", "5")
    return {
        "title": network.title,
        "network": network.source,
        "training_s": round(training_s, 1),
        "recall": {side: recall[side] for side in ("text_to_image", "image_to_text")},
        "parity": max(check["max_logit_error"] for check in manifest.parity),
        "float16": sorted(manifest.precisions["float16"].graphs),
        "engines": engines,
        "ranking": [match["document"] for match in ranked["rankings"][0]["matches"]],
    }


def trained(network: Network, data: Path, run: Path) -> tuple[Path, float]:
    """Train a network; returns its best checkpoint and the seconds of training."""
    options = RECIPE | network.options
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    show_step(f"camp train --data {data} --output {run} --network {network.source} {flags}")
    started = time.monotonic()
    config = TrainConfig(data, run, network=network.source, cache=run.parent / "cache", **options)
    return run_training(config), time.monotonic() - started


def built(bundle: Path) -> list[dict[str, Any]]:
    """Build TensorRT-RTX engines, if the library is installed, but for the vision graph, which all networks share."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        stderr.print("TensorRT-RTX is not installed: no engines are built", style="yellow")
        return []
    graphs = [name for name in Bundle(bundle).manifest.graphs if name != "vision"]
    chosen = [part for name in graphs for part in ("--graph", name)]
    show_step(" ".join(["camp build", str(bundle), "--backend tensorrt-rtx", *chosen]))
    engines = without_torch("build", str(bundle), "--backend", "tensorrt-rtx", *chosen)["engines"]
    kept = ("graph", "precision", "low_share", "build_s")
    return [{name: engine[name] for name in kept} for engine in engines]


def without_torch(*arguments: str) -> Any:
    """Run a `camp` command in a process that cannot import PyTorch, and return the JSON that it prints."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CampError(f"camp {arguments[0]} failed, see above")
    return json.loads(done.stdout)


def table_of(rows: list[dict[str, Any]], chance: dict[str, float]) -> Table:
    """The results as a table for the terminal."""
    table = Table(
        Column("network", no_wrap=True), "R@1 t-i", "i-t", f"R@{K} t-i", "i-t", "parity", "engines", "trained", ""
    )
    for row in rows:
        recalls = [f"{row['recall'][side][name]:.1f}" for name in ("r1", f"r{K}") for side in chance]
        engines = f"{sum(engine['precision'] == 'float16' for engine in row['engines'])} of {len(row['engines'])} half"
        verdict = "ok" if row["passed"] else "TOO LOW"
        table.add_row(row["title"], *recalls, f"{row['parity']:.1e}", engines, f"{row['training_s']:.0f} s", verdict)
    by_chance = [f"{100 / COUNTS['test']:.1f}"] * 2 + [f"{chance[side]:.1f}" for side in chance]
    table.add_row("a random order", *by_chance, "", "", "", "")
    return table


def shown(paths: list[str]) -> list[str]:
    """Pictures for the page."""
    return [data_uri(Image.open(path)) for path in paths]


if __name__ == "__main__":
    run_command(main)
