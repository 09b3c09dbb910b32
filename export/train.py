"""Train CAMP on a folder of pictures or on precomputed region features: `camp train`.

    camp train --data data/scenes --variant paper --output runs/paper

The run's folder receives best.ckpt (by rsum on the dev split), last.ckpt, logs as CSV and for TensorBoard, and
run.json, which records the options and data of the run. A run that was killed continues with --resume.

The recipe of the released code trains a gated model in three stages: its cross-attention model, then the fusion alone
on top of the frozen encoders and attention, then everything:

    camp train --data data/f30k_precomp --variant gate_fusion_new --output runs/full \\
        --attention-epochs 30 --fusion-epochs 10 --epochs 20

With --recipe released, losses, initial weights, batches and optimisers are also those of the released code.
"""

from __future__ import annotations

import inspect
from typing import Annotated, get_type_hints

from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.recipe import STAGED
from camp_sdk.terminal import run_command


def command(**options: object) -> None:
    """Train CAMP on a folder of pictures or on precomputed region features."""
    from camp_sdk.export.training.run import run_training  # here: --help does not wait for torch

    run_training(TrainConfig(**options))  # type: ignore[arg-type]  # typer has parsed them with the same annotations


# One command-line option for each field of the configuration. Those with a value for each stage arrive as text.
command.__annotations__ = get_type_hints(TrainConfig, include_extras=True)
command.__annotations__ |= {name: Annotated[str, command.__annotations__[name].__metadata__[0]] for name in STAGED}
command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it, mypy does not know it
    [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=command.__annotations__[name])
        for name, parameter in inspect.signature(TrainConfig).parameters.items()
    ]
)


if __name__ == "__main__":
    run_command(command)
