"""The golden self-test: run a bundle's own examples on one backend, and compare the results with PyTorch's.

Its caption is compared too, by `check_caption`: a tokenizer that splits it otherwise makes every backend wrong.

Software that is built on or for one machine can give wrong results on that machine only. So a backend that uses the GPU
is tested before its first use. The result is kept in the user's cache folder until something it depends on changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk.runtime import scoring
from camp_sdk.runtime.backends import choose_backend, library_version, open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import image_columns
from camp_sdk.runtime.encode import encode_texts, image_feeds
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import BackendError, BundleError, InputError
from camp_sdk.runtime.files import cache_folder, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE, Golden, read_golden
from camp_sdk.runtime.manifest import EXPORT_AGAIN, Manifest
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.scoring import Logits, PairScorer
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, read_records
from camp_sdk.runtime.tokenizer import Tokens, open_tokenizer

# The limits that the export applies to the same inputs (its parity and precision gates). An engine adds float32 numbers
# in another order and rounds float16 numbers in other places, but must not differ more than the graph it is made from.
MAX_LOGIT_ERROR = 1e-4
MAX_SCORE_ERROR = 5e-3
# ONNX Runtime has no option to prevent its TensorRT from computing float32 in TF32, with ten bits of the fraction.
TF32_BACKEND = "onnxruntime-tensorrt"
ON_PROCESSOR = ("onnxruntime", "openvino")
FORMAT = 1
LOG = logging.getLogger("camp_sdk")
RESULT_BYTES_LIMIT = 1 << 16


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test.

    Args:
        backend: the backend that was tested.
        precision: the precision that was tested.
        max_logit_error: the largest difference from PyTorch's logits; NaN if any logit is NaN.
        max_score_error: the largest difference from PyTorch's scores, after the activation, divided by the manifest's
            `score_unit`; NaN if any score is NaN.
        skipped: the reason why the test could not be run, with both differences 0; empty if it was run.
    """

    backend: str
    precision: str
    max_logit_error: float = 0.0
    max_score_error: float = 0.0
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether the differences are within the limits. NaN fails, because no comparison with NaN is true."""
        if self.precision == "float32" and self.backend != TF32_BACKEND:
            return self.max_logit_error <= MAX_LOGIT_ERROR
        return self.max_score_error <= MAX_SCORE_ERROR

    @property
    def figures(self) -> str:
        """The difference that counts, and its limit, in words."""
        if self.precision == "float32" and self.backend != TF32_BACKEND:
            return f"logits differ by {self.max_logit_error:.1e}, at most {MAX_LOGIT_ERROR:g} is allowed"
        return f"scores differ by {self.max_score_error:.1e}, at most {MAX_SCORE_ERROR:g} is allowed"


def self_test(bundle: Bundle, backend: str, precision: str) -> SelfTest:
    """Run the golden examples on a backend, as a retriever would.

    The test is skipped if the bundle has no examples, or if the engines were built for fewer words or regions than the
    examples have.

    Args:
        bundle: the bundle to test.
        backend: the name of a backend.
        precision: "float32", "float16" or "bfloat16".

    Raises:
        BackendError: a graph cannot be opened or run.
        BundleError: golden.npz or a graph is broken.
    """
    if GOLDEN_FILE not in bundle.manifest.files:
        return SelfTest(backend, precision, skipped=f"the bundle has no {GOLDEN_FILE}")
    golden = read_golden(bundle)
    with ExitStack() as stack:
        encoders = ("image", "text") if golden.pixels is None else ("vision", "image", "text")
        engines = {
            graph: stack.enter_context(open_engine(bundle, graph, backend, precision=precision))
            for graph in ("scorer", *encoders)
        }
        try:
            logits = _golden_logits(bundle, engines, precision, golden)
        except InputError as error:  # the engines were built for fewer words or regions
            return SelfTest(backend, precision, skipped=str(error))
    return _compared(SelfTest(backend, precision), golden.logits, logits, bundle.manifest)


def _golden_logits(bundle: Bundle, engines: dict[str, Engine], precision: str, golden: Golden) -> Logits:
    features = golden.features
    graphs = bundle.manifest.graphs_in(precision)
    if golden.pixels is not None:
        features = engines["vision"].run({"pixels": golden.pixels})["features"]
    tokens = Tokens(golden.tokens, golden.lengths, (), ())
    texts = encode_texts(engines["text"], bundle, tokens)
    images = EncodedImages(engines["image"].run(image_feeds(features, image_columns(graphs["image"]))))
    return scoring.logit_matrix(PairScorer(engines["scorer"], graphs["scorer"].inputs), images, texts)


def check_caption(bundle: Bundle, golden: Golden) -> None:
    """Check that the bundle's tokenizer gives the golden caption's tokens, with the library that is installed here.

    Args:
        bundle: the bundle to test.
        golden: its examples; without a caption, nothing is checked.

    Raises:
        BundleError: the tokenizer is broken, or gives other tokens.
    """
    if golden.caption is None or golden.caption_tokens is None:
        return
    try:
        (found,) = open_tokenizer(bundle).encode([golden.caption]).ids.tolist()
    except InputError as error:
        raise BundleError(f"the caption of {GOLDEN_FILE} cannot be encoded ({error}); {EXPORT_AGAIN}") from None
    if found != (expected := golden.caption_tokens.tolist()):
        raise BundleError(
            f"the tokenizer turns {brief(golden.caption)} into {brief(found)}, at the export into {brief(expected)}: "
            "install the version of `tokenizers` that the manifest names in made_with"
        )


def _compared(test: SelfTest, expected: Logits, found: Logits, manifest: Manifest) -> SelfTest:
    def largest(a: Any, b: Any) -> float:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            return float(np.abs(a.astype(np.float64) - b).max())

    scores = [scoring.activate(logits, manifest.activation) for logits in (expected, found)]
    of_scores = largest(*scores) / manifest.score_unit
    return SelfTest(test.backend, test.precision, largest(expected, found), of_scores)


def choose_tested_backend(bundle: Bundle, backend: str = "auto", precision: str = "float32") -> str:
    """Choose a backend as `choose_backend` does, and test it on this machine if it uses the GPU.

    If a backend fails its test, "auto" continues with the next one.

    Args:
        bundle: the bundle to score with.
        backend: "auto", or the name of a backend.
        precision: "float32", "float16" or "bfloat16".

    Returns:
        The name of the backend.

    Raises:
        BackendError: as in `choose_backend` and `self_test`; or a backend requested by name failed the self-test, with
            the figures in the message.
        BundleError: as in `choose_backend` and `self_test`.
    """
    failed: set[str] = set()
    while True:
        chosen = choose_backend(bundle, backend, precision, failed)
        try:
            _require_passed(bundle, chosen, precision)
        except BackendError as error:
            if backend != "auto":
                raise
            LOG.warning("auto skips %s: %s", chosen, error)
            failed.add(chosen)
        else:
            return chosen


def _require_passed(bundle: Bundle, backend: str, precision: str) -> None:
    if backend in ON_PROCESSOR:  # tested at the export; a test would slow down opening, which takes a second at most
        return
    key = result_key(bundle, backend, precision)
    test = recall(key) or run_and_remember(bundle, backend, precision)
    if not test.passed:
        raise BackendError(
            f"{backend} failed the self-test of {bundle.folder} in {precision}: {test.figures}; "
            f"run camp doctor for details and to test it again"
        )


def run_and_remember(bundle: Bundle, backend: str, precision: str) -> SelfTest:
    """Run the self-test even if a result is stored, and store the new result.

    Args:
        bundle: the bundle to test.
        backend: the name of a backend.
        precision: "float32", "float16" or "bfloat16".

    Raises:
        BackendError: a graph cannot be opened or run.
        BundleError: golden.npz or a graph is broken.
    """
    test = self_test(bundle, backend, precision)
    remember(result_key(bundle, backend, precision), test)
    return test


def result_key(bundle: Bundle, backend: str, precision: str) -> str:
    """The name under which a result is stored: 32 hexadecimal digits of a hash of everything the result depends on.

    The engines on disk are included.

    Args:
        bundle: the bundle to test.
        backend: the name of a backend.
        precision: "float32", "float16" or "bfloat16".
    """
    gpu: cuda.Gpu | None = None
    with contextlib.suppress(BackendError):
        gpu = cuda.gpu()
    capability, driver = (gpu.compute_capability, gpu.driver_version) if gpu else (None, None)
    library = LIBRARIES.get(backend)
    plans = sorted(r.plan_sha256 for _, r in read_records(bundle.folder)[0] if r.library == library) if library else []
    machine = [library_version(backend), capability, driver, cuda.driver_release()]
    parts = [FORMAT, bundle.fingerprint, backend, precision, *machine, plans]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _result_path(key: str) -> Path:
    return cache_folder() / "self-tests" / f"{key}.json"


def remember(key: str, test: SelfTest) -> None:
    """Store a result. A failure to write is ignored: the next process tests again."""
    with contextlib.suppress(OSError), write_aside(_result_path(key)) as aside:
        aside.write_text(json.dumps(asdict(test)) + "\n", encoding="utf-8")


def recall(key: str) -> SelfTest | None:
    """Read a stored result; None if there is none, or it cannot be read."""
    try:
        with _result_path(key).open("rb") as file:
            raw = json.loads(file.read(RESULT_BYTES_LIMIT))
        test = SelfTest(**raw)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts, numbers = (test.backend, test.precision, test.skipped), (test.max_logit_error, test.max_score_error)
    is_whole = all(type(text) is str for text in texts) and all(type(number) is float for number in numbers)
    return test if is_whole else None
