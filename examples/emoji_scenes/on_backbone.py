"""What CAMP adds to a frozen two-tower network, measured on scenes of emoji artwork.

    python -m examples.emoji_scenes.on_backbone --data build/emoji_scenes/data --output build/on_backbone

No weights of CLIP can be installed from the package index, so the first step trains two towers on what can: a frozen
EfficientNet-Lite0, with learned words, below VSE-infinity with one global vector a side. The second step freezes all
of it, and trains `paper` on top with `camp train --backbone`: the shortlist is the towers', the decision CAMP's. Both
are measured on scenes of known things in new pairs (`seen`) and of new things (`test`), and results.json
is written into the output folder.

Finished steps are kept. To start over, remove the folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk import Retriever, load_split
from camp_sdk.export.network.networks import add_network
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.options import SMALL
from camp_sdk.terminal import run_command
from examples._shared.sweep import finish_run, kept_json, write_json
from examples.emoji_scenes.run import CHECKPOINT, RECIPE, measure_split
from examples.networks.vse import VseInfinity

# Options of `camp train`, which the two steps share with the example beside this one.
TOWERS = {name: value for name, value in RECIPE.items() if name not in ("softmax_weight", "pair_batch")}
ON_TOP = {name: value for name, value in RECIPE.items() if name not in ("word_width", "vision")} | {"epochs": 8}
MEASURED = ("seen", "test")


def main(
    data: Annotated[Path, typer.Option(help="Data set of this example's run.py.")] = Path("build/emoji_scenes/data"),
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path("build/on_backbone"),
) -> None:
    """Train two towers, train CAMP on top of them, and measure."""
    report(data, output, TOWERS, ON_TOP)


def report(data: Path, output: Path, towers: dict[str, Any], on_top: dict[str, Any]) -> None:
    """Train and measure, and write results.json.

    Args:
        data: folder of the data set.
        output: folder of runs and results.
        towers: options of `camp train` for the two towers.
        on_top: those for CAMP.
    """
    cache = output / "cache"
    of_towers = None if towers["vision"] == SMALL else cache  # a network that is trained has no features to keep
    runs = {"towers": TrainConfig(data, output / "towers", add_network(VseInfinity), cache=of_towers, **towers)}
    runs["camp"] = TrainConfig(data, output / "camp", backbone=output / "towers" / CHECKPOINT, cache=cache, **on_top)
    results = {}
    for name, config in runs.items():
        bundle = finish_run(config, CHECKPOINT)
        results[name] = kept_json(config.output / "measured.json", partial(measure, bundle, data))
        results[name] |= {"training_minutes": kept_json(config.output / "minutes.json", lambda: None)}
    write_json(output / "results.json", results)


def measure(bundle: Path, data: Path) -> dict[str, Any]:
    """Recalls and twin accuracies of a bundle's network, of its global vectors, and of both combined."""
    with Retriever(bundle) as retriever:
        return {name: measure_split(retriever, load_split(data, name)) for name in MEASURED}


if __name__ == "__main__":
    run_command(main)
