"""Recall of both variants on the drawn scenes, with three seeds each: the accuracy table of the README.

    python benchmarks/accuracy.py --output build/accuracy

PyTorch trains each run and measures it on the 300 held-out pictures of the demo's data set. Finished runs stay in the
output folder, so an interrupted benchmark resumes where it stopped. The results are also written to
benchmarks/results/accuracy.json.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from machine import describe
from rich.console import Console
from rich.table import Table

from camp_sdk.export.scenes import oracle_recalls, write_scenes
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.measure import measure_checkpoint
from camp_sdk.export.training.run import run_training
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import run_command, stderr

COUNTS = {"train": 5000, "dev": 100, "test": 300}
VARIANTS = ("paper", "scalar")
EPOCHS = 3  # the same as in the demo
RESULTS = Path(__file__).parent / "results" / "accuracy.json"
FIGURES = [(side, figure) for side in ("text_to_image", "image_to_text") for figure in ("r1", "r5", "r10")]


def main(
    output: Annotated[Path, typer.Option(help="Folder for the data set and the runs.")] = Path("build/accuracy"),
    seeds: Annotated[int, typer.Option(help="Runs per variant.", min=2)] = 3,
) -> None:
    """Train and measure both variants with several seeds each."""
    data = output / "data"
    if not data.exists():
        write_scenes(data, COUNTS)
    runs = [measure_run(data, output, variant, seed) for variant in VARIANTS for seed in range(seeds)]
    report = {
        **describe("camp-sdk", "torch", "lightning", "numpy"),
        "pictures": COUNTS,
        "oracle_r1": oracle_recalls(data / "test"),
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with write_aside(RESULTS) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    Console(width=140).print(table(runs))


def measure_run(data: Path, output: Path, variant: str, seed: int) -> dict[str, Any]:
    """Train and measure one model, or read its results if an earlier call measured it.

    Args:
        data: folder of the data set.
        output: folder of all runs; the results are kept in it as ``{variant}-{seed}.json``.
        variant: "paper" or "scalar".
        seed: seed of weights and order.

    Returns:
        The recalls of the network and of its global vectors alone, and the minutes of training.
    """
    run = output / f"{variant}-{seed}"
    result = output / f"{variant}-{seed}.json"
    if not result.is_file():
        stderr.rule(f"{variant}, seed {seed}", align="left")
        started = time.monotonic()
        resumed = (run / "last.ckpt").is_file()
        run_training(TrainConfig(data, run, variant, epochs=EPOCHS, seed=seed, resume=run.is_dir()))
        minutes = (time.monotonic() - started) / 60
        network, vectors = measure_checkpoint(run / "best.ckpt", data, "test")
        assert vectors is not None  # both variants train global vectors
        measured = {"network": asdict(network), "global_vectors": asdict(vectors)}
        with write_aside(result) as aside:
            # The duration of a resumed run is unknown: the time before the interruption was not recorded.
            about = {"variant": variant, "seed": seed, "minutes": None if resumed else round(minutes, 2)}
            aside.write_text(json.dumps(about | measured), encoding="utf-8")
    return dict(json.loads(result.read_text(encoding="utf-8")))


def table(runs: list[dict[str, Any]]) -> Table:
    """Mean and standard deviation over seeds: one row per variant, and one for its global vectors."""
    shown = Table(title="R@1/5/10 on 300 held-out pictures x 5 captions: mean (standard deviation) over seeds")
    shown.add_column("")
    for side, figure in FIGURES:
        shown.add_column(f"{side.replace('_', ' ')} {figure.upper().replace('R', 'R@')}", justify="right")
    for variant in VARIANTS:
        own = [run for run in runs if run["variant"] == variant]
        for scored, name in (("network", variant), ("global_vectors", f"{variant}: global vectors alone")):
            values = [[run[scored][side][figure] for run in own] for side, figure in FIGURES]
            shown.add_row(name, *(f"{statistics.mean(v):.1f} ({statistics.stdev(v):.1f})" for v in values))
    return shown


if __name__ == "__main__":
    run_command(main)
