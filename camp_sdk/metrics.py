"""Retrieval metrics: recall at K, median rank and rsum, in both directions; ties count against the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import InputError

Ranks = NDArray[np.float64]
MAX_RECALL_K = 10  # the largest K of recall at K


@dataclass(frozen=True)
class Direction:
    """The metrics of one direction.

    Args:
        r1: Recall at 1 in percent; higher is better.
        r5: Recall at 5 in percent.
        r10: Recall at 10 in percent.
        median_rank: Median rank of the correct item, 1 at best; lower is better.
    """

    r1: float
    r5: float
    r10: float
    median_rank: float


@dataclass(frozen=True)
class Metrics:
    """The metrics of both directions of retrieval.

    Args:
        text_to_image: Captions as queries, images ranked.
        image_to_text: Images as queries, captions ranked.
    """

    text_to_image: Direction
    image_to_text: Direction

    @property
    def rsum(self) -> float:
        """The sum of the six recalls in percent, 600 at best."""
        both = (self.text_to_image, self.image_to_text)
        return round(sum(d.r1 + d.r5 + d.r10 for d in both), 6)  # drops the rounding error of the sum

    def as_dict(self) -> dict[str, Any]:
        """The metrics as plain values under "text_to_image", "image_to_text" and "rsum"."""
        return asdict(self) | {"rsum": self.rsum}


def evaluate_matrix(similarity: NDArray[np.floating[Any]], image_of_caption: NDArray[np.integer[Any]]) -> Metrics:
    """Measure retrieval from a similarity matrix. Ties count against the model.

    Args:
        similarity: [I, T], higher for a better match. Pass logits: scores saturate, which makes ties.
        image_of_caption: [T] integers; caption t describes image ``image_of_caption[t]``.

    Raises:
        InputError: The shapes disagree, a similarity is NaN, or an image has no caption.
    """
    similarity, image_of_caption = np.asarray(similarity), np.asarray(image_of_caption)
    check_matrix(similarity, image_of_caption)
    return Metrics(
        direction(text_to_image_ranks(similarity, image_of_caption)),
        direction(image_to_text_ranks(similarity, image_of_caption)),
    )


def check_matrix(similarity: NDArray[np.floating[Any]], image_of_caption: NDArray[np.integer[Any]]) -> None:
    """Check the arguments of `evaluate_matrix`.

    Raises:
        InputError: A caption has no image, an image has no caption, or a similarity is NaN.
    """
    if similarity.ndim != 2 or not similarity.size:
        raise InputError(f"similarity is {similarity.shape}: expected [I, T] with at least one of each")
    images, texts = similarity.shape
    if len(image_of_caption) != texts:
        raise InputError(f"similarity is {similarity.shape} but there are {len(image_of_caption)} captions")
    if not np.array_equal(np.unique(image_of_caption), np.arange(images)):
        raise InputError(f"image_of_caption must hold each index from 0 to {images - 1} at least once, and no other")
    if np.isnan(similarity).any():
        raise InputError("similarity holds NaN: expected numbers")


def text_to_image_ranks(similarity: NDArray[np.floating[Any]], image_of_caption: NDArray[np.integer[Any]]) -> Ranks:
    """The rank of each caption's image among all images [T]: 1 + the number above it + half the number tied with it."""
    own = similarity[image_of_caption, np.arange(len(image_of_caption))]
    above = (similarity > own).sum(0)
    tied = (similarity == own).sum(0) - 1
    return np.asarray(1 + above + tied / 2, np.float64)


def image_to_text_ranks(similarity: NDArray[np.floating[Any]], image_of_caption: NDArray[np.integer[Any]]) -> Ranks:
    """The rank of each image's best caption among the captions of other images [I]; each tie counts half."""
    ranks = np.empty(len(similarity))
    for image, row in enumerate(similarity):  # row by row: a mask for all of COCO 5K would take another matrix
        mine = image_of_caption == image
        best, others = row[mine].max(), row[~mine]
        ranks[image] = 1 + (others > best).sum() + (others == best).sum() / 2
    return ranks


def direction(ranks: Ranks) -> Direction:
    """Recalls and median rank from ranks that start at 1; a rank of 1.5 (one tie) is a miss at 1."""
    r1, r5, r10 = (100 * int((ranks <= k).sum()) / len(ranks) for k in (1, 5, MAX_RECALL_K))
    return Direction(r1, r5, r10, float(np.median(ranks)))


def mean_metrics(folds: list[Metrics]) -> Metrics:
    """The mean of every figure over the folds, as results on COCO 1K are reported."""

    def mean(side: str) -> Direction:
        rows = [asdict(getattr(fold, side)) for fold in folds]
        return Direction(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})

    return Metrics(mean("text_to_image"), mean("image_to_text"))


def shortlist_metrics(
    logits: NDArray[np.float32], vectors: NDArray[np.float32], image_of_caption: NDArray[np.int64], size: int
) -> Metrics:
    """Metrics with a shortlist: a correct candidate that is not on the shortlist counts as a miss.

    Args:
        logits: [I, T].
        vectors: Dot products of the global vectors [I, T].
        image_of_caption: The image of each caption [T].
        size: The number of candidates scored for each query, the nearest by global vector.
    """

    def shortened(axis: int) -> NDArray[np.float32]:
        keep = min(size, logits.shape[axis])
        nearest = np.argpartition(-vectors, keep - 1, axis=axis).take(np.arange(keep), axis=axis)
        short = np.full_like(logits, -np.inf)
        np.put_along_axis(short, nearest, np.take_along_axis(logits, nearest, axis), axis)
        return short

    images, texts = shortened(0), shortened(1)
    missed = images[image_of_caption, np.arange(len(image_of_caption))] == -np.inf
    of_images = np.where(missed, _missed_rank(logits.shape[0]), text_to_image_ranks(images, image_of_caption))
    missed = np.array([(row[image_of_caption == image] == -np.inf).all() for image, row in enumerate(texts)])
    of_texts = np.where(missed, _missed_rank(logits.shape[1]), image_to_text_ranks(texts, image_of_caption))
    return Metrics(direction(of_images), direction(of_texts))


def _missed_rank(candidates: int) -> int:
    """The rank of an item that is not on the shortlist: after all candidates, and a miss even at R@10."""
    return max(candidates, MAX_RECALL_K) + 1
