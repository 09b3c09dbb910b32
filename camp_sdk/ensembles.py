"""Several networks as one: the mean of their scores, as `camp eval a/ b/` measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.data import Split
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import InputError

Matrix = NDArray[np.floating[Any]]

LABELS: tuple[Callable[[Bundle], str], ...] = (
    lambda bundle: bundle.manifest.variant,
    lambda bundle: f"{bundle.manifest.variant} ({bundle.folder.name})",
    lambda bundle: f"{bundle.manifest.variant} ({bundle.folder})",
)


def names_of(bundles: Sequence[Bundle]) -> list[str]:
    """A different name for each bundle: its network's, with the folder's name or path where networks are the same."""
    for label in LABELS:
        names = [label(bundle) for bundle in bundles]
        if len(set(names)) == len(names):
            return names
    return [f"{name}, {number}" for number, name in enumerate(names, start=1)]  # a bundle twice


def check_takes(retriever: Retriever, split: Split) -> None:
    """Check that a bundle takes the images of a split.

    Args:
        retriever: A retriever of the bundle.
        split: The data.

    Raises:
        InputError: The split has pictures and the bundle takes features, or the features have another width; the
            message names the bundle.
    """
    manifest, folder = retriever.bundle.manifest, retriever.bundle.folder
    expected = f"features [I, R, {manifest.feature_width}]"
    if isinstance(split.images, np.ndarray):
        if split.images.shape[2] != manifest.feature_width:
            raise InputError(
                f"{folder} takes {expected}, split {split.name} has {list(split.images.shape)}: expected features of "
                "the detector or network that this model was trained with"
            )
    elif manifest.pixels is None:
        raise InputError(
            f"{folder} takes {expected}, split {split.name} has pictures: expected the bundle of a model trained on "
            "pictures, or a data set of features"
        )


class ScoreMean:
    """The mean of several networks' scores for the same pairs, in numbers that order as the mean does.

    Scores are averaged, not logits: logits of different networks have different scales, so the network with the larger
    ones would decide alone. Published figures of ensembles are computed in the same way.

    If every network's activation is the sigmoid, the mean p is kept as its logit, log(p / (1 - p)): p itself is 1 to
    the last bit of a float64 from a logit of 37 on, and pairs beyond would tie, which counts against the model. If a
    network scores by a cosine, the sum itself is kept; in float64, sums of float32 cosines are exact.

    Args:
        activations: The activation of each network, in the order in which `add` receives their logits.
        shape: I, T.
    """

    def __init__(self, activations: Sequence[str], shape: tuple[int, int]) -> None:
        self._activations = list(activations)
        self._as_logit = set(activations) == {"sigmoid"}
        self._kept = np.zeros(shape, np.float64)  # [I, T], the logit of the mean, or the sum
        self._added = 0

    def add(self, logits: Matrix) -> None:
        """Add the next network's logits [I, T]."""
        sigmoid = self._activations[self._added] == "sigmoid"
        for kept, row in zip(self._kept, logits, strict=True):  # row by row, so that no further matrix is needed
            own = row.astype(np.float64)  # [T]
            if self._as_logit:
                kept[:] = _mean_logit(kept, own, self._added)
            else:
                kept += _sigmoid(own) if sigmoid else own
        self._added += 1

    def similarity(self) -> Matrix:
        """The mean so far [I, T]: its logit, rounded to float32 as a network's own logits are, or the mean itself."""
        return self._kept.astype(np.float32) if self._as_logit else self._kept / self._added


def _mean_logit(mean: Matrix, own: Matrix, added: int) -> Matrix:
    """The logit of a mean score, from the logit of the mean of ``added`` networks and the logit of one more."""
    if not added:
        return own
    with np.errstate(divide="ignore"):  # minus infinity where every score is 0 to the last bit
        up, down = (np.log(added * _sigmoid(sign * mean) + _sigmoid(sign * own)) for sign in (1, -1))  # [T] each
    return np.asarray(up - down)


def _sigmoid(logits: Matrix) -> Matrix:
    with np.errstate(over="ignore"):  # exp overflows to infinity where the score is 0 to the last bit
        return np.asarray(1 / (1 + np.exp(-logits)))
