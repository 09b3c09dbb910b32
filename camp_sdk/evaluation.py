"""Measure the recall of a bundle, or of several as one, on a whole split, as `camp eval` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.agreement import Agreements, TwoPasses, agreement, mean_agreements
from camp_sdk.combination import Combination, combine
from camp_sdk.data import Split
from camp_sdk.ensembles import ScoreMean, check_takes, names_of
from camp_sdk.gallery import Gallery
from camp_sdk.metrics import (
    MAX_RECALL_K,
    Metrics,
    evaluate_matrix,
    mean_metrics,
    shortlist_metrics,
)
from camp_sdk.pairs import logit_matrix
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.tokenizer import open_tokenizer
from camp_sdk.search import first_pass_of

Matrix = NDArray[np.float32]
Progress = Callable[[str, int], None]
ENCODING, SCORING = "encoding images", "scoring pairs"
NETWORK, VECTORS, BOTH = "network", "vectors", "both"
MEMBER, SHORTLIST, BOTH_OF = "member ", "shortlist ", "both of "  # followed by the member's name, or the size
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
    """The metrics of a network, or of several networks' mean scores, on a split.

    Args:
        network: Metrics of the network, or of the mean scores.
        global_vectors: Metrics of its global vectors alone; None if it has no global vectors, and for several networks.
        images: The number of images.
        texts: The number of captions.
        folds: Every figure is the mean over this many equal parts of the images; 1 for the whole split at once.
        name: The protocol that the data were checked against, if any.
        shortlists: The network's metrics by size of shortlist: only that many candidates, the nearest by global vector,
            are scored for each query.
        members: The metrics of each network alone, by its name in the manifest, with the bundle's folder if two have
            the same name.
        combination: The network's logits plus the weighted dot products of the global vectors, with the weight that the
            manifest records, and their metrics; None for a bundle that records none.
        combined_shortlists: The metrics of these combined scores by size of shortlist.
        two_passes: How rankings in two passes agree with those in one, if that was asked for.
    """

    network: Metrics
    global_vectors: Metrics | None
    images: int
    texts: int
    folds: int
    name: str | None = None
    shortlists: dict[int, Metrics] = field(default_factory=dict)
    members: dict[str, Metrics] = field(default_factory=dict)
    combination: Combination | None = None
    combined_shortlists: dict[int, Metrics] = field(default_factory=dict)
    two_passes: Agreements | None = None

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
        each = {name: metrics.as_dict() for name, metrics in self.members.items()}
        found = rest | _by_size(self.shortlists) | ({"members": each} if len(each) > 1 else {})
        if both := self.combination:
            whole = {"weight": both.weight} | both.metrics.as_dict()
            found["combination"] = whole | _by_size(self.combined_shortlists)
        if self.two_passes:
            found["two_passes"] = self.two_passes.as_dict()
        return self.network.as_dict() | {"global_vectors": beside} | found


def _by_size(shortlists: dict[int, Metrics]) -> dict[str, Any]:
    short = {str(size): metrics.as_dict() for size, metrics in shortlists.items()}
    return {"shortlists": short} if short else {}


def evaluate(
    retriever: Retriever | Sequence[Retriever],
    split: Split,
    folds: int = 1,
    on_progress: Progress = lambda step, done: None,
    protocol: str | None = None,
    shortlists: Sequence[int] = (),
    two_passes: TwoPasses | None = None,
) -> Evaluation:
    """Score every caption against every image of a split and measure retrieval in both directions.

    Args:
        retriever: Scores the pairs. Of several retrievers, the mean of their scores is measured, and each one alone.
        split: The images and captions, as `load_split` reads them.
        folds: Divide the images into this many equal consecutive parts, measure each, and average.
        on_progress: Receives the name of a step ("encoding images" or "scoring pairs") and the number of images or
            pairs just done.
        protocol: "flickr30k" (1,000 images), "coco-5k" (5,000 images) or "coco-1k" (the same 5,000 in five folds). Sets
            ``folds``, and checks that the split holds that number of images with five captions each.
        shortlists: Also measure the network with shortlists of these sizes.
        two_passes: Also rank in two passes, and compare the ten best items; not with several retrievers.

    Raises:
        InputError: The images do not divide into the folds, the split does not fit the protocol, a bundle does not take
            the images of the split, a shortlist or two passes are asked of several retrievers, a shortlist of a bundle
            without global vectors, or the arguments of two passes do not fit.
        BackendError: The backend has no first pass in this precision.
        BundleError: The bundle has no graph for it.
    """
    retrievers = list(retriever) if isinstance(retriever, Sequence) else [retriever]
    _check(retrievers, split, shortlists, two_passes)
    if protocol:
        folds = protocol_folds(protocol, split)
    images = len(split.images)
    if folds < 1 or images % folds:
        raise InputError(f"`folds` is {folds}: {images} images do not divide into that many equal parts")
    size = images // folds
    parts = [_Fold(split, slice(k * size, (k + 1) * size), on_progress) for k in range(folds)]
    several = len(retrievers) > 1
    agreed: list[Agreements] = []
    measured = [
        _evaluate_mean(retrievers, fold)
        if several
        else _evaluate_one(retrievers[0], fold, shortlists, two_passes, agreed.append)
        for fold in parts
    ]
    means = {name: mean_metrics([fold[name] for fold in measured]) for name in measured[0]}
    short = {size: means[f"{SHORTLIST}{size}"] for size in shortlists}
    combined = {size: means[f"{BOTH_OF}{size}"] for size in shortlists if BOTH in means}
    weight = weight_of(retrievers[0])
    both = None if several or weight is None else Combination(weight, means[BOTH])
    names = names_of([own.bundle for own in retrievers])
    members = {name: means[f"{MEMBER}{name}" if several else NETWORK] for name in names}
    counts = (images, len(split.captions), folds)
    passes = mean_agreements(agreed) if agreed else None
    return Evaluation(means[NETWORK], means.get(VECTORS), *counts, protocol, short, members, both, combined, passes)


def weight_of(retriever: Retriever) -> float | None:
    """The weight with which a bundle's manifest combines the vectors' dot products with the logits, if it has any."""
    first = retriever.bundle.manifest.first_stage
    return first.weight if first else None


def _check(
    retrievers: Sequence[Retriever], split: Split, shortlists: Sequence[int], two_passes: TwoPasses | None
) -> None:
    if not retrievers:
        raise InputError("retriever is an empty sequence: expected at least one retriever")
    if len(retrievers) > 1 and shortlists:
        raise InputError(
            f"`shortlist`: {len(retrievers)} networks have no common global vectors to make one with; leave it out, or "
            "evaluate one bundle at a time"
        )
    if two_passes:
        if len(retrievers) > 1:
            raise InputError(
                f"two passes: the mean of {len(retrievers)} networks has no first pass; evaluate one bundle"
            )
        first_pass_of(retrievers[0].model, *two_passes, MAX_RECALL_K)
    for size in shortlists:
        retrievers[0].check_counts(1, size)
    for retriever in retrievers:
        check_takes(retriever, split)


def work_of(split: Split, folds: int = 1, retrievers: int = 1, passes: int = 1) -> dict[str, int]:
    """The amount of work in each step of `evaluate`, for progress bars: images to encode and pairs to score."""
    size = len(split.images) // max(folds, 1)
    owner = split.image_of_caption
    pairs = sum(size * int(((owner >= k * size) & (owner < (k + 1) * size)).sum()) for k in range(folds))
    return {ENCODING: retrievers * len(split.images), SCORING: retrievers * passes * pairs}


@dataclass(frozen=True)
class _Fold:
    """A part of the images of a split, with their captions.

    Args:
        split: The split.
        part: The images.
        on_progress: Receives progress, as in `evaluate`.
    """

    split: Split
    part: slice
    on_progress: Progress

    @cached_property
    def captions(self) -> NDArray[np.intp]:
        """The indices of the captions [T]."""
        owner = self.split.image_of_caption
        return np.flatnonzero((owner >= self.part.start) & (owner < self.part.stop))

    @property
    def owner(self) -> NDArray[np.int64]:
        """The image of each caption [T], counted from the first of the fold."""
        return np.asarray(self.split.image_of_caption[self.captions] - self.part.start)

    def encode(self, retriever: Retriever) -> tuple[Gallery, list[str]]:
        """The images, encoded by a retriever, and the captions."""
        numbers = range(self.part.start, self.part.stop)
        names = None if self.split.has_pictures else [f"image {k} of {self.split.name}" for k in numbers]
        images = retriever.encode_images(self.split.images[self.part], names, partial(self.on_progress, ENCODING))
        return images, [self.split.captions[index] for index in self.captions]

    def matrices(self, retriever: Retriever, with_vectors: bool = True) -> tuple[Matrix, Matrix | None]:
        """Encode the fold with a retriever, and score it as `similarity_matrices` does."""
        images, captions = self.encode(retriever)
        return similarity_matrices(retriever, images, captions, partial(self.on_progress, SCORING), with_vectors)


def _evaluate_one(
    retriever: Retriever,
    fold: _Fold,
    shortlists: Sequence[int],
    two_passes: TwoPasses | None,
    on_agreements: Callable[[Agreements], None],
) -> dict[str, Metrics]:
    images, captions = fold.encode(retriever)
    on_pairs = partial(fold.on_progress, SCORING)
    logits, vectors = similarity_matrices(retriever, images, captions, on_pairs)
    if two_passes and (first := first_pass_of(retriever.model, *two_passes, MAX_RECALL_K)):
        coarse, _ = similarity_matrices(retriever, images, captions, on_pairs, False, first.precision)
        sides = (agreement(coarse.T, logits.T, first), agreement(coarse, logits, first))
        on_agreements(Agreements(first.precision, *sides))
    matrices = [(NETWORK, SHORTLIST, logits)]
    if vectors is not None and (weight := weight_of(retriever)) is not None:
        matrices.append((BOTH, BOTH_OF, combine(logits, vectors, weight)))
    found = {name: evaluate_matrix(matrix, fold.owner) for name, _, matrix in matrices}
    if vectors is not None:
        found[VECTORS] = evaluate_matrix(vectors, fold.owner)
        for _, kind, matrix in matrices:
            found |= {f"{kind}{size}": shortlist_metrics(matrix, vectors, fold.owner, size) for size in shortlists}
    return found


def _evaluate_mean(retrievers: Sequence[Retriever], fold: _Fold) -> dict[str, Metrics]:
    """The metrics of each network and of their mean; only one network's images and logits are in memory at a time."""
    bundles = [retriever.bundle for retriever in retrievers]
    numbers = (fold.part.stop - fold.part.start, len(fold.captions))
    mean = ScoreMean([bundle.manifest.activation for bundle in bundles], numbers)
    found = {}
    for name, retriever in zip(names_of(bundles), retrievers, strict=True):
        logits, _ = fold.matrices(retriever, with_vectors=False)
        found[f"{MEMBER}{name}"] = evaluate_matrix(logits, fold.owner)
        mean.add(logits)
        del logits  # before the next network makes its own
    return found | {NETWORK: evaluate_matrix(mean.similarity(), fold.owner)}


def similarity_matrices(
    retriever: Retriever,
    images: Gallery,
    captions: list[str],
    on_progress: Callable[[int], None],
    with_vectors: bool = True,
    precision: str | None = None,
) -> tuple[Matrix, Matrix | None]:
    """Score all images against all captions.

    Captions are encoded 256 at a time, so that memory for their tensors does not grow with their number. Captions with
    the same tokens are scored once, because they must tie: in blocks of different shapes, rounding could separate them.

    Args:
        retriever: Scores the pairs.
        images: The images, encoded by this retriever.
        captions: The captions.
        on_progress: Receives the number of pairs in each block that was scored.
        with_vectors: Whether to compare the global vectors too.
        precision: The precision of the scorer; None for the retriever's.

    Returns:
        Logits [I, T], and the dot products of the global vectors [I, T], or None without them.
    """
    first, where = open_tokenizer(retriever.bundle).encode(captions).distinct()
    logits = np.empty((len(images), len(captions)), np.float32)
    vectors = np.empty_like(logits) if with_vectors and "image.global" in images.encoded.tensors else None
    for start in range(0, len(first), TEXTS_AT_ONCE):
        kept = first[start : start + TEXTS_AT_ONCE]
        columns = np.flatnonzero((where >= start) & (where < start + len(kept)))
        copies = where[columns] - start
        texts = retriever.encode_texts([captions[index] for index in kept])
        logits[:, columns] = logit_matrix(retriever.model, images, texts, on_progress, precision)[:, copies]
        on_progress(len(images) * (len(columns) - len(kept)))
        if vectors is not None:
            products = images.encoded.tensors["image.global"] @ texts.encoded.tensors["text.global"].T
            vectors[:, columns] = products[:, copies]
    return logits, vectors
