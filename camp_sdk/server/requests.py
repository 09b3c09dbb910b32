"""The fields of requests, which pydantic reads from JSON strictly: "5" is no number, unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_TOP_K = 1000
MAX_OFFSET = 100_000
MAX_PAIRS = 1000
MAX_DOCUMENTS = 1000
MAX_INPUTS = 256
MAX_ITEMS = 256

Text = Annotated[str, Field(description="A text of at most 10,000 characters.")]
PictureText = Annotated[str, Field(description="A picture: a data: URL, or base64.")]
Key = Annotated[str, Field(description="The key of an item.", min_length=1, max_length=10_000)]
Fields = dict[str, Any]


class Strict(BaseModel):
    """A request of this server's own shape."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Lenient(BaseModel):
    """A request in a shape of others, whose clients send more fields than are known here."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _exactly_one(given: Strict, *names: str) -> None:
    if sum(getattr(given, name) is not None for name in names) != 1:
        raise ValueError(f"expected exactly one of {' and '.join(names)}")


class SearchRequest(Strict):
    """What `/v1/search` takes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "a red apple on a table", "top_k": 5, "where": {"year": {"gte": 2020}}}]
        }
    )

    query: Text | None = None
    picture: PictureText | None = None
    top_k: int = Field(5, ge=1, le=MAX_TOP_K)
    offset: int = Field(0, ge=0, le=MAX_OFFSET)
    where: Fields | None = None
    shortlist: int | None = Field(None, ge=0)
    explain: bool = False

    @model_validator(mode="after")
    def _one_query(self) -> SearchRequest:
        _exactly_one(self, "query", "picture")
        return self


class ExplainRequest(Strict):
    """What `/v1/explain` takes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red apple", "key": "2024/apple.jpg"}]})

    query: Text
    key: Key | None = None
    picture: PictureText | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> ExplainRequest:
        _exactly_one(self, "key", "picture")
        return self


class Pair(Strict):
    """A text, and an item or a picture."""

    text: Text
    key: Key | None = None
    picture: PictureText | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> Pair:
        _exactly_one(self, "key", "picture")
        return self


class ScoreRequest(Strict):
    """What `/v1/score` takes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pairs": [{"text": "a red apple", "key": "2024/apple.jpg"}]}]}
    )

    pairs: list[Pair] = Field(min_length=1, max_length=MAX_PAIRS)


class Document(Lenient):
    """A document to rank: a text, a key, or a picture."""

    text: str | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Document:
        if (self.text is None) == (self.image is None):
            raise ValueError("expected exactly one of text and image")
        return self


class RerankRequest(Lenient):
    """What `/v1/rerank` takes: the shape of Cohere and Jina."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "camp", "query": "a red apple", "documents": ["2024/apple.jpg", "2024/dog.jpg"]}]
        }
    )

    query: str | Document
    documents: list[str | Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = False


class TextsRequest(Lenient):
    """What `/rerank` takes: the shape of text-embeddings-inference."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "a red apple", "texts": ["2024/apple.jpg", "2024/dog.jpg"]}]}
    )

    query: str
    texts: list[str] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    raw_scores: bool = False
    return_text: bool = False


class EmbeddingsRequest(Lenient):
    """What `/v1/embeddings` takes: the shape of OpenAI."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "camp", "input": ["a red apple"]}]})

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: str = Field("float", pattern="^(float|base64)$")
    dimensions: int | None = Field(None, ge=1)


class NewItem(Strict):
    """What `PUT /v1/items/{key}` takes in JSON."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"picture": "data:image/jpeg;base64,...", "metadata": {"year": 2024}}]}
    )

    picture: PictureText | None = None
    text: Text | None = None
    metadata: Fields | None = None

    @model_validator(mode="after")
    def _one_content(self) -> NewItem:
        _exactly_one(self, "picture", "text")
        return self


class KeyedItem(NewItem):
    """One of the items that `POST /v1/items` takes."""

    key: Key | None = None


class NewItems(Strict):
    """What `POST /v1/items` takes in JSON."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"key": "apple.jpg", "picture": "data:image/jpeg;base64,..."}]}]}
    )

    items: list[KeyedItem] = Field(min_length=1, max_length=MAX_ITEMS)


class Changes(Strict):
    """What `PATCH /v1/items/{key}` takes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"year": 2025, "album": None}}]})

    metadata: Fields
