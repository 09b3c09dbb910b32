"""One call of `Retriever.rank`: from a query and a corpus of any kind to matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import Advance, check_offset, check_top_k, is_whole
from camp_sdk.first_pass import AUTO, FirstPass, Ranked
from camp_sdk.gallery import Gallery, texts_of_query
from camp_sdk.index.living import Index
from camp_sdk.model import Model
from camp_sdk.ranking import Candidates, Described, Ranker, matches_of, most_similar
from camp_sdk.results import FloatArray, Ranking
from camp_sdk.runtime.backends import fast_first_pass
from camp_sdk.runtime.encode import encode_texts
from camp_sdk.runtime.encoded import EncodedImages, EncodedTexts, global_vectors
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.lowered import FIRST_PASSES
from camp_sdk.runtime.manifest import EXPORT_AGAIN
from camp_sdk.runtime.messages import brief

NO_VECTORS = "this bundle has no global vectors to make one with, leave it out"


@dataclass(frozen=True)
class Asked:
    """What `Retriever.rank` was asked for: its arguments, and the first pass that they mean."""

    top_k: int
    shortlist: int | None
    offset: int
    where: Mapping[str, Any] | None
    by: str | None
    on_progress: Advance
    precision: str | None = None
    rescore: int | str | None = None
    first_pass: FirstPass | None = None

    @property
    def depth(self) -> int:
        """How many of the best items are found: those left out and those returned."""
        return int(self.offset) + int(self.top_k)

    def ranker(self, model: Model) -> Ranker:
        """Ranks items as asked."""
        return Ranker(model.scorer(), self.depth, self.shortlist, self.on_progress, self.first_pass)


def rank(model: Model, query: Any, corpus: Any, asked: Asked) -> Ranking | list[Ranking]:
    """Rank a corpus by a query.

    Args:
        model: The network.
        query: As `Retriever.rank` takes it.
        corpus: As `Retriever.rank` takes it.
        asked: Its other arguments.

    Raises:
        InputError: As `Retriever.rank` raises it.
        BundleError: As `Retriever.rank` raises it.
    """
    _check(model, corpus, asked)
    if asked.by is not None:
        return _similar(model, query, corpus, asked)
    first = first_pass_of(model, asked.precision, asked.rescore, asked.depth)
    asked = replace(asked, shortlist=shortlist_of(model, asked.depth, asked.shortlist), first_pass=first)
    texts = texts_of_query(query, corpus.kind if isinstance(corpus, (Gallery, Index)) else None)
    if texts is None:
        return _texts_for_image(model, query, corpus, asked)
    rankings = _images_for_texts(model, texts, corpus, asked)
    return rankings[0] if isinstance(query, str) else rankings


def check_shortlist(model: Model, top_k: Any, shortlist: Any) -> None:
    """Check the sizes of a ranking; see `Retriever.check_counts`."""
    check_top_k(top_k, shortlist)
    if shortlist and not model.bundle.manifest.has_vectors:
        raise InputError(f"`shortlist`: {NO_VECTORS}")


def shortlist_of(model: Model, depth: int, shortlist: int | None) -> int | None:
    """The number of items to score; None for all.

    Args:
        model: The network, whose bundle may have a default.
        depth: How many of the best items are wanted.
        shortlist: The number asked for: None takes the default, 0 all items.
    """
    if shortlist is None and (first := model.bundle.manifest.first_stage):
        return max(first.shortlist, depth)
    return shortlist or None


def first_pass_of(model: Model, precision: str | None, rescore: int | str | None, depth: int) -> FirstPass | None:
    """The first pass of a ranking; None for one that scores all items as the retriever does.

    Args:
        model: The network.
        precision: As `Retriever.rank` takes it.
        rescore: As `Retriever.rank` takes it.
        depth: How many of the best items are wanted.

    Raises:
        InputError: The arguments do not fit together.
        BackendError: The backend does not score in this precision.
        BundleError: The bundle has no graphs in this precision, or does not say how far their logits are off.
    """
    count = _checked_rescore(rescore, depth)
    if precision is None:
        if rescore is not None:
            raise InputError("`rescore` is for rankings in two passes: expected a `precision` of the first pass too")
        return None
    if precision == AUTO:
        precision = fast_first_pass(model.bundle, model.engines.backend)
        if precision is None or precision == model.precision:
            return None
    if precision not in FIRST_PASSES or precision == model.precision:
        named = ", ".join(name for name in (AUTO, *FIRST_PASSES) if name != model.precision)
        raise InputError(f"`precision` {brief(precision)}: expected one of {named} for the first pass, or None")
    scorer = model.scorer(precision)
    error = model.bundle.manifest.precisions[precision].logit_error
    if error is None and count is None:
        raise BundleError(
            f"this bundle does not record the error of its {precision} logits: give `rescore` a number, or "
            f"{EXPORT_AGAIN}"
        )
    return FirstPass(precision, scorer, error or 0.0, count)


def _checked_rescore(rescore: Any, depth: int) -> int | None:
    """The number of items to rescore; None if the error decides."""
    if rescore is None or rescore == AUTO:
        return None
    if not is_whole(rescore) or int(rescore) < depth:
        raise InputError(f"`rescore` is {brief(rescore)}: expected 'auto', or at least the {depth} items wanted")
    return int(rescore)


def _check(model: Model, corpus: Any, asked: Asked) -> None:
    check_shortlist(model, asked.top_k, asked.shortlist)
    check_offset(asked.offset)
    if asked.by is not None and (asked.precision or asked.rescore) is not None:
        raise InputError(f"by='{asked.by}' does not score pairs: leave out `precision` and `rescore`")
    index = isinstance(corpus, Index)
    if asked.where is not None and not index:
        raise InputError("`where` filters an index, which has metadata: a gallery has none, use gallery.select")
    if asked.by is None:
        return
    if asked.by != "image" or not index or corpus.kind != "image":
        raise InputError(f"by is {asked.by!r}: expected 'image' with an index of images, or None")
    if not model.bundle.manifest.has_vectors:
        raise InputError(f"by='image' compares global vectors: {NO_VECTORS}")


def _images_for_texts(model: Model, texts: Sequence[str], corpus: Any, asked: Asked) -> list[Ranking]:
    model.tokenizer.check_queries(texts)
    with _candidates(model, corpus, "image", asked.where) as images:
        tokens = model.tokenizer.encode(texts)
        unknown = [tokens.unknown_words(text) for text in range(len(texts))]
        if not isinstance(images.encoded, EncodedImages) or not len(images.encoded):
            return [Ranking((), words) for words in unknown]
        encoded = encode_texts(model.engines["text"], model.bundle, tokens)
        found = asked.ranker(model).images(encoded, images.encoded)
        return [
            _ranking(ranked, model.activate(ranked[1]), images, asked, words)
            for ranked, words in zip(found, unknown, strict=True)
        ]


def _texts_for_image(model: Model, query: Any, corpus: Any, asked: Asked) -> Ranking:
    with _candidates(model, corpus, "text", asked.where) as texts:
        image = model.images_of(model.image_gallery([query]))
        if not isinstance(texts.encoded, EncodedTexts) or not len(texts.encoded):
            return Ranking()
        ranked = asked.ranker(model).texts(image, texts.encoded)
        return _ranking(ranked, model.activate(ranked[1]), texts, asked)


def _similar(model: Model, query: Any, index: Index, asked: Asked) -> Ranking:
    image = model.image_gallery([query]).encoded
    with index.candidates(model, asked.where) as images:
        if not len(images.encoded):
            return Ranking()
        ranked = most_similar(global_vectors(image.tensors), images.encoded, asked.depth)
        return _ranking(ranked, ranked[1], images, asked)


@contextmanager
def _candidates(model: Model, corpus: Any, kind: str, where: Mapping[str, Any] | None) -> Iterator[Candidates]:
    if isinstance(corpus, Index):
        with corpus.candidates(model, where) as found:
            yield found
        return
    gallery = model.as_gallery(corpus, kind)
    encoded = model.images_of(gallery) if kind == "image" else gallery.encoded

    def describe(numbers: NDArray[np.intp]) -> list[Described]:
        return [Described(number, gallery.documents[number]) for number in numbers.tolist()]

    yield Candidates(encoded, describe)


def _ranking(
    ranked: Ranked, scores: FloatArray, candidates: Candidates, asked: Asked, unknown_words: Sequence[str] = ()
) -> Ranking:
    numbers, logits = ranked[0][asked.offset :], ranked[1][asked.offset :]
    matches = matches_of((numbers, logits), scores[asked.offset :], candidates.describe(numbers), asked.offset + 1)
    scored = asked.shortlist if asked.shortlist and asked.shortlist < len(candidates.encoded) else None
    return Ranking(matches, unknown_words, scored)
