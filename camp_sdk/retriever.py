"""`Retriever`, the main class of the package: encodes, ranks, scores and explains, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import (
    MAX_THREADS,
    Advance,
    check_top_k,
    checked_count,
    distinct,
    is_several,
    silent,
)
from camp_sdk.encoding import checked_images, encode_batches
from camp_sdk.features import FeatureReader, Image, kind_of
from camp_sdk.gallery import Gallery, texts_of, texts_of_query
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.ranking import Ranked, Ranker, matches_of
from camp_sdk.results import Explanation, FloatArray, Ranking
from camp_sdk.runtime import scoring
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import image_columns
from camp_sdk.runtime.encode import FeatureEncoder, encode_texts
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS, EncodedImages, narrow, widen
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.open_engines import OpenEngines
from camp_sdk.runtime.selftest import choose_tested_backend
from camp_sdk.runtime.tokenizer import open_tokenizer

Corpus = Gallery | Iterable[Image]  # `rank` and `score_matrix` take either


class Retriever:
    """Ranks images by text and texts by image with the network of a bundle.

    Each graph of the bundle is opened when it is first needed. Use the retriever as a context manager, or call `close`,
    to free its engines. Any number of threads may use one retriever; close it when none of them is in a call.

    On a GPU, a gallery is uploaded when it is first ranked and stays there as long as it lives. The first retriever of
    a bundle on a GPU runs the bundle's golden self-test, and the result is remembered.

    Args:
        bundle: The path of a bundle's folder, or an open `Bundle`.
        backend: "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt-rtx" or
            "auto". "auto" takes TensorRT if `camp build` has built an engine that fits, then CUDA if it works, then
            OpenVINO if it is installed and the processor is an x86, and otherwise ONNX Runtime on the CPU. The
            attribute ``backend`` names the backend in use.
        precision: "float32", "float16" (not with OpenVINO) or "bfloat16" (only with OpenVINO, on processors that
            compute in it; the encoders stay in float32). The bundle must have been exported with graphs in that
            precision.
        threads: The number of threads on the CPU, also for decoding pictures, 1 to 1024; None uses every core.
        memory_budget_bytes: The most memory that a call may use in addition to its arguments, its result and the
            pictures being decoded. None uses as much as makes it fast.
        cuda_graphs: Whether TensorRT replays runs of the same shapes from a CUDA graph; other backends ignore it.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        BundleError: The bundle is broken, or has no graphs in this precision.
        BackendError: The backend is unknown, is not available, does not score in this precision, or failed the
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
        self._threads = checked_count("threads", threads, MAX_THREADS)
        self._memory_budget_bytes = checked_count("memory_budget_bytes", memory_budget_bytes)
        if not isinstance(bundle, (str, Path, Bundle)):
            raise InputError(f"bundle is {bundle!r}: expected the path of a folder")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.backend = choose_tested_backend(self.bundle, backend, precision)
        self.precision = precision
        self._engines = OpenEngines(self.bundle, self.backend, precision, self._threads, cuda_graphs)
        self._options = (backend, precision, threads, memory_budget_bytes, cuda_graphs)
        self._tokenizer = open_tokenizer(self.bundle)
        self._graphs = self.bundle.manifest.graphs_in(precision)

    def __reduce__(self) -> tuple[type[Retriever], tuple[Any, ...]]:
        return Retriever, (self.bundle, *self._options)  # opened anew in the other process

    def __repr__(self) -> str:
        return f"Retriever({str(self.bundle.folder)!r}, backend={self.backend!r})"

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free all engines. A later call opens the ones it needs again."""
        self._engines.close()

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

        Pictures are decoded in threads while the network runs. At most two batches of 32 images are taken from a
        generator ahead of the network; do not write to an image after the generator has yielded it.

        Args:
            images: Pictures, or region features from a detector. Pictures are an iterable of paths, open files, bytes
                of picture files, PIL images and uint8 arrays [H, W, 3], in any mixture. Features are one float array
                [I, R, D], which may be memory-mapped, or an iterable of float arrays [R, D]. All images of a gallery
                must have the same number of regions R; another gallery may have another. Further inputs of the image
                graph, such as boxes, are the last columns of the features, in alphabetical order.
            names: The name of each image, for `Match.document`. Default: the path of an image given as a path,
                otherwise none.
            on_progress: Receives the number of images in each batch that was encoded.
            precision: How the gallery stores its tensors: "float32", "float16" (half the bytes) or "int8" (0.28 of the
                bytes at 36 regions: one byte per number, and one scale per column of an image's tensors). Scores differ
                slightly with the last two. Default: "float16" for a retriever in float16, otherwise "float32".
            skip_broken: Leave out pictures that cannot be read, instead of raising. Each one is logged as a warning of
                the logger ``camp_sdk`` and listed in `Gallery.skipped`. Indices into the gallery, such as
                `Match.corpus_id`, then do not count them.
            max_megapixels: Pictures with more megapixels are not decoded; they count as pictures that cannot be read.

        Returns:
            The gallery, with the images in the order given.

        Raises:
            InputError: A picture cannot be read, features are NaN, infinite or of the wrong size, or there is no image
                to encode; the message names the image. Also for an argument of the wrong type or out of range.
        """
        precision = self._gallery_precision(precision)
        named, total = checked_images(images, names, max_megapixels)

        def open_encoder() -> FeatureEncoder:
            keep = partial(narrow, specs=self.bundle.manifest.image_tensors, precision=precision)
            return FeatureEncoder(self._engines["image"], image_columns(self._graphs["image"]), total, keep)

        with closing(self._reader(skip_broken, max_megapixels).batches(images, named)) as batches:
            found = encode_batches(batches, open_encoder, on_progress)
        given = len(found.encoded) + len(found.skipped)
        if named is not None and len(named) != given:
            raise InputError(f"{len(named)} names for {given} images: expected one each")
        return Gallery(found.encoded, found.documents, self.bundle, precision, found.skipped, found.files)

    def encode_texts(self, texts: Iterable[str]) -> Gallery:
        """Encode texts once, to rank them by image.

        Args:
            texts: At least one text. A text longer than the model's limit is cut; a word that the model does not know
                is read as ``<unk>``.

        Returns:
            The gallery, with the texts in the order given.

        Raises:
            InputError: A text is empty or has more than 10,000 characters (the message names it), or there are no
                texts.
        """
        listed = list(texts) if is_several(texts) and not isinstance(texts, str) else []
        if not listed:
            raise InputError(f"texts is {texts!r}: expected a list of at least one string")
        tokens = self._tokenizer.encode(listed)
        return Gallery(encode_texts(self._engines["text"], self.bundle, tokens), listed, self.bundle)

    def open_gallery(self, folder: str | Path) -> Gallery:
        """Open a gallery that `Gallery.save` wrote, memory-mapped.

        Args:
            folder: The folder of the gallery.

        Raises:
            BundleError: The folder is not a gallery, it was made by another bundle, or one of its files is broken.
        """
        return Gallery.open(folder, self.bundle)

    @overload
    def rank(
        self,
        query: list[str] | tuple[str, ...] | NDArray[np.str_],
        corpus: Corpus,
        top_k: int = 5,
        shortlist: int | None = None,
        on_progress: Advance = silent,
    ) -> list[Ranking]: ...

    @overload
    def rank(
        self, query: Image, corpus: Corpus, top_k: int = 5, shortlist: int | None = None, on_progress: Advance = silent
    ) -> Ranking: ...

    def rank(
        self, query: Any, corpus: Corpus, top_k: int = 5, shortlist: int | None = None, on_progress: Advance = silent
    ) -> Ranking | list[Ranking]:
        """Find the best matches of a query: images for a text, texts for an image.

        Args:
            query: A text, several texts (a list, a tuple or an array of strings), or an image as `encode_images` takes
                it. A `Path` is always an image; a string is a text, except that it is the path of an image if the
                corpus is a gallery of texts.
            corpus: A gallery, or what `encode_images` (for texts) or `encode_texts` (for an image) takes to make one.
            top_k: The most matches to return for each query, 1 or more; a smaller gallery is returned whole.
            shortlist: Score only this many items, those whose global vectors are nearest to the query's; at least
                ``top_k``. 0 scores every item. None takes the bundle's default: 200 where the vectors come from a
                pretrained network, and otherwise every item. `camp eval --shortlist` measures the loss in recall.
            on_progress: Receives the number of pairs in each block that was scored.

        Returns:
            The matches, best first; equal logits keep the gallery's order. For several texts, one such list per text.
            ``unknown_words`` of the list names the words of the query that the model does not know; ``shortlist`` is
            the number of items that were scored, if they were not all.

        Raises:
            InputError: `check_queries` refuses the query, ``top_k`` is below 1, ``shortlist`` is below ``top_k``, or
                a shortlist is asked of a bundle without global vectors.
        """
        shortlist = self.shortlist_for(top_k, shortlist)
        queries = texts_of_query(query, corpus)
        if queries is None:
            texts, image = self._as_gallery(corpus, "text"), self._as_gallery([query], "image")
            ranker = Ranker(self._scorer(), top_k, shortlist, on_progress)
            return self._ranking(ranker.texts(self._images_of(image), texts_of(texts)), texts, shortlist)
        self.check_queries(queries)
        images, tokens = self._as_gallery(corpus, "image"), self._tokenizer.encode(queries)
        encoded = encode_texts(self._engines["text"], self.bundle, tokens)
        ranker = Ranker(self._scorer(), top_k, shortlist, on_progress)
        found = enumerate(ranker.images(encoded, self._images_of(images)))
        rankings = [self._ranking(ranked, images, shortlist, tokens.unknown_words(text)) for text, ranked in found]
        return rankings[0] if isinstance(query, str) else rankings

    def check_queries(self, queries: Sequence[str]) -> None:
        """Check text queries before long work; `rank` makes the same check.

        Args:
            queries: The texts.

        Raises:
            InputError: A query is empty, has more than 10,000 characters, or has no word that distinguishes pictures:
                it has no known word, or beside unknown words only words of most captions ("a" in "a zebra").
        """
        if isinstance(queries, str):
            raise InputError("queries is a string: expected a list of strings")
        self._tokenizer.check_queries(queries)

    def check_counts(self, top_k: int, shortlist: int | None = None) -> None:
        """Check the sizes of a ranking before long work; `rank` makes the same check.

        Args:
            top_k: As `rank` takes it.
            shortlist: As `rank` takes it.

        Raises:
            InputError: ``top_k`` is below 1, ``shortlist`` is below ``top_k``, or this bundle has no global vectors to
                make a shortlist with.
        """
        check_top_k(top_k, shortlist)
        if shortlist and not self.bundle.manifest.has_vectors:
            raise InputError("`shortlist`: this bundle has no global vectors to make one with, leave it out")

    def shortlist_for(self, top_k: int, shortlist: int | None = None) -> int | None:
        """The number of items that `rank` scores for a query; None for every item.

        Args:
            top_k: As `rank` takes it.
            shortlist: As `rank` takes it.

        Raises:
            InputError: As `check_counts`.
        """
        self.check_counts(top_k, shortlist)
        if shortlist is None and (first := self.bundle.manifest.first_stage):
            return max(first.shortlist, top_k)
        return shortlist or None

    def score(self, pairs: Iterable[tuple[Image, str]]) -> FloatArray:
        """Score chosen pairs; each distinct image and text is encoded once.

        Args:
            pairs: P pairs (image, text), with images as `encode_images` takes them.

        Returns:
            Scores [P] float32, after the activation (0 to 1 for sigmoid models); higher is better.

        Raises:
            InputError: An element is not a pair, or its image or text cannot be encoded.
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
        """Score all images against all texts.

        Args:
            images: A gallery of I images, or what `encode_images` takes to make one.
            texts: A gallery of T texts, or a list of texts.
            logits: Return logits, the numbers before the activation, instead of scores.
            on_progress: Receives the number of pairs in each block that was scored.

        Returns:
            Scores or logits [I, T] float32; higher is better.

        Raises:
            InputError: An image or a text cannot be encoded, a gallery is of the other kind or of another bundle, or a
                logit is NaN or infinite.
        """
        image_gallery, text_gallery = self._as_gallery(images, "image"), self._as_gallery(texts, "text")
        matrix = self._logits(image_gallery, text_gallery, on_progress)
        scoring.check_finite(matrix)
        return matrix if logits else self._activate(matrix)

    def explain(self, text: str, image: Gallery | Image) -> Explanation:
        """Show what the network looked at when it scored one pair.

        Args:
            text: The text; at least one of its words must be known to the model.
            image: An image as `encode_images` takes it, or a gallery of one image, such as ``gallery.select([3])``.

        Returns:
            The score, with the attention weights and gates behind it.

        Raises:
            InputError: The text has no known word, or the gallery does not hold exactly one image.
            BundleError: The bundle was exported without an explainer.
        """
        self.check_queries([text])
        gallery = self._as_gallery(image if isinstance(image, Gallery) else [image], "image")
        if len(gallery) != 1:
            raise InputError(f"explain takes one image, this gallery has {len(gallery)}: use gallery.select([index])")
        texts = self.encode_texts([text])
        image = widen(self._images_of(gallery).take(slice(0, 1)))
        tensors = image | texts_of(texts).take(slice(0, 1))
        explainer = self._engines["explainer"]
        out = explainer.run(scoring.feeds_of(self._graphs["explainer"].inputs, tensors))
        score = float(self._activate(self._logits(gallery, texts))[0, 0])
        return Explanation.of(out, self._tokenizer.encode([text]).shown(0), score, self.bundle.manifest.pixels)

    def _gallery_precision(self, precision: str | None) -> str:
        precision = precision or ("float16" if self.precision == "float16" else "float32")
        if precision not in GALLERY_PRECISIONS:
            raise InputError(f"gallery precision {precision!r}: expected one of {', '.join(GALLERY_PRECISIONS)}")
        return precision

    def _reader(self, skip_broken: bool, max_megapixels: float) -> FeatureReader:
        manifest = self.bundle.manifest
        return FeatureReader(
            manifest.pixels,
            manifest.feature_width,
            lambda pixels: self._engines["vision"].run({"pixels": pixels})["features"],
            self._threads,
            skip_broken,
            max_megapixels,
        )

    def _scorer(self) -> scoring.PairScorer:
        return scoring.PairScorer(self._engines["scorer"], self._graphs["scorer"].inputs, self._memory_budget_bytes)

    def _activate(self, logits: FloatArray) -> FloatArray:
        scoring.check_finite(logits)
        return scoring.activate(logits, self.bundle.manifest.activation)

    def _logits(self, images: Gallery, texts: Gallery, on_progress: Advance = silent) -> FloatArray:
        encoded_images, encoded_texts = self._images_of(images), texts_of(texts)
        return scoring.logit_matrix(self._scorer(), encoded_images, encoded_texts, on_progress)

    def _ranking(
        self, ranked: Ranked, corpus: Gallery, shortlist: int | None, unknown_words: Sequence[str] = ()
    ) -> Ranking:
        scored = shortlist if shortlist and shortlist < len(corpus) else None
        return Ranking(matches_of(ranked, self._activate(ranked[1]), corpus.documents), unknown_words, scored)

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
