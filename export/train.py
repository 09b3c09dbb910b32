"""Train CAMP on a folder of pictures or on precomputed region features.

    python export/train.py --data data/scenes --variant paper --output runs/paper

The run's folder receives best.ckpt (by rsum on the dev split), last.ckpt, logs as CSV and for TensorBoard, and run.json, which
tells what the run was begun with. A run that was killed goes on with --resume.

The recipe of the released code trains a gated model in three stages: its cross-attention model with a margin ranking loss,
then the fusion alone on top of the frozen encoders and attention, then everything:

    python export/train.py --data data/f30k_precomp --variant gate_fusion_new --output runs/full \\
        --attention-epochs 30 --fusion-epochs 10 --epochs 20
"""

from __future__ import annotations

import inspect
from typing import get_type_hints

from camp_sdk.export.training.config import TrainConfig
from camp_sdk.terminal import run_command


def main(config: TrainConfig) -> None:
    """Train CAMP on a folder of pictures or on precomputed region features."""
    from camp_sdk.export.training.run import run_training  # here: --help need not wait for torch

    run_training(config)


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
