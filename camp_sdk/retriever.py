"""`Retriever`: what an app calls. Encode once, rank, score, explain; numpy and one inference engine, no PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence, Sized
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from camp_sdk.arguments import (
    MOST_THREADS,
    Advance,
    check_top_k,
    checked_count,
    checked_names,
    distinct,
    is_several,
    silent,
)
from camp_sdk.features import FeatureReader, Image, kind_of, nothing_left
from camp_sdk.gallery import Gallery, is_text_query, texts_of
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.ranking import Ranked, Ranker, matches_of
from camp_sdk.results import Explanation, FloatArray, Match, Skipped
from camp_sdk.runtime import scoring
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encode import FeatureEncoder, encode_texts
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS, EncodedImages, narrow, widen
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.selftest import choose_tested_backend
from camp_sdk.runtime.tokenizer import Tokenizer

Corpus = Gallery | Iterable[Image]  # what `rank` and `score_matrix` take


class Retriever:
    """Ranks images by text and texts by image with the network of a bundle.

    backend: "auto" (TensorRT where `camp build` has built an engine that fits, then CUDA where it works, otherwise OpenVINO
    on an x86 processor if it is installed, otherwise ONNX Runtime), "onnxruntime", "onnxruntime-cuda",
    "onnxruntime-tensorrt", "openvino", "tensorrt" or "tensorrt-rtx"; `backend` tells which is in use. On a GPU, a gallery is
    uploaded when it is first ranked and stays there as long as it lives. precision: "float32",
    "float16" (all but OpenVINO) or "bfloat16" (OpenVINO, on processors that compute in it; encoders stay float32), where the
    bundle was exported with its graphs.
    threads: for the CPU, and to decode pictures; None takes every core. memory_budget_bytes: what a call may hold beside
    what it is given and returns, and beside pictures being decoded; None is as much as is fast. cuda_graphs: TensorRT
    replays runs of the same shapes from a CUDA graph; other backends do not. Graphs open when first needed. Use as a context
    manager, or call `close`, to free the engines. On a GPU, the first retriever of a bundle runs its golden self-test; the
    result is remembered. Raises BundleError if the bundle is broken, BackendError if the backend is not there or failed the
    self-test.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        backend: str = "auto",
        precision: str = "float32",
        threads: int | None = None,
        memory_budget_bytes: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self._threads = checked_count("threads", threads, MOST_THREADS)
        self._memory_budget_bytes = checked_count("memory_budget_bytes", memory_budget_bytes)
        if not isinstance(bundle, (str, Path, Bundle)):
            raise InputError(f"bundle is {bundle!r}: expected the path of a folder")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.backend = choose_tested_backend(self.bundle, backend, precision)
        self.precision = precision
        self._cuda_graphs = cuda_graphs
        self._engines: dict[str, Engine] = {}
        self._opening = threading.Lock()  # threads that use a graph first open it once
        self._tokenizer = Tokenizer(self.bundle.path("tokenizer.json"))
        self._graphs = self.bundle.manifest.graphs_in(precision)

    def __repr__(self) -> str:
        return f"Retriever({str(self.bundle.folder)!r}, backend={self.backend!r})"

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free every engine; the next call opens what it needs again."""
        with self._opening:
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()

    def encode_images(
        self,
        images: Iterable[Image],
        names: Iterable[str | Path] | None = None,
        on_progress: Advance = silent,
        precision: str | None = None,
        skip_broken: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> Gallery:
        """Encode images once, for any number of rankings.

        images: features as one array [I, R, D] (memory-mapped is fine), or an iterable of features [R, D]; R may differ
        between galleries, not inside one. Or an iterable of pictures: paths, bytes of picture files, PIL images and uint8
        arrays [H, W, 3], mixed as they come, decoded in `threads` while the network runs. Of a generator, two batches of 32
        are taken ahead at most; what it gives must not be written to afterwards. names: what each is called, its path by
        default. on_progress hears the number of images of each batch done. precision: what the gallery keeps, "float32",
        "float16" (half the bytes) or "int8" (0.28 at 36 regions: a byte a number, and a scale for each column of an image's
        tensors); scores then differ a little.
        skip_broken: leave out pictures that cannot be read, warn of each by the logger `camp_sdk`, and list them in
        `Gallery.skipped`; indices in the gallery, `Match.corpus_id` too, then count what it holds. max_megapixels: pictures
        of more are not decoded, and count as broken. Raises InputError, naming the image, for a picture that cannot be read,
        NaN, wrong sizes, or if there is no image at all, or none that can be read.
        """
        precision = self._gallery_precision(precision)
        if isinstance(images, (str, Path, bytes)) or not is_several(images):
            found = "bytes" if isinstance(images, bytes) else repr(images)
            raise InputError(f"images is {found}: expected a list of images, or one array [I, R, D]")
        if not isinstance(max_megapixels, (int, float, np.number)) or not max_megapixels > 0:
            raise InputError(f"max_megapixels is {max_megapixels!r}: expected a number above 0")
        named = checked_names(names)
        total = len(images) if isinstance(images, Sized) else None
        if named is not None and total is not None and len(named) != total:
            raise InputError(f"{len(named)} names for {total} images: expected one each")
        documents: list[str | None] = []
        skipped: list[Skipped] = []
        encoder: FeatureEncoder | None = None
        with closing(self._reader(skip_broken, max_megapixels).batches(images, named)) as batches:
            for batch in batches:
                documents += batch.documents
                skipped += batch.skipped
                if batch.features is not None:
                    encoder = encoder or FeatureEncoder(
                        self._engine("image"), total, partial(narrow, precision=precision)
                    )
                    encoder.add(batch.features)
                on_progress(len(batch))
        if encoder is None:
            raise InputError(nothing_left(skipped))
        encoded = encoder.encoded()
        given = len(encoded) + len(skipped)
        if named is not None and len(named) != given:
            raise InputError(f"{len(named)} names for {given} images: expected one each")
        return Gallery(encoded, documents, self.bundle, precision, skipped)

    def encode_texts(self, texts: Iterable[str]) -> Gallery:
        """Encode texts once, to rank them by image. Captions over the model's limit are cut; unknown words are `<unk>`.

        Raises InputError, naming the text, if one is empty, or if there is none at all.
        """
        listed = list(texts) if is_several(texts) and not isinstance(texts, str) else []
        if not listed:
            raise InputError(f"texts is {texts!r}: expected a list of at least one string")
        tokens = self._tokenizer.encode(listed)
        return Gallery(encode_texts(self._engine("text"), self.bundle, tokens), listed, self.bundle)

    def open_gallery(self, folder: str | Path) -> Gallery:
        """A gallery saved by `Gallery.save`, memory-mapped. Raises BundleError if another bundle made it."""
        return Gallery.open(folder, self.bundle)

    @overload
    def rank(
        self,
        query: list[str],
        corpus: Corpus,
        top_k: int = 5,
        shortlist: int | None = None,
        on_progress: Advance = silent,
    ) -> list[list[Match]]: ...

    @overload
    def rank(
        self, query: Image, corpus: Corpus, top_k: int = 5, shortlist: int | None = None, on_progress: Advance = silent
    ) -> list[Match]: ...

    def rank(
        self, query: Any, corpus: Corpus, top_k: int = 5, shortlist: int | None = None, on_progress: Advance = silent
    ) -> list[Match] | list[list[Match]]:
        """The best matches of a query, best first; equal logits keep the gallery's order.

        A text (or a list of texts, for a list of rankings) ranks images; an image ranks texts. The corpus is a gallery,
        or what one is made of: pictures for a text query, a list of texts for an image query. A path as a query is an
        image when the corpus is a gallery of texts, or when it is a `Path`. top_k above the size of the gallery returns
        all of it. shortlist: score only so many items, those whose global vectors are nearest to the query's, and rank
        those; None scores every item (`camp eval --shortlist` shows what a shortlist loses). on_progress hears the number of
        pairs of each block scored. Raises InputError for an empty query, one without a single known word, top_k below 1, or a
        shortlist shorter than top_k or without global vectors.
        """
        self.check_counts(top_k, shortlist)
        if not is_text_query(query, corpus):
            texts, image = self._as_gallery(corpus, "text"), self._as_gallery([query], "image")
            ranker = Ranker(self._scorer(), top_k, shortlist, on_progress)
            return self._matches(ranker.texts(self._images_of(image), texts_of(texts)), texts)
        queries = [query] if isinstance(query, str) else list(query)
        self.check_queries(queries)
        images = self._as_gallery(corpus, "image")
        encoded = texts_of(self.encode_texts(queries))
        ranker = Ranker(self._scorer(), top_k, shortlist, on_progress)
        rankings = [self._matches(found, images) for found in ranker.images(encoded, self._images_of(images))]
        return rankings[0] if isinstance(query, str) else rankings

    def check_queries(self, queries: Sequence[str]) -> None:
        """Raise InputError for a query that is empty, or has no word the model knows; `rank` does this by itself."""
        self._tokenizer.check_queries(queries)

    def check_counts(self, top_k: int, shortlist: int | None = None) -> None:
        """Raise InputError for a top_k or a shortlist that `rank` cannot use with this bundle; `rank` does this by itself."""
        check_top_k(top_k, shortlist)
        if shortlist is not None and all(spec.name != "image.global" for spec in self.bundle.manifest.image_tensors):
            raise InputError("this bundle has no global vectors to make a shortlist with: rank without one")

    def score(self, pairs: Iterable[tuple[Image, str]]) -> FloatArray:
        """Scores [P] float32 of chosen (image, text) pairs; each distinct image and text is encoded once.

        Raises InputError for anything but pairs, and as `encode_images` and `encode_texts` do.
        """
        pairs = list(pairs)
        for index, pair in enumerate(pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InputError(f"pair {index} is {kind_of(pair)}: expected (image, text)")
        if not pairs:
            return np.empty(0, np.float32)
        images, image_ids = distinct([image for image, _ in pairs])
        texts, text_ids = distinct([text for _, text in pairs])
        gallery = self.encode_images(images)
        encoded_texts = texts_of(self.encode_texts(texts))
        where = np.stack([image_ids, text_ids], axis=1)
        scorer = self._scorer()
        return self._activate(scoring.pair_logits(scorer, self._images_of(gallery), encoded_texts, where))

    def score_matrix(
        self,
        images: Corpus,
        texts: Gallery | Sequence[str],
        logits: bool = False,
        on_progress: Advance = silent,
    ) -> FloatArray:
        """Scores [I, T] float32 of all images against all texts; with ``logits``, before the activation.

        on_progress hears the number of pairs of each block scored.
        """
        image_gallery, text_gallery = self._as_gallery(images, "image"), self._as_gallery(texts, "text")
        matrix = self._logits(image_gallery, text_gallery, on_progress)
        return matrix if logits else self._activate(matrix)

    def explain(self, text: str, image: Gallery | Image) -> Explanation:
        """What the network looked at for one pair; the image may be a gallery of one, as ``gallery.select([3])``.

        Raises BundleError if the bundle was exported without an explainer.
        """
        self.check_queries([text])
        gallery = self._as_gallery(image if isinstance(image, Gallery) else [image], "image")
        if len(gallery) != 1:
            raise InputError(f"explain takes one image, this gallery has {len(gallery)}: use gallery.select([index])")
        texts = self.encode_texts([text])
        image = widen(self._images_of(gallery).take(slice(0, 1)))
        tensors = image | texts_of(texts).take(slice(0, 1))
        explainer = self._engine("explainer")
        out = explainer.run(scoring.feeds_of(self._graphs["explainer"].inputs, tensors))
        pixels = self.bundle.manifest.pixels
        regions = out["attention.to_words"].shape[2]
        return Explanation(
            words=self._tokenizer.encode([text]).words[0],
            score=float(self._activate(self._logits(gallery, texts))[0, 0]),
            to_words=out["attention.to_words"][0, 0],
            to_regions=out["attention.to_regions"][0, 0],
            region_gates=out["gates.regions"][0, 0] if "gates.regions" in out else None,
            word_gates=out["gates.words"][0, 0] if "gates.words" in out else None,
            grid=pixels.grid if pixels and pixels.grid[0] * pixels.grid[1] == regions else None,
            pixels=pixels,
        )

    def _engine(self, graph: str) -> Engine:
        with self._opening:
            if graph not in self._engines:
                self._engines[graph] = open_engine(
                    self.bundle, graph, self.backend, self._threads, self.precision, self._cuda_graphs
                )
            return self._engines[graph]

    def _gallery_precision(self, precision: str | None) -> str:
        precision = precision or ("float16" if self.precision == "float16" else "float32")
        if precision not in GALLERY_PRECISIONS:
            raise InputError(f"precision {precision!r}: expected one of {', '.join(GALLERY_PRECISIONS)}")
        return precision

    def _reader(self, skip_broken: bool, max_megapixels: float) -> FeatureReader:
        manifest = self.bundle.manifest
        return FeatureReader(
            manifest.pixels,
            manifest.feature_width,
            lambda pixels: self._engine("vision").run({"pixels": pixels})["features"],
            self._threads,
            skip_broken,
            max_megapixels,
        )

    def _scorer(self) -> scoring.PairScorer:
        return scoring.PairScorer(self._engine("scorer"), self._graphs["scorer"].inputs, self._memory_budget_bytes)

    def _activate(self, logits: FloatArray) -> FloatArray:
        if not np.isfinite(logits).all():
            raise InputError(f"a logit is not a number: the images are too large for the precision {self.precision}")
        return scoring.activate(logits, self.bundle.manifest.activation)

    def _logits(self, images: Gallery, texts: Gallery, on_progress: Advance = silent) -> FloatArray:
        encoded_images, encoded_texts = self._images_of(images), texts_of(texts)
        return scoring.logit_matrix(self._scorer(), encoded_images, encoded_texts, on_progress)

    def _matches(self, ranked: Ranked, corpus: Gallery) -> list[Match]:
        return matches_of(ranked, self._activate(ranked[1]), corpus.documents)

    def _as_gallery(self, corpus: Any, kind: str) -> Gallery:
        if not isinstance(corpus, Gallery):
            return self.encode_images(corpus) if kind == "image" else self.encode_texts(corpus)
        if corpus.kind != kind:
            raise InputError(f"this is a gallery of {corpus.kind}s: expected {kind}s here")
        if corpus.fingerprint != self.bundle.fingerprint:
            raise InputError("this gallery was made by another bundle: encode it again with this retriever")
        return corpus

    def _images_of(self, gallery: Gallery) -> EncodedImages:
        if not isinstance(gallery.encoded, EncodedImages):
            raise InputError("this is a gallery of texts: expected images here")
        return gallery.encoded.halves if gallery.precision == self.precision == "float16" else gallery.encoded
