"""`Retriever`, the main class of the package: encodes, ranks, scores and explains, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from camp_sdk.arguments import MAX_THREADS, Advance, checked_count, silent
from camp_sdk.features import Image
from camp_sdk.gallery import Gallery
from camp_sdk.index.living import Index
from camp_sdk.index.opening import open_index
from camp_sdk.model import Model, gallery_of
from camp_sdk.pairs import explain, logit_matrix, score_pairs
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.results import Explanation, FloatArray, Ranking
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.open_engines import OpenEngines
from camp_sdk.runtime.selftest import choose_tested_backend
from camp_sdk.runtime.tokenizer import open_tokenizer
from camp_sdk.search import Asked, check_shortlist, rank

Corpus = Gallery | Iterable[Image]  # `score_matrix` takes either, and `rank` an index besides


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
        budget = self._memory_budget_bytes
        self.model = Model(self.bundle, self._engines, self._tokenizer, precision, self._threads, budget)

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
        precision = self.model.stored_precision(precision)
        reader = self.model.reader(skip_broken, max_megapixels)
        return gallery_of(
            self.model.encode_images(images, names, reader, precision, on_progress), self.bundle, precision
        )

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
        return self.model.text_gallery(texts)

    def open_gallery(self, folder: str | Path) -> Gallery:
        """Open a gallery that `Gallery.save` wrote, memory-mapped.

        Args:
            folder: The folder of the gallery.

        Raises:
            BundleError: The folder is not a gallery, it was made by another bundle, or one of its files is broken.
        """
        return Gallery.open(folder, self.bundle)

    def open_index(
        self,
        path: str | Path,
        create: bool = False,
        precision: str | None = None,
        kind: str | None = None,
        timeout_s: float = 30.0,
        ann: bool = False,
    ) -> Index:
        """Open an index: pictures, or texts, that are added, changed and removed while they are searched.

        Args:
            path: The file; others lie beside it, with its name and an ending.
            create: Make a new index if there is none.
            precision: How a new index stores its tensors: "float32", "float16" (the default) or "int8"; an index of
                texts always takes "float32". None, for an index that exists: whatever it has.
            kind: What a new index holds: "image" (the default) or "text". None likewise.
            timeout_s: How long a change waits for another writer to finish, in seconds.
            ann: Choose shortlists with the approximate search that `Index.build_ann` made, for where memory is short.

        Raises:
            InputError: An argument has the wrong type, or is not what the index has.
            BundleError: There is no index, or no approximate search; another bundle made it, or a file is broken.
            MissingExtraError: ``ann`` is True, and faiss is not installed.
            OSError: The file cannot be read or created.
        """
        return open_index(self.model, path, create, (precision, kind), timeout_s, ann)

    @overload
    def rank(
        self,
        query: list[str] | tuple[str, ...] | NDArray[np.str_],
        corpus: Corpus | Index,
        top_k: int = 5,
        shortlist: int | None = None,
        on_progress: Advance = silent,
        *,
        offset: int = 0,
        where: Mapping[str, Any] | None = None,
        by: str | None = None,
        precision: str | None = None,
        rescore: int | str | None = None,
    ) -> list[Ranking]: ...

    @overload
    def rank(
        self,
        query: Image,
        corpus: Corpus | Index,
        top_k: int = 5,
        shortlist: int | None = None,
        on_progress: Advance = silent,
        *,
        offset: int = 0,
        where: Mapping[str, Any] | None = None,
        by: str | None = None,
        precision: str | None = None,
        rescore: int | str | None = None,
    ) -> Ranking: ...

    def rank(
        self,
        query: Any,
        corpus: Corpus | Index,
        top_k: int = 5,
        shortlist: int | None = None,
        on_progress: Advance = silent,
        *,
        offset: int = 0,
        where: Mapping[str, Any] | None = None,
        by: str | None = None,
        precision: str | None = None,
        rescore: int | str | None = None,
    ) -> Ranking | list[Ranking]:
        """Find the best matches of a query: images for a text, texts for an image.

        Args:
            query: A text, several texts (a list, a tuple or an array of strings), or an image as `encode_images` takes
                it. A `Path` is always an image; a string is a text, except that it is the path of an image if the
                corpus is a gallery or an index of texts.
            corpus: A gallery, an index, or what `encode_images` (for texts) or `encode_texts` (for an image) takes to
                make a gallery.
            top_k: The most matches to return for each query, 1 or more; a smaller gallery is returned whole.
            shortlist: Score only this many items, those whose global vectors are nearest to the query's; at least
                ``top_k``. 0 scores every item. None takes the bundle's default: 200 where the vectors come from a
                pretrained network, and otherwise every item. `camp eval --shortlist` measures the loss in recall.
            on_progress: Receives the number of pairs in each block that was scored; 0 for one of a second pass.
            offset: How many of the best matches to leave out, for the next page. With a shortlist, its items are all
                that the pages hold.
            where: Rank only those items of an index whose metadata meet these conditions, as `Index.where` takes them.
                The shortlist is then chosen among them.
            by: "image" ranks the images of an index by their likeness to an image: by the dot product of global
                vectors, which is then also the score and the logit. The network for pairs is not used. None ranks by
                the network.
            precision: Rank in two passes: score every item in this precision, "int8", "float8" or "bfloat16", and then
                rescore those that may be among the best in the retriever's own precision. "auto" takes one that is fast
                here, if the bundle has it. None makes one pass.
            rescore: The number of items to rescore, at least the items wanted, or "auto", the default: all that the
                error of the first pass may have kept from the best.

        Returns:
            The matches, best first; equal logits keep the gallery's order. For several texts, one such list per text.
            ``unknown_words`` of the list names the words of the query that the model does not know; ``shortlist`` is
            the number of items that were scored, if they were not all.

        Raises:
            InputError: `check_queries` refuses the query, ``top_k`` is below 1, ``shortlist`` or ``rescore`` is below
                the items wanted, global vectors are asked of a bundle without them, or a condition is not understood.
            BackendError: The backend does not score in ``precision``.
            BundleError: The index has been moved to another bundle, its file is damaged, or the bundle has no graphs in
                ``precision``.
        """
        return rank(
            self.model, query, corpus, Asked(top_k, shortlist, offset, where, by, on_progress, precision, rescore)
        )

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
        check_shortlist(self.model, top_k, shortlist)

    def score(self, pairs: Iterable[tuple[Image, str]]) -> FloatArray:
        """Score chosen pairs; each distinct image and text is encoded once.

        Args:
            pairs: P pairs (image, text), with images as `encode_images` takes them.

        Returns:
            Scores [P] float32, after the activation (0 to 1 for sigmoid models); higher is better.

        Raises:
            InputError: An element is not a pair, or its image or text cannot be encoded.
        """
        return score_pairs(self.model, list(pairs))

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
        matrix = logit_matrix(self.model, images, texts, on_progress)
        return matrix if logits else self.model.activate(matrix)

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
        return explain(self.model, text, image)
