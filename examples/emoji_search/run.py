"""Search emoji by words, in one command: fetch and build the data set, train four models, export, evaluate, write a page.

    python examples/emoji_search/run.py --output build/emoji

The gates of the paper (`paper`) and of one number (`scalar`), each with word vectors learned from the captions and with a
frozen sentence encoder. The output folder receives results.json and index.html, which needs nothing but itself.

What is done is kept: packages, data set, trainings and measurements. So a run that was stopped goes on; to begin anew,
remove the folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from build_data import NAME, build
from fetch import fetch
from packages import STYLES
from rich.console import Console

from camp_sdk import Retriever, Split, evaluate, load_split
from camp_sdk.cli import evaluation_table
from camp_sdk.evaluation import work_of
from camp_sdk.export.runs import measured_run, runnable, write_json
from camp_sdk.export.sentences import LEARNED
from camp_sdk.export.train import TrainConfig
from camp_sdk.progress import progress_bars
from camp_sdk.terminal import run_command, stderr

# Options of export/train.py.
RECIPE: dict[str, Any] = {
    "width": 128,
    "word_width": 128,
    "vision": "efficientnet-lite0",
    "epochs": 3,
    "batch_size": 48,
    "neighbours": 1,
    "negatives": 8,
    "learning_rate": 1e-3,
    "softmax_weight": 1.0,
    "weight_decay": 0.05,
    "dropout": 0.2,
    "min_count": 6,
}
OF_LEARNED_WORDS = ("word_width", "min_count")  # a sentence encoder brings its own
SENTENCES = "all-minilm-l6-v2"
MODELS = [(variant, words) for words in (LEARNED, SENTENCES) for variant in ("paper", "scalar")]
COUNTS = {"test": 300, "dev": 100}
VERSIONS = ("camp-sdk", "torch", "lightning", "onnxruntime", "numpy")


def main(
    output: Annotated[Path, typer.Option(help="Folder of data, runs and results.")] = Path("build/emoji"),
    packages: Annotated[
        Path | None, typer.Option(help="Folder of the fetched tarballs. Default: packages in --output.")
    ] = None,
) -> None:
    """Fetch, build, train, export, evaluate, and write a page."""
    packages = packages or output / "packages"
    data = output / "data"
    if not data.exists():
        stderr.print(f"python examples/emoji_search/fetch.py --output {packages}")
        fetch(packages)
        build(packages, data, COUNTS)
    report(data, output, RECIPE)


def report(data: Path, output: Path, recipe: dict[str, Any]) -> None:
    """Train and measure every model whose packages are here, and write what came of it."""
    started = time.monotonic()
    runs = runnable(configs(data, output, recipe))
    models = [measured_run(config, lambda bundle: measure(bundle, data)) for config in runs]
    results = {
        "recipe": recipe,
        "data": describe_data(data),
        "models": models,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    write_json(output / "results.json", results)
    stderr.print(f"wrote {output / 'results.json'} after {(time.monotonic() - started) / 60:.1f} minutes")


def configs(data: Path, output: Path, recipe: dict[str, Any]) -> Iterator[TrainConfig]:
    """The run of every model."""
    for variant, words in MODELS:
        options = {n: v for n, v in recipe.items() if words == LEARNED or n not in OF_LEARNED_WORDS}
        yield TrainConfig(data, output / f"{variant}-{words}", variant, words=words, cache=output / "cache", **options)


def measure(bundle: Path, data: Path) -> dict[str, Any]:
    """Recalls on dev, by which the best model is chosen, and on test, each style by itself: all captions, names alone."""
    test = load_split(data, "test")
    splits = {"dev": (load_split(data, "dev"), 1)}
    splits |= {"test": (test, len(STYLES)), "test_names": (only_names(test, kinds_of(data / "test")), len(STYLES))}
    measured: dict[str, Any] = {}
    with Retriever(bundle) as retriever:
        for name, (split, folds) in splits.items():
            with progress_bars(work_of(split, folds)) as advance:
                result = evaluate(retriever, split, folds, advance)
            Console().print(evaluation_table(result, f"{name}: {result.protocol}"))
            measured[name] = result.as_dict()
        return {"backend": retriever.backend, **measured}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """What a split says of each of its pictures."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def kinds_of(folder: Path) -> list[str]:
    """What each caption of a split is: name, tags, ..."""
    return [kind for row in read_rows(folder) for kind in row["kinds"]]


def only_names(split: Split, kinds: list[str]) -> Split:
    """The same pictures, of whose captions only the names are left: short queries."""
    chosen = np.flatnonzero(np.array(kinds) == NAME)
    captions = [split.captions[index] for index in chosen]
    return replace(split, captions=captions, image_of_caption=split.image_of_caption[chosen])


def describe_data(data: Path) -> dict[str, Any]:
    """Counts of the splits, and how many words of test captions no training caption has."""
    rows = {split: read_rows(data / split) for split in ("train", "dev", "test")}
    return {
        split: {
            "pictures": len(own),
            "concepts": len({row["concept"] for row in own}),
            "families": len({row["family"] for row in own}),
            "captions": sum(len(row["captions"]) for row in own),
        }
        for split, own in rows.items()
    }


if __name__ == "__main__":
    run_command(main)
