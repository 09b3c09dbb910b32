"""Both stages of a ranking as one score: the network's logit plus a weighted dot product of the global vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.metrics import Metrics, evaluate_matrix

WEIGHT = "combination_weight"  # among the dev figures of a checkpoint
Matrix = NDArray[np.floating[Any]]
# The part of the vectors beside the network, in standard deviations of both.
RATIOS = (0.0, *(2.0**power for power in range(-6, 5)))


@dataclass(frozen=True)
class Combination:
    """The combined scores of a split.

    Args:
        weight: The weight of the vectors' dot products beside the logits.
        metrics: Of the combined scores.
    """

    weight: float
    metrics: Metrics


def combine(logits: Matrix, products: Matrix, weight: float) -> Matrix:
    """The combined scores of both stages, which rank as they are; higher is better.

    Args:
        logits: [I, T].
        products: Dot products of the global vectors [I, T].
        weight: The weight of a dot product beside a logit.
    """
    return logits + np.float32(weight) * products


def choose_weight(logits: Matrix, products: Matrix, image_of_caption: NDArray[np.integer[Any]]) -> float:
    """The weight with the highest rsum on a split, of twelve from none to sixteen times the network's part.

    Args:
        logits: [I, T].
        products: Dot products of the global vectors [I, T].
        image_of_caption: The image of each caption [T].
    """
    deviation = float(products.std())
    unit = float(logits.std()) / deviation if deviation else 0.0
    weights = [ratio * unit for ratio in RATIOS]
    found = [evaluate_matrix(combine(logits, products, weight), image_of_caption).rsum for weight in weights]
    return weights[int(np.argmax(found))]  # the smallest of equals
