"""Options with one value for each stage of a run, and the recipe of the released code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camp_sdk.runtime.errors import InputError

ATTENTION, FUSION, WHOLE = "attention", "fusion", "whole"  # what a stage trains
ONE_CYCLE, OPTIMISERS = "adamw", ("adamw", "adam", "sgd")
STAGED: dict[str, type[int] | type[float] | type[str]] = {  # options with one value, or one for each stage
    "batch_size": int,
    "learning_rate": float,
    "optimiser": str,
    "decay_every": int,
    "weight_decay": float,
    "softmax_weight": float,
    "global_weight": float,
}
RELEASED = "released"  # a value of `recipe` and of `init`
RECIPE: dict[str, str | float] = {
    "loss": "bce",
    "reduction": "sum",
    "captions": "one",
    "init": RELEASED,
    "vocabulary_splits": "train,dev",
    "neighbours": 1,
    "negatives": 1,
    "warm_part": 0.0,
    "global_weight": 0.0,
}
RECIPE_OF_STAGE: dict[str, dict[str, str | float]] = {
    "batch_size": {ATTENTION: 256, FUSION: 128, WHOLE: 128},
    # The released code multiplies the rates of its configurations by 128 / batch size: 0.002 becomes 0.001.
    "learning_rate": {ATTENTION: 1e-3, FUSION: 1e-2, WHOLE: 1e-2},
    "optimiser": {ATTENTION: "adam", FUSION: "sgd", WHOLE: "sgd"},
    "decay_every": {ATTENTION: 50, FUSION: 45, WHOLE: 50},
    "weight_decay": {ATTENTION: 0.0, FUSION: 1e-4, WHOLE: 1e-4},
}


def values_of(name: str, given: object, stages: int) -> list[Any]:
    """The values of an option of `STAGED`, one for each stage.

    Args:
        name: The option.
        given: A number, or text: one value, or one for each stage, such as "256,128,64".
        stages: The number of stages that the run trains.

    Raises:
        InputError: A value is not of the option's type, or the number of values is neither one nor that of the stages.
    """
    kind = STAGED[name]
    try:
        values = [kind(part.strip()) for part in str(given).split(",")]
    except ValueError:
        expected = "whole number" if kind is int else "number"
        raise InputError(f"`{name}` {given}: expected a {expected}, or one for each stage, with commas") from None
    if len(values) not in (1, stages):
        trained = f"the {stages} stages" if stages > 1 else "one stage"
        raise InputError(f"`{name}` {given}: {len(values)} values for {trained} of this run: expected one for each")
    return values * stages if len(values) == 1 else values


def joined(values: Sequence[Any]) -> Any:
    """The inverse of `values_of`: one value if all are equal, otherwise text."""
    return values[0] if len(set(values)) == 1 else ",".join(map(str, values))


def released_options(stages: Sequence[str]) -> dict[str, Any]:
    """What the released code trains with, as options.

    Args:
        stages: What each stage of the run trains: `ATTENTION`, `FUSION` or `WHOLE`.
    """
    by_stage = {name: joined([of[stage] for stage in stages]) for name, of in RECIPE_OF_STAGE.items()}
    return RECIPE | by_stage
