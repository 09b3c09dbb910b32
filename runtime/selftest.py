"""The golden self-test: a bundle's own examples through its graphs, on one backend, beside what PyTorch made of them.

What was built on or for a machine can be wrong there alone. So a backend that uses the GPU is tested before its first use,
and the result is remembered in the user's cache folder until anything changes that it depends on.
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
from camp_sdk.runtime.encode import encode_texts
from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import BackendError, InputError
from camp_sdk.runtime.files import cache_folder, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE, Golden, read_golden
from camp_sdk.runtime.scoring import Logits, PairScorer
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, read_records
from camp_sdk.runtime.tokenizer import Tokens

# Both are what the export demanded of the same inputs (its parity and precision gates): sums in float32 come in
# another order here, and halves are rounded elsewhere, but no engine may be further away than the graphs it is made of.
MAX_LOGIT_ERROR = 1e-4
MAX_SCORE_ERROR = 5e-3
# ONNX Runtime offers no option to keep its TensorRT from computing float32 in TF32, with ten bits of the fraction.
ROUNDED = "onnxruntime-tensorrt"
ON_PROCESSOR = ("onnxruntime", "openvino")
FORMAT = 1
LOG = logging.getLogger("camp_sdk")
RESULT_BYTES_LIMIT = 1 << 16


@dataclass(frozen=True)
class SelfTest:
    """Largest differences from PyTorch's logits, and from its scores (after the activation); NaN where there is a NaN.

    skipped: why it could not be run, empty if it was; the figures are then 0.
    """

    backend: str
    precision: str
    max_logit_error: float = 0.0
    max_score_error: float = 0.0
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether the differences are within the limits. NaN fails: a comparison with it is never true."""
        if self.precision == "float32" and self.backend != ROUNDED:
            return self.max_logit_error <= MAX_LOGIT_ERROR
        return self.max_score_error <= MAX_SCORE_ERROR

    @property
    def figures(self) -> str:
        """What was found, and the limit, in words."""
        if self.precision == "float32" and self.backend != ROUNDED:
            return f"logits differ by {self.max_logit_error:.1e}, at most {MAX_LOGIT_ERROR:g} is allowed"
        return f"scores differ by {self.max_score_error:.1e}, at most {MAX_SCORE_ERROR:g} is allowed"


def self_test(bundle: Bundle, backend: str, precision: str) -> SelfTest:
    """Run the golden examples on a backend, as a retriever would.

    Skipped for a bundle without examples, or engines that were not built for such. Raises BackendError if a graph cannot be
    opened or run; BundleError for a broken golden.npz or graph.
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
        except InputError as error:  # of engines that were built for fewer words or regions
            return SelfTest(backend, precision, skipped=str(error))
    return _compared(SelfTest(backend, precision), golden.logits, logits, bundle.manifest.activation)


def _golden_logits(bundle: Bundle, engines: dict[str, Engine], precision: str, golden: Golden) -> Logits:
    features = golden.features
    graphs = bundle.manifest.graphs_in(precision)
    if golden.pixels is not None:
        features = engines["vision"].run({"pixels": golden.pixels})["features"]
    tokens = Tokens(golden.tokens, golden.lengths, ())
    texts = encode_texts(engines["text"], bundle, tokens)
    images = EncodedImages(engines["image"].run(scoring.feeds_of(graphs["image"].inputs, {"features": features})))
    return scoring.logit_matrix(PairScorer(engines["scorer"], graphs["scorer"].inputs), images, texts)


def _compared(test: SelfTest, expected: Logits, found: Logits, activation: str) -> SelfTest:
    def largest(a: Any, b: Any) -> float:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            return float(np.abs(a.astype(np.float64) - b).max())

    scores = [scoring.activate(logits, activation) for logits in (expected, found)]
    return SelfTest(test.backend, test.precision, largest(expected, found), largest(*scores))


def choose_tested_backend(bundle: Bundle, backend: str = "auto", precision: str = "float32") -> str:
    """What `choose_backend` chooses, tested on this machine if it uses the GPU: auto takes the next one for one that fails.

    Raises what `choose_backend` and `self_test` raise, and BackendError with the figures if a backend asked for by name
    fails the self-test.
    """
    failed: set[str] = set()
    while True:
        chosen = choose_backend(bundle, backend, precision, failed)
        try:
            _require_passed(bundle, chosen, precision)
        except BackendError as error:
            if backend != "auto":
                raise
            LOG.warning("auto does not take %s: %s", chosen, error)
            failed.add(chosen)
        else:
            return chosen


def _require_passed(bundle: Bundle, backend: str, precision: str) -> None:
    if backend in ON_PROCESSOR:  # what is tested with the bundle at its export; opening one takes a second at most
        return
    key = result_key(bundle, backend, precision)
    test = recall(key) or run_and_remember(bundle, backend, precision)
    if not test.passed:
        raise BackendError(
            f"{backend} failed the self-test of {bundle.folder} in {precision}: {test.figures}; "
            f"camp doctor tells more, and tests it again"
        )


def run_and_remember(bundle: Bundle, backend: str, precision: str) -> SelfTest:
    """Run the self-test, whatever is remembered, and remember its result. Raises as `self_test` does."""
    test = self_test(bundle, backend, precision)
    remember(result_key(bundle, backend, precision), test)
    return test


def result_key(bundle: Bundle, backend: str, precision: str) -> str:
    """What names a result: 32 hexadecimal digits of a hash over all it depends on, the engines on disk included."""
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
    """Keep a result. A folder that cannot be written to is no error: the next process tests again."""
    with contextlib.suppress(OSError), write_aside(_result_path(key)) as aside:
        aside.write_text(json.dumps(asdict(test)) + "\n", encoding="utf-8")


def recall(key: str) -> SelfTest | None:
    """A result that was kept, None if there is none that can be read."""
    try:
        with _result_path(key).open("rb") as file:
            raw = json.loads(file.read(RESULT_BYTES_LIMIT))
        test = SelfTest(**raw)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts, numbers = (test.backend, test.precision, test.skipped), (test.max_logit_error, test.max_score_error)
    is_whole = all(type(text) is str for text in texts) and all(type(number) is float for number in numbers)
    return test if is_whole else None
