"""Train CAMP on a folder of pictures or on precomputed region features.

    python export/train.py --data data/scenes --variant paper --output runs/paper

The run's folder receives best.ckpt (by rsum on the dev split), last.ckpt, and logs as CSV and for TensorBoard. A run that
was killed goes on with --resume.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from camp_sdk.runtime.errors import InputError
from camp_sdk.terminal import run_command

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Options left at 0 take a value that suits the data: see `with_defaults`."""

    data: Annotated[Path, typer.Option(help="Data set: a folder of pictures or of precomputed features.")]
    output: Annotated[Path, typer.Option(help="Folder of the run.")]
    variant: Annotated[str, typer.Option(help="paper (gates of d numbers) or scalar (one number, factored).")] = "paper"
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False
    width: Annotated[int, typer.Option(help="d. 0: 1024 for features, 128 for pictures.")] = 0
    word_width: Annotated[int, typer.Option(help="Word embedding. 0: 300 for features, 64 for pictures.")] = 0
    picture_size: Annotated[int, typer.Option(help="Pixels, a multiple of 96.")] = 96
    epochs: Annotated[int, typer.Option(help="0: 30 for features, 5 for pictures.")] = 0
    batch_size: Annotated[int, typer.Option(help="Pairs a step. 0: 128 for features, 24 for pictures.")] = 0
    neighbours: Annotated[int, typer.Option(help="Images side by side that share a batch. 0: 1; 2 for pictures.")] = 0
    negatives: Annotated[int, typer.Option(help="Hardest negatives each way. 0: 1, the paper's; 3 for pictures.")] = 0
    learning_rate: Annotated[float, typer.Option(help="Peak. 0: 5e-4 for features, 7e-4 for pictures.")] = 0.0
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 1e-3
    warm_part: Annotated[float, typer.Option(help="Part of the run that narrows to the hardest negatives.")] = 0.1
    global_weight: Annotated[float, typer.Option(help="Weight of the global vectors' loss.")] = 0.5
    patience: Annotated[int, typer.Option(help="Stop after this many epochs without a better rsum; 0: never.")] = 0
    min_count: Annotated[int, typer.Option(help="Words seen less often become <unk>.")] = 4
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, 16-mixed or bf16-mixed.")] = "32-true"
    devices: Annotated[str, typer.Option(help="How many devices, or auto.")] = "auto"
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0

    def with_defaults(self, pictures: bool) -> TrainConfig:
        """The same run with every 0 replaced by what suits pictures (small and quick) or features (the paper's sizes)."""
        small = {"width": 128, "word_width": 64, "epochs": 5, "batch_size": 24, "learning_rate": 7e-4}
        large = {"width": 1024, "word_width": 300, "epochs": 30, "batch_size": 128, "learning_rate": 5e-4}
        chosen = small | {"neighbours": 2, "negatives": 3} if pictures else large | {"neighbours": 1, "negatives": 1}
        values = {name: getattr(self, name) or value for name, value in chosen.items()}
        return TrainConfig(**({f.name: getattr(self, f.name) for f in fields(self)} | values))

    def as_dict(self) -> dict[str, str | int | float]:
        """Plain values, for the checkpoint; without where things lay on this machine."""
        return {k: v for k, v in asdict(self).items() if k not in ("data", "output", "resume", "devices", "workers")}

    def check(self) -> None:
        """Raise InputError for values no run can have."""
        for name in ("epochs", "batch_size", "neighbours", "negatives", "width", "word_width", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if self.batch_size < 2:
            raise InputError("--batch-size 1: negatives come from the batch, expected 2 or more")
        if self.picture_size < 96 or self.picture_size % 96:
            raise InputError(f"--picture-size {self.picture_size}: expected a multiple of 96 pixels")
        if self.precision not in PRECISIONS:
            raise InputError(f"--precision {self.precision}: expected one of {', '.join(PRECISIONS)}")
        if not 0 <= self.warm_part <= 1:
            raise InputError(f"--warm-part {self.warm_part}: expected 0 to 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"--learning-rate {self.learning_rate}: expected a positive number")


def main(config: TrainConfig) -> None:
    """Train CAMP on a folder of pictures or on precomputed region features."""
    from camp_sdk.export.training import run_training  # here: --help need not wait for torch

    with tempfile.TemporaryDirectory(prefix="camp-") as cache:
        run_training(config, Path(cache))


def _as_command() -> object:
    """`main` with one command-line option for each field of the configuration."""

    def command(**options: object) -> None:
        main(TrainConfig(**options))  # type: ignore[arg-type]  # typer has parsed them by the same annotations

    hints = get_type_hints(TrainConfig, include_extras=True)
    empty = inspect.Parameter.empty
    defaults = {name: p.default for name, p in inspect.signature(TrainConfig).parameters.items()}
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, empty), annotation=hints[name]
        )
        for name in defaults
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it, mypy does not know it
    command.__annotations__ = hints
    command.__doc__ = main.__doc__
    return command


if __name__ == "__main__":
    run_command(_as_command())  # type: ignore[arg-type]  # a function, typed as object
