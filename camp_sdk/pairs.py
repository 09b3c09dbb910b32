"""Scores of pairs, and what the network looked at: the calls of `Retriever` that do not rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from camp_sdk.arguments import Advance, distinct
from camp_sdk.features import kind_of
from camp_sdk.gallery import Gallery, texts_of
from camp_sdk.model import Model
from camp_sdk.results import Explanation, FloatArray
from camp_sdk.runtime import scoring
from camp_sdk.runtime.encoded import widen
from camp_sdk.runtime.errors import InputError


def score_pairs(model: Model, pairs: Sequence[tuple[Any, str]]) -> FloatArray:
    """Score chosen pairs; see `Retriever.score`.

    Args:
        model: The network.
        pairs: P pairs (image, text).

    Returns:
        Scores [P] float32.
    """
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"pair {index} is {kind_of(pair)}: expected (image, text)")
    if not pairs:
        return np.empty(0, np.float32)
    images, image_ids = distinct([image for image, _ in pairs])
    texts, text_ids = distinct([text for _, text in pairs])
    gallery = model.image_gallery(images)
    encoded_texts = texts_of(model.text_gallery(texts))
    where = np.stack([image_ids, text_ids], axis=1)  # [P, 2]
    return model.activate(scoring.pair_logits(model.scorer(), model.images_of(gallery), encoded_texts, where))


def logit_matrix(
    model: Model, images: Any, texts: Any, on_progress: Advance, precision: str | None = None
) -> FloatArray:
    """Score all images against all texts; see `Retriever.score_matrix`.

    Args:
        model: The network.
        images: A gallery of I images, or what makes one.
        texts: A gallery of T texts, or a list of texts.
        on_progress: Receives the number of pairs in each block that was scored.
        precision: The precision of the scorer; None for that of the other graphs.

    Returns:
        Logits [I, T] float32, all finite.
    """
    image_gallery, text_gallery = model.as_gallery(images, "image"), model.as_gallery(texts, "text")
    encoded_images, encoded_texts = model.images_of(image_gallery), texts_of(text_gallery)
    matrix = scoring.logit_matrix(model.scorer(precision), encoded_images, encoded_texts, on_progress)
    scoring.check_finite(matrix)
    return matrix


def explain(model: Model, text: str, image: Any) -> Explanation:
    """Show what the network looked at when it scored one pair; see `Retriever.explain`.

    Args:
        model: The network.
        text: The text.
        image: An image, or a gallery of one image.
    """
    model.tokenizer.check_queries([text])
    gallery = model.as_gallery(image if isinstance(image, Gallery) else [image], "image")
    if len(gallery) != 1:
        raise InputError(f"explain takes one image, this gallery has {len(gallery)}: use gallery.select([index])")
    texts = model.text_gallery([text])
    tensors = widen(model.images_of(gallery).take(slice(0, 1))) | texts_of(texts).take(slice(0, 1))
    out = model.engines["explainer"].run(scoring.feeds_of(model.graphs["explainer"].inputs, tensors))
    score = float(model.activate(logit_matrix(model, gallery, texts, lambda done: None))[0, 0])
    return Explanation.of(out, model.tokenizer.encode([text]).shown(0), score, model.bundle.manifest.pixels)
