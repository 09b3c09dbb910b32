"""Measure the recall of a bundle on a whole split, as `camp eval` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.data import Split
from camp_sdk.gallery import Gallery
from camp_sdk.metrics import (
    MAX_RECALL_K,
    Metrics,
    direction,
    evaluate_matrix,
    image_to_text_ranks,
    mean_metrics,
    text_to_image_ranks,
)
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.tokenizer import open_tokenizer

Matrix = NDArray[np.float32]
Progress = Callable[[str, int], None]
ENCODING, SCORING = "encoding images", "scoring pairs"
NETWORK, VECTORS = "network", "vectors"
TEXTS_AT_ONCE = 256
CAPTIONS_PER_IMAGE = 5
PROTOCOLS = {"flickr30k": (1000, 1), "coco-5k": (5000, 1), "coco-1k": (5000, 5)}  # images, folds


def protocol_folds(protocol: str, split: Split) -> int:
    """The number of folds of a named protocol, after a check that the data fit it.

    Recall depends on the number of candidates, so figures measured on other data must not carry the protocol's name.

    Args:
        protocol: "flickr30k" (1,000 images), "coco-5k" (5,000 images) or "coco-1k" (the same 5,000 in five folds).
        split: The data.

    Raises:
        InputError: The name is unknown, or the split does not hold that number of images with five captions each.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"`protocol` {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    images, folds = PROTOCOLS[protocol]
    counts = np.bincount(split.image_of_caption, minlength=len(split.images))
    if len(split.images) != images or (counts != CAPTIONS_PER_IMAGE).any():
        raise InputError(
            f"{protocol} is measured on {images} images with {CAPTIONS_PER_IMAGE} captions each; split {split.name} "
            f"has {len(split.images)} images with {counts.min()} to {counts.max()} captions: leave out `protocol`"
        )
    return folds


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network on a split.

    Args:
        network: Metrics of the network.
        global_vectors: Metrics of its global vectors alone; None if it has no global vectors.
        images: The number of images.
        texts: The number of captions.
        folds: Every figure is the mean over this many equal parts of the images; 1 for the whole split at once.
        name: The protocol that the data were checked against, if any.
        shortlists: The network's metrics by size of shortlist: only that many candidates, the nearest by global vector,
            are scored for each query.
    """

    network: Metrics
    global_vectors: Metrics | None
    images: int
    texts: int
    folds: int
    name: str | None = None
    shortlists: dict[int, Metrics] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """How the metrics were measured, in words."""
        name = f"{self.name}, " if self.name else ""
        if self.folds == 1:
            return f"{name}{self.images} images x {self.texts} captions"
        return f"{name}mean over {self.folds} folds of {self.images // self.folds} images"

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as plain values, as `camp eval --json` prints them."""
        rest = {"protocol": self.protocol, "images": self.images, "texts": self.texts, "folds": self.folds}
        beside = self.global_vectors.as_dict() if self.global_vectors else None
        short = {str(size): metrics.as_dict() for size, metrics in self.shortlists.items()}
        return self.network.as_dict() | {"global_vectors": beside} | rest | ({"shortlists": short} if short else {})


def evaluate(
    retriever: Retriever,
    split: Split,
    folds: int = 1,
    on_progress: Progress = lambda step, done: None,
    protocol: str | None = None,
    shortlists: Sequence[int] = (),
) -> Evaluation:
    """Score every caption against every image of a split and measure retrieval in both directions.

    Args:
        retriever: Scores the pairs.
        split: The images and captions, as `load_split` reads them.
        folds: Divide the images into this many equal consecutive parts, measure each, and average.
        on_progress: Receives the name of a step ("encoding images" or "scoring pairs") and the number of images or
            pairs just done.
        protocol: "flickr30k" (1,000 images), "coco-5k" (5,000 images) or "coco-1k" (the same 5,000 in five folds). Sets
            ``folds``, and checks that the split holds that number of images with five captions each.
        shortlists: Also measure the network with shortlists of these sizes.

    Raises:
        InputError: The images do not divide into the folds, the split does not fit the protocol, or the bundle has no
            global vectors to make a shortlist with.
    """
    for size in shortlists:
        retriever.check_counts(1, size)
    if protocol:
        folds = protocol_folds(protocol, split)
    images = len(split.images)
    if folds < 1 or images % folds:
        raise InputError(f"`folds` is {folds}: {images} images do not divide into that many equal parts")
    size = images // folds
    parts = [slice(k * size, (k + 1) * size) for k in range(folds)]
    measured = [_evaluate_fold(retriever, split, part, on_progress, shortlists) for part in parts]
    means = {name: mean_metrics([fold[name] for fold in measured]) for name in measured[0]}
    network, beside = means.pop(NETWORK), means.pop(VECTORS, None)
    short = {int(name): metrics for name, metrics in means.items()}
    return Evaluation(network, beside, images, len(split.captions), folds, protocol, short)


def work_of(split: Split, folds: int = 1) -> dict[str, int]:
    """The amount of work in each step of `evaluate`, for progress bars: images to encode and pairs to score."""
    size = len(split.images) // max(folds, 1)
    owner = split.image_of_caption
    pairs = sum(size * int(((owner >= k * size) & (owner < (k + 1) * size)).sum()) for k in range(folds))
    return {ENCODING: len(split.images), SCORING: pairs}


def _evaluate_fold(
    retriever: Retriever, split: Split, part: slice, on_progress: Progress, shortlists: Sequence[int]
) -> dict[str, Metrics]:
    names = None if split.has_pictures else [f"image {k} of {split.name}" for k in range(part.start, part.stop)]
    images = retriever.encode_images(split.images[part], names, partial(on_progress, ENCODING))
    chosen = np.flatnonzero((split.image_of_caption >= part.start) & (split.image_of_caption < part.stop))
    captions = [split.captions[index] for index in chosen]
    owner = split.image_of_caption[chosen] - part.start
    logits, vectors = similarity_matrices(retriever, images, captions, partial(on_progress, SCORING))
    found = {NETWORK: evaluate_matrix(logits, owner)}
    if vectors is not None:
        found[VECTORS] = evaluate_matrix(vectors, owner)
        found |= {str(size): shortlist_metrics(logits, vectors, owner, size) for size in shortlists}
    return found


def shortlist_metrics(logits: Matrix, vectors: Matrix, image_of_caption: NDArray[np.int64], size: int) -> Metrics:
    """Metrics with a shortlist: a correct candidate that is not on the shortlist counts as a miss.

    Args:
        logits: [I, T], as `similarity_matrices` returns them.
        vectors: Dot products of the global vectors [I, T].
        image_of_caption: The image of each caption [T].
        size: The number of candidates scored for each query, the nearest by global vector.
    """

    def shortened(axis: int) -> Matrix:
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


def similarity_matrices(
    retriever: Retriever, images: Gallery, captions: list[str], on_progress: Callable[[int], None]
) -> tuple[Matrix, Matrix | None]:
    """Score all images against all captions.

    Captions are encoded 256 at a time, so that memory for their tensors does not grow with their number. Captions with
    the same tokens are scored once, because they must tie: in blocks of different shapes, rounding could separate them.

    Returns:
        Logits [I, T], and the dot products of the global vectors [I, T], or None if the bundle has no global vectors.
    """
    first, where = open_tokenizer(retriever.bundle).encode(captions).distinct()
    logits = np.empty((len(images), len(captions)), np.float32)
    vectors = np.empty_like(logits) if "image.global" in images.encoded.tensors else None
    for start in range(0, len(first), TEXTS_AT_ONCE):
        kept = first[start : start + TEXTS_AT_ONCE]
        columns = np.flatnonzero((where >= start) & (where < start + len(kept)))
        copies = where[columns] - start
        texts = retriever.encode_texts([captions[index] for index in kept])
        logits[:, columns] = retriever.score_matrix(images, texts, logits=True, on_progress=on_progress)[:, copies]
        on_progress(len(images) * (len(columns) - len(kept)))
        if vectors is not None:
            products = images.encoded.tensors["image.global"] @ texts.encoded.tensors["text.global"].T
            vectors[:, columns] = products[:, copies]
    return logits, vectors
