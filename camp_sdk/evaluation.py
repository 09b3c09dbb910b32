"""Score a whole split with a bundle and measure it: what `camp eval` does."""

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
    MOST_RECALLED,
    Metrics,
    direction,
    evaluate_matrix,
    image_to_text_ranks,
    mean_metrics,
    text_to_image_ranks,
)
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.tokenizer import Tokenizer

Matrix = NDArray[np.float32]
Progress = Callable[[str, int], None]
ENCODING, SCORING = "encoding images", "scoring pairs"
NETWORK, VECTORS = "network", "vectors"
TEXTS_AT_ONCE = 256
CAPTIONS_PER_IMAGE = 5
PROTOCOLS = {"flickr30k": (1000, 1), "coco-5k": (5000, 1), "coco-1k": (5000, 5)}  # images, folds


def protocol_folds(protocol: str, split: Split) -> int:
    """The folds of a named protocol: flickr30k (1,000 images), coco-5k (5,000), coco-1k (the same in five folds).

    Raises InputError for an unknown name, or data that are not that many images with five captions each: recalls
    depend on how many candidates there are, so that figures of other data must not bear the name.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    images, folds = PROTOCOLS[protocol]
    counts = np.bincount(split.image_of_caption, minlength=len(split.images))
    if len(split.images) != images or (counts != CAPTIONS_PER_IMAGE).any():
        raise InputError(
            f"{protocol} is measured on {images} images with {CAPTIONS_PER_IMAGE} captions each; split {split.name} has "
            f"{len(split.images)} images with {counts.min()} to {counts.max()} captions: leave out the protocol"
        )
    return folds


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the network and of its global vectors alone, on ``images`` images and ``texts`` captions.

    folds: 1 for the whole split at once, otherwise every figure is the mean over that many equal parts. name: the
    protocol the data were checked against, if any. shortlists: the network's metrics if only so many candidates, the
    nearest by global vector, are scored.
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
        """How it was measured, in words, for the output."""
        name = f"{self.name}, " if self.name else ""
        if self.folds == 1:
            return f"{name}{self.images} images x {self.texts} captions"
        return f"{name}mean over {self.folds} folds of {self.images // self.folds} images"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `camp eval --json` prints them."""
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
    """Rank every caption against every image of a split, both ways, and measure.

    folds: split the images into that many equal runs and average. on_progress hears a step of `work_of` and how much of
    it was just done. protocol: flickr30k, coco-5k or coco-1k, which brings its own folds and checks the data
    (`protocol_folds`). shortlists: also measure what ranking a shortlist of each of these sizes gives. Raises InputError if
    the images do not divide into the folds, the data are not the protocol's, or there are no vectors for a shortlist.
    """
    for size in shortlists:
        retriever.check_counts(1, size)
    if protocol:
        folds = protocol_folds(protocol, split)
    images = len(split.images)
    if folds < 1 or images % folds:
        raise InputError(f"{images} images do not divide into {folds} equal folds")
    size = images // folds
    parts = [slice(k * size, (k + 1) * size) for k in range(folds)]
    measured = [_evaluate_fold(retriever, split, part, on_progress, shortlists) for part in parts]
    means = {name: mean_metrics([fold[name] for fold in measured]) for name in measured[0]}
    network, beside = means.pop(NETWORK), means.pop(VECTORS, None)
    short = {int(name): metrics for name, metrics in means.items()}
    return Evaluation(network, beside, images, len(split.captions), folds, protocol, short)


def work_of(split: Split, folds: int = 1) -> dict[str, int]:
    """How much of each step `evaluate` will do, for progress bars: images to encode, pairs to score."""
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
    """Metrics if each query scores only the ``size`` candidates nearest by global vector; a right one left out is a miss.

    logits and vectors [I, T], as `similarity_matrices` gives them.
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
    """The rank of what a shortlist left out: behind all candidates, and no hit however few they are."""
    return max(candidates, MOST_RECALLED) + 1


def similarity_matrices(
    retriever: Retriever, images: Gallery, captions: list[str], on_progress: Callable[[int], None]
) -> tuple[Matrix, Matrix | None]:
    """Logits [I, T], and the dot products of the global vectors [I, T] if the bundle has them.

    Captions are encoded a few at a time, so that memory does not grow with their number; those that are the same to the
    network are scored once, for in blocks of another shape they would differ by rounding, where they must tie.
    """
    first, where = Tokenizer(retriever.bundle.path("tokenizer.json")).encode(captions).distinct()
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
