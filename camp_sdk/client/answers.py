"""From answers to results. Answers may come from anywhere: every field is checked before it is used."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

import numpy as np

from camp_sdk.client.wire import JSON, Reply
from camp_sdk.index.items import IndexItem
from camp_sdk.results import Explanation, FloatArray, Match, Ranking
from camp_sdk.runtime.errors import CampError
from camp_sdk.runtime.messages import brief

MAX_WHOLE = 1 << 63
V = TypeVar("V")
EXPECTED = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class ModelInfo:
    """What a server says of its network, and of what it searches.

    Args:
        id: The name of the network in answers.
        variant: Its variant.
        fingerprint: A hash of the content of the bundle.
        backend: The inference engine in use.
        precision: The precision in use.
        activation: What turns logits into scores.
        max_words: The most words of a text, markers included; longer ones are cut.
        reads_pictures: Whether it takes pictures.
        global_vectors: Whether it has shortlists, global vectors and pictures like a picture.
        explains: Whether `Client.explain` works.
        kind: What is searched: "image" or "text".
        store: Where that is: "index" or "gallery".
        items: The number of items.
        writable: Whether items can be changed, with a key for writing.
        shortlist: The default of ``shortlist``; None for all items.
    """

    id: str
    variant: str
    fingerprint: str
    backend: str
    precision: str
    activation: str
    max_words: int
    reads_pictures: bool
    global_vectors: bool
    explains: bool
    kind: str
    store: str
    items: int
    writable: bool
    shortlist: int | None


@dataclass(frozen=True)
class Reloaded:
    """What a server serves after it reloaded.

    Args:
        id: The name of the network.
        items: The number of items that are searched.
        seconds: How long it took.
    """

    id: str
    items: int
    seconds: float


@dataclass(frozen=True)
class Page:
    """A page of items.

    Args:
        items: The items.
        following: The offset of the next page; None if there is none.
    """

    items: tuple[IndexItem, ...]
    following: int | None


class Fields:
    """The fields of an object in an answer.

    Args:
        value: The object.
        name: Its name in messages.
    """

    def __init__(self, value: Any, name: str) -> None:
        self._name = name
        self._values: dict[str, Any] = value if isinstance(value, dict) else _unexpected(name, value, EXPECTED[dict])

    def text(self, name: str) -> str:
        """A text."""
        return self._of(str, name)

    def flag(self, name: str) -> bool:
        """A truth value."""
        return self._of(bool, name)

    def whole(self, name: str) -> int:
        """A whole number."""
        found = self._of(int, name)
        if not -MAX_WHOLE <= found < MAX_WHOLE:
            _unexpected(self._path(name), found, "a number of 64 bits")
        return found

    def number(self, name: str) -> float:
        """A finite number."""
        found = self._values.get(name)
        if isinstance(found, float) and math.isfinite(found):
            return found
        return float(self.whole(name))

    def object(self, name: str) -> dict[str, Any]:
        """An object."""
        return self._of(dict, name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self._of(list, name)
        for one in found:
            if not isinstance(one, str):
                _unexpected(self._path(name), one, "a list of texts")
        return tuple(found)

    def each(self, name: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(one, f"{self._path(name)}[{k}]") for k, one in enumerate(self._of(list, name))]

    def has(self, name: str) -> bool:
        """Whether there is a value, which is not null."""
        return self._values.get(name) is not None

    def array(self, name: str, *shape: int) -> FloatArray:
        """An array of finite numbers, in nested lists.

        Args:
            name: The name of the field.
            *shape: Its shape; -1 for any size.
        """
        listed = self._of(list, name)
        found = _numbers(listed)
        sizes = zip(found.shape, shape, strict=False)
        fits = found.ndim == len(shape) and all(wanted in (-1, size) for size, wanted in sizes)
        if not fits or not np.isfinite(found).all():
            _unexpected(self._path(name), listed, f"finite numbers of the shape {list(shape)}")
        return found

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name

    def _of(self, kind: type[V], name: str) -> V:
        found = self._values.get(name)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            _unexpected(self._path(name), found, EXPECTED[kind])
        return found


def _numbers(listed: list[Any]) -> FloatArray:
    """Nested lists as an array; something that is not finite if they are not numbers, or not all of a size."""
    try:
        found = np.asarray(listed)
    except (ValueError, OverflowError, RecursionError):
        return np.full((), np.nan, np.float32)
    if found.dtype.kind not in "fiu":  # texts and truth values would become numbers
        return np.full((), np.nan, np.float32)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        return found.astype(np.float32)


def _unexpected(name: str, value: Any, expected: str) -> NoReturn:
    raise CampError(
        f"the answer has {name or 'a body'} = {brief(value)}, as camp serve does not answer: expected {expected}"
    )


def json_of(reply: Reply) -> Fields:
    """The object that an answer holds.

    Raises:
        CampError: It is not a JSON object.
    """
    if reply.content_type != JSON:
        _unexpected("the type", reply.content_type, JSON)
    try:
        found = json.loads(reply.body, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # also of text that is not UTF-8, and of numbers of thousands of digits
        _unexpected("", reply.body, "JSON")
    return Fields(found, "")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def ranking(reply: Reply) -> Ranking:
    """The matches of a search."""
    answer = json_of(reply)
    shortlist = answer.whole("shortlist") if answer.has("shortlist") else None
    missing = answer.texts("partial") if answer.has("partial") else ()
    return Ranking([_match(one) for one in answer.each("matches")], answer.texts("unknown_words"), shortlist, missing)


def _match(fields: Fields) -> Match:
    return Match(
        corpus_id=fields.whole("corpus_id"),
        score=fields.number("score"),
        logit=fields.number("logit"),
        rank=fields.whole("rank"),
        document=fields.text("document") if fields.has("document") else None,
        key=fields.text("key"),
        metadata=fields.object("metadata") if fields.has("metadata") else None,
    )


def explanation(reply: Reply) -> Explanation:
    """What the network looked at."""
    answer = json_of(reply)
    words = answer.texts("words")
    attention = answer.array("attention", len(words), -1)  # [N, R]
    regions = attention.shape[1]
    grid = answer.array("grid", 2).astype(int).tolist() if answer.has("grid") else None
    if grid is not None and (min(grid) < 1 or grid[0] * grid[1] != regions):
        _unexpected("grid", grid, f"rows and columns of {regions} regions")
    return Explanation(
        words=words,
        score=answer.number("score"),
        to_words=attention.T,
        to_regions=answer.array("to_regions", regions, len(words)),
        region_gates=answer.array("region_gates", regions) if answer.has("region_gates") else None,
        word_gates=answer.array("word_gates", len(words)) if answer.has("word_gates") else None,
        grid=None if grid is None else (grid[0], grid[1]),
    )


def scores(reply: Reply, count: int) -> FloatArray:
    """The scores of pairs, [P]."""
    return json_of(reply).array("scores", count)


def vectors(reply: Reply, count: int) -> FloatArray:
    """Global vectors, [count, d]."""
    listed = json_of(reply).each("data")
    found = [_vector(one.text("embedding")) for one in listed]
    if len(found) != count or len({len(one) for one in found}) != 1:
        _unexpected("data", [len(one) for one in found], f"{count} vectors of one size")
    return np.stack(found)


def _vector(text: str) -> FloatArray:
    try:
        found = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError):  # the latter for text that is not ASCII, or does not hold whole numbers
        _unexpected("embedding", text, "float32 numbers in base64")
    if not len(found) or not np.isfinite(found).all():
        _unexpected("embedding", text, "finite numbers")
    return found.astype(np.float32)


def model_info(reply: Reply) -> ModelInfo:
    """The description of the network."""
    models = json_of(reply).each("data")
    if not models:
        _unexpected("data", [], "a model")
    model = models[0]
    corpus = Fields(model.object("corpus"), "corpus")
    whole = {"max_words": model, "items": corpus}
    flags = {"reads_pictures": model, "global_vectors": model, "explains": model, "writable": corpus}
    texts = {field.name for field in fields(ModelInfo)} - whole.keys() - flags.keys() - {"shortlist"}
    found: dict[str, Any] = {name: of.whole(name) for name, of in whole.items()}
    found |= {name: of.flag(name) for name, of in flags.items()}
    found |= {name: (corpus if name in ("kind", "store") else model).text(name) for name in texts}
    return ModelInfo(**found, shortlist=corpus.whole("shortlist") if corpus.has("shortlist") else None)


def reloaded(reply: Reply) -> Reloaded:
    """What is served after reloading."""
    answer = json_of(reply)
    return Reloaded(answer.text("id"), answer.whole("items"), answer.number("seconds"))


def item(reply: Reply) -> IndexItem:
    """An item."""
    return _item(json_of(reply))


def _item(fields: Fields) -> IndexItem:
    document = fields.text("document") if fields.has("document") else None
    return IndexItem(fields.text("key"), document, fields.object("metadata"))


def page(reply: Reply, offset: int) -> Page:
    """A page of items that begins at an offset."""
    answer = json_of(reply)
    items = tuple(_item(one) for one in answer.each("items"))
    if not answer.has("next_offset"):
        return Page(items, None)
    following = answer.whole("next_offset")
    if not items or following != offset + len(items):  # or a client could ask for the same page for ever
        _unexpected("next_offset", following, f"that after {len(items)} items")
    return Page(items, following)


def added(reply: Reply) -> tuple[tuple[int, int, int], dict[str, str]]:
    """How many items were added, replaced and unchanged, and why some were left out, by their keys."""
    answer = json_of(reply)
    skipped = {one.text("key"): one.text("reason") for one in answer.each("skipped")}
    return (answer.whole("added"), answer.whole("replaced"), answer.whole("unchanged")), skipped


def jpeg(reply: Reply) -> bytes:
    """A JPEG."""
    if reply.content_type != "image/jpeg" or reply.body[:3] != b"\xff\xd8\xff":
        _unexpected("the type", reply.content_type, "a JPEG")
    return reply.body
