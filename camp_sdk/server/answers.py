"""The fields of answers, for /openapi.json; the tests check that answers have exactly these."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel


class Answer(BaseModel):
    """An answer, or a part of one."""

    model_config = ConfigDict(extra="forbid")


class ExplainAnswer(Answer):
    """What `/v1/explain` answers."""

    words: list[str]
    unknown_words: list[str]
    score: float
    attention: list[list[float]]
    to_regions: list[list[float]]
    region_gates: list[float] | None
    word_gates: list[float] | None
    grid: tuple[int, int] | None
    size: tuple[int, int] | None
    boxes: list[tuple[float, float, float, float]] | None


class ItemAnswer(Answer):
    """An item."""

    key: str
    document: str | None
    metadata: dict[str, Any] | None
    thumbnail: str | None
    picture: str | None


class MatchAnswer(ItemAnswer):
    """A match of a search."""

    rank: int
    score: float
    logit: float
    corpus_id: int
    explanation: ExplainAnswer | None = None


class SearchAnswer(Answer):
    """What `/v1/search` answers."""

    matches: list[MatchAnswer]
    unknown_words: list[str]
    shortlist: int | None
    partial: list[str] = []


class ScoreAnswer(Answer):
    """What `/v1/score` answers."""

    scores: list[float]


class RankedDocument(Answer):
    """A document, as `/v1/rerank` gives it back."""

    text: str | None = None
    image: str | None = None


class RerankResult(Answer):
    """A document's place in the order of `/v1/rerank`."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(Answer):
    """What `/v1/rerank` answers."""

    id: str
    object: str
    model: str
    results: list[RerankResult]
    usage: dict[str, int]
    meta: dict[str, Any]


class TextRank(Answer):
    """A document's place in the order of `/rerank`."""

    index: int
    score: float
    text: str | None = None


class TextRanks(RootModel[list[TextRank]]):
    """What `/rerank` answers."""


class Embedding(Answer):
    """A global vector; in base64, the bytes of float32 numbers, little-endian."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(Answer):
    """What `/v1/embeddings` answers."""

    object: str
    data: list[Embedding]
    model: str
    vectors: str
    usage: dict[str, int]


class CorpusAnswer(Answer):
    """What is searched."""

    kind: str
    store: str
    items: int
    writable: bool
    shortlist: int | None


class ModelAnswer(Answer):
    """The network."""

    id: str
    object: str
    created: int
    owned_by: str
    variant: str
    fingerprint: str
    backend: str
    precision: str
    activation: str
    max_words: int
    reads_pictures: bool
    global_vectors: bool
    explains: bool
    corpus: CorpusAnswer


class ModelsAnswer(Answer):
    """What `/v1/models` answers."""

    object: str
    data: list[ModelAnswer]


class ItemsAnswer(Answer):
    """What `/v1/items` answers."""

    items: list[ItemAnswer]
    offset: int
    next_offset: int | None


class SkippedAnswer(Answer):
    """A picture that was left out."""

    key: str
    reason: str


class AddedAnswer(Answer):
    """What adding several items answers."""

    added: int
    replaced: int
    unchanged: int
    skipped: list[SkippedAnswer]


class ReloadAnswer(Answer):
    """What `/v1/reload` answers."""

    id: str
    items: int
    seconds: float


class StatusAnswer(Answer):
    """What `/health` and `/ready` answer."""

    status: str


class FieldError(Answer):
    """A field of a request that cannot be used."""

    field: str
    detail: str


class ProblemAnswer(Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] | None = None
