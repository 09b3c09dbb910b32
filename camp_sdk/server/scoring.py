"""The work of chosen pairs: texts with items of the corpus, or with pictures of the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance
from camp_sdk.gallery import Gallery
from camp_sdk.runtime.encoded import global_vectors
from camp_sdk.server.pictures import encoded
from camp_sdk.server.service import Service

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class ImageOf:
    """An image of a pair.

    Args:
        key: The key of an item, or
        picture: the bytes of a picture.
    """

    key: str | None = None
    picture: bytes | None = None


def pair_logits(
    service: Service,
    pairs: Sequence[tuple[str, ImageOf]],
    max_megapixels: float,
    advance: Advance,
    check: bool = False,
) -> Numbers:
    """Logits of pairs; each distinct text and image is encoded once.

    Args:
        service: The service.
        pairs: P pairs (text, image).
        max_megapixels: Larger pictures are not decoded.
        advance: Receives the number of pairs in each block that was scored, and what pictures count for.
        check: Whether the texts are queries, of which the network must know words.

    Returns:
        Logits [P], float32.

    Raises:
        InputError: A text or a picture cannot be encoded.
        Problem: There is no item with one of the keys.
    """
    texts = list(dict.fromkeys(text for text, _ in pairs))
    if check:
        service.retriever.check_queries(texts)
    encoded_texts = service.retriever.encode_texts(texts)
    numbers_of_texts = {text: number for number, text in enumerate(texts)}
    text_numbers = np.array([numbers_of_texts[text] for text, _ in pairs])
    logits = np.empty(len(pairs), np.float32)
    for images, places, numbers in _sources(service, pairs, max_megapixels, advance):
        for text in np.unique(text_numbers[places]).tolist():
            chosen = text_numbers[places] == text
            gallery = images.select(numbers[chosen])
            one = encoded_texts.select([text])
            matrix = service.retriever.score_matrix(gallery, one, True, advance)  # [I, 1]
            logits[places[chosen]] = matrix[:, 0]
    return logits


def _sources(
    service: Service, pairs: Sequence[tuple[str, ImageOf]], max_megapixels: float, advance: Advance
) -> list[tuple[Gallery, NDArray[np.intp], NDArray[np.intp]]]:
    """The images of items and those of the request: a gallery, the places of its pairs, and the image of each."""
    keys = _distinct([image.key for _, image in pairs])
    pictures = _distinct([image.picture for _, image in pairs])
    found = []
    if keys:
        found.append((service.corpus.select(list(keys)), *_numbered(keys, [image.key for _, image in pairs])))
    if pictures:
        gallery = encoded(service, list(pictures), max_megapixels, advance)
        found.append((gallery, *_numbered(pictures, [image.picture for _, image in pairs])))
    return found


def _distinct(values: Sequence[Any]) -> dict[Any, int]:
    kept = dict.fromkeys(value for value in values if value is not None)
    return {value: number for number, value in enumerate(kept)}


def _numbered(known: dict[Any, int], values: Sequence[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    places = [place for place, value in enumerate(values) if value is not None]
    return np.array(places, np.intp), np.array([known[values[place]] for place in places], np.intp)


def text_logits(
    service: Service, picture: bytes, texts: Sequence[str], max_megapixels: float, advance: Advance
) -> Numbers:
    """Logits of texts with one picture.

    Returns:
        Logits [T], float32.
    """
    image = encoded(service, [picture], max_megapixels, advance)
    matrix = service.retriever.score_matrix(image, service.retriever.encode_texts(texts), True, advance)  # [1, T]
    return matrix.reshape(-1)


def scores_of(service: Service, logits: Numbers) -> list[float]:
    """Scores of logits."""
    found: list[float] = service.retriever.model.activate(logits).tolist()
    return found


def vectors_of(
    service: Service, texts: Sequence[str], pictures: Sequence[bytes], max_megapixels: float, advance: Advance
) -> Numbers:
    """Global vectors of texts and then of pictures.

    Returns:
        Vectors [T + I, d], float32.
    """
    parts = []
    if texts:
        parts.append(global_vectors(service.retriever.encode_texts(texts).encoded.tensors))
    if pictures:
        parts.append(global_vectors(encoded(service, pictures, max_megapixels, advance).encoded.tensors))
    return np.concatenate(parts)


def words_of(service: Service, texts: Sequence[str]) -> int:
    """The number of words, or word pieces, of texts, markers included."""
    return int(service.retriever.model.tokenizer.encode(texts).lengths.sum()) if texts else 0
