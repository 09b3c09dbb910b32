"""Scores of chosen pairs and orders of given documents, in the shapes that other servers have; global vectors."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.arguments import Advance
from camp_sdk.runtime.errors import InputError
from camp_sdk.server.bodies import described, from_json
from camp_sdk.server.openapi import answers
from camp_sdk.server.pictures import PICTURE_PAIRS, is_data_url
from camp_sdk.server.problems import Problem
from camp_sdk.server.requests import Document, EmbeddingsRequest, RerankRequest, ScoreRequest, TextsRequest
from camp_sdk.server.scoring import ImageOf, Numbers, pair_logits, scores_of, text_logits, vectors_of, words_of
from camp_sdk.server.service import Service
from camp_sdk.server.serving import Serving, answer, serving_of

router = APIRouter()
Content = tuple[bool, str]


@router.post("/v1/score", openapi_extra=described(ScoreRequest), **answers("ScoreAnswer"))
async def score(
    request: Request,
    asked: Annotated[ScoreRequest, Depends(from_json(ScoreRequest))],
    serving: Annotated[Serving, Depends(serving_of)],
) -> Response:
    """Score pairs of a text and an item, or a picture."""
    with serving.services.use() as service:
        _check_keys(service, [pair.key for pair in asked.pairs if pair.key is not None])
        given = [pair.picture for pair in asked.pairs if pair.picture is not None]
        pictures = dict(zip(given, await serving.pictures(request, service, given), strict=True))
        pairs = [
            (pair.text, ImageOf(pair.key, None if pair.picture is None else pictures[pair.picture]))
            for pair in asked.pairs
        ]
        most = serving.settings.max_megapixels

        def run(advance: Advance) -> list[float]:
            return scores_of(service, pair_logits(service, pairs, most, advance))

        cost = len(pairs) + PICTURE_PAIRS * len(pictures)
        return answer({"scores": await serving.dispatcher.compute(request, service, run, cost)})


@router.post("/v1/rerank", openapi_extra=described(RerankRequest), **answers("RerankAnswer"))
@router.post("/v2/rerank", openapi_extra=described(RerankRequest), **answers("RerankAnswer"))
async def rerank(
    request: Request,
    asked: Annotated[RerankRequest, Depends(from_json(RerankRequest))],
    serving: Annotated[Serving, Depends(serving_of)],
) -> Response:
    """Order documents, in the shape of Cohere and Jina."""
    documents = [_content(document) for document in asked.documents]
    with serving.services.use() as service:
        logits, words = await _logits(request, serving, service, _content(asked.query), documents)
        scores = scores_of(service, logits)
    results = [
        {"index": place, "relevance_score": scores[place]}
        | ({"document": _given_back(asked.documents[place])} if asked.return_documents else {})
        for place in _order(logits)[: asked.top_n]
    ]
    usage = {"total_tokens": words, "pairs": len(documents)}
    meta = {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}}
    about = {"id": uuid.uuid4().hex, "object": "list", "model": service.name}
    return answer({**about, "results": results, "usage": usage, "meta": meta})


@router.post("/rerank", openapi_extra=described(TextsRequest), **answers("TextRanks"))
async def rank_texts(
    request: Request,
    asked: Annotated[TextsRequest, Depends(from_json(TextsRequest))],
    serving: Annotated[Serving, Depends(serving_of)],
) -> Response:
    """Order documents, in the shape of text-embeddings-inference."""
    with serving.services.use() as service:
        documents = [_content(text) for text in asked.texts]
        logits, _ = await _logits(request, serving, service, _content(asked.query), documents)
        shown = logits.tolist() if asked.raw_scores else scores_of(service, logits)
    return answer(
        [
            {"index": place, "score": shown[place]} | ({"text": asked.texts[place]} if asked.return_text else {})
            for place in _order(logits)
        ]
    )


@router.post("/v1/embeddings", openapi_extra=described(EmbeddingsRequest), **answers("EmbeddingsAnswer"))
async def embeddings(
    request: Request,
    asked: Annotated[EmbeddingsRequest, Depends(from_json(EmbeddingsRequest))],
    serving: Annotated[Serving, Depends(serving_of)],
) -> Response:
    """Global vectors of texts and pictures, in the shape of OpenAI."""
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    images = [place for place, text in enumerate(inputs) if is_data_url(text)]
    words = [place for place, text in enumerate(inputs) if not is_data_url(text)]
    with serving.services.use() as service:
        if not service.has_vectors:
            raise Problem(409, "this bundle has no global vectors")
        pictures = await serving.pictures(request, service, [inputs[place] for place in images])
        texts, most = [inputs[place] for place in words], serving.settings.max_megapixels

        def run(advance: Advance) -> tuple[Numbers, int]:
            return vectors_of(service, texts, pictures, most, advance), words_of(service, texts)

        cost = len(texts) + PICTURE_PAIRS * len(pictures)
        vectors, used = await serving.dispatcher.compute(request, service, run, cost)
    if asked.dimensions not in (None, vectors.shape[1]):
        raise InputError(f"`dimensions` is {asked.dimensions}: expected {vectors.shape[1]}, or none")
    places = np.argsort([*words, *images])  # back in the order of the request
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vectors[place], asked.encoding_format)}
        for index, place in enumerate(places.tolist())
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    return answer({"object": "list", "data": data, "model": service.name, "vectors": "global", "usage": usage})


async def _logits(
    request: Request, serving: Serving, service: Service, query: Content, documents: Sequence[Content]
) -> tuple[Numbers, int]:
    """Logits of documents, and the number of words that were read: texts for a picture, or keys and pictures."""
    given = [text for is_picture, text in (query, *documents) if is_picture]
    pictures = dict(zip(given, await serving.pictures(request, service, given), strict=True))
    most, texts = serving.settings.max_megapixels, [text for _, text in documents]
    if query[0]:
        if len(given) > 1:
            raise InputError("the query is a picture, and so are documents: expected texts")

        def run(advance: Advance) -> tuple[Numbers, int]:
            return text_logits(service, pictures[query[1]], texts, most, advance), words_of(service, texts)
    else:
        images = [ImageOf(None, pictures[text]) if is_picture else ImageOf(text) for is_picture, text in documents]
        _check_keys(service, [image.key for image in images if image.key is not None])

        def run(advance: Advance) -> tuple[Numbers, int]:
            pairs = [(query[1], image) for image in images]
            return pair_logits(service, pairs, most, advance, check=True), words_of(service, [query[1]])

    cost = len(documents) + PICTURE_PAIRS * len(pictures)
    return await serving.dispatcher.compute(request, service, run, cost)


def _check_keys(service: Service, keys: Sequence[str]) -> None:
    if keys and service.corpus.kind == "text":
        raise Problem(409, "the items are texts, which a text cannot be scored with: expected pictures")


def _content(document: str | Document) -> Content:
    """Whether a document is a picture, and its text, its key or its picture."""
    if isinstance(document, str):
        return is_data_url(document), document
    return (False, document.text) if document.text is not None else (True, document.image or "")


def _given_back(document: str | Document) -> dict[str, str]:
    if isinstance(document, Document):
        return document.model_dump(exclude_none=True)
    return {"image": document} if is_data_url(document) else {"text": document}


def _order(logits: Numbers) -> list[int]:
    """Places of the logits, the largest first; equal ones keep their order."""
    found: list[int] = np.argsort(-logits, kind="stable").tolist()
    return found


def _encoded(vector: Numbers, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    found: list[float] = vector.tolist()
    return found
