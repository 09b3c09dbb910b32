"""The gate of the lower precisions: their graphs against the PyTorch network, on real examples and on hostile ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from camp_sdk.export.bundling.cases import (
    TOP,
    Case,
    graph_outputs,
    is_explanation,
    is_vector,
    largest_error,
    reference_outputs,
)
from camp_sdk.export.bundling.lowering import emulate_half
from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine
from camp_sdk.runtime.scoring import activate
from camp_sdk.terminal import progress

MAX_SCORE_ERROR = 5e-3
MIN_AGREEMENT = 0.99
MAX_LOOK_ERROR = 0.02
MAX_VECTOR_ERROR = 5e-3
ONE_WORD_CAPTIONS = 50
# With features a hundred times too large, logits are a hundred times too large, and attention picks single words and regions:
# where two are nearly as good, rounding picks the other. Rounding what the encoders give to half and computing all else in
# float64 then moves scores by 0.1, and single logits of trained networks by up to 13% of their range. What can be asked of such
# logits is their order, and that 99% of them are off by a small part of their range: 0.1 to 0.6% in trained networks, 2% with
# 72 pairs of a random one.
HUGE, LARGE = "huge features", 100
MAX_USUAL_SHARE = 0.05
MAX_SHARE_OF_RANGE = 0.1
# Scores near 0 or 1 hide what logits are off by, so logits are looked at everywhere: off by a small part of their range, or of
# the largest where all are about the same. 0.02 of a logit of 2 or less moves a score by 5e-3 at most.
MAX_SHARE_OF_LARGEST = 0.01
SMALL_LOGIT = 2.0
# The examples are few: among 18,000 other pairs, the largest errors of eight trained networks were up to 2.2 times as large.
ENCODERS_SCORE_ERROR = MAX_SCORE_ERROR / 2
TITLE = f"against PyTorch: scores within {MAX_SCORE_ERROR:g}, {MIN_AGREEMENT:.0%} of the top {TOP}"
COLUMNS = ("case", "scores", "of range", "99% in", f"top {TOP}", "attention", "vectors")


@dataclass(frozen=True)
class PrecisionCheck:
    """One comparison of I images with T texts.

    max_score_error: after the activation. share_of_range: the largest difference of logits, of the range they take.
    share_of_largest: the same, of the largest logit, or of 2 where none is as large. usual_share: as share_of_range, of the
    difference that 99% of the logits keep within.
    top10_agreement: the share of each text's ten best images that are among the ten best of PyTorch's, ties counted.
    max_look_error: of attention and gates, which are 0..1. max_vector_error: of the global vectors, which are of unit length.
    """

    name: str
    images: int
    texts: int
    finite: bool
    max_score_error: float
    share_of_range: float
    share_of_largest: float
    usual_share: float
    top10_agreement: float
    max_look_error: float
    max_vector_error: float

    @property
    def passed(self) -> bool:
        """Whether the case is within every bound."""
        return not self.faults()

    def faults(self) -> list[str]:
        """What is out of bounds, with the bound. NaN is out of any."""
        of_range = ("logits off by a share of their range of", self.share_of_range, MAX_SHARE_OF_RANGE)
        bounds = [
            ("scores off by", self.max_score_error, MAX_SCORE_ERROR),
            ("attention off by", self.max_look_error, MAX_LOOK_ERROR),
            ("global vectors off by", self.max_vector_error, MAX_VECTOR_ERROR),
        ]
        if self.name == HUGE:
            bounds = [("99% of the logits off by a share of their range of", self.usual_share, MAX_USUAL_SHARE)]
        elif not self.share_of_largest <= MAX_SHARE_OF_LARGEST:
            bounds.append(of_range)
        found = [f"{what} {error:.1e} (at most {most:g})" for what, error, most in bounds if not error <= most]
        places = self.texts * min(TOP, self.images)
        lost = round((1 - self.top10_agreement) * places)  # of few places, a single one is more than a hundredth
        if lost > max(1, (1 - MIN_AGREEMENT) * places):
            found.append(f"{self.top10_agreement:.1%} of the top {TOP} (at least {MIN_AGREEMENT:.0%})")
        return found if self.finite else ["not finite", *found]

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""
        shares = [f"{share:.1%}" for share in (self.share_of_range, self.usual_share, self.top10_agreement)]
        errors = [f"{error:.1e}" for error in (self.max_look_error, self.max_vector_error)]
        return [f"{self.name}, {self.images} x {self.texts}", f"{self.max_score_error:.1e}", *shares, *errors]

    @property
    def with_margin(self) -> bool:
        """Whether it passed so well that pairs which are not among the examples will, too."""
        return self.passed and (self.name == HUGE or self.max_score_error <= ENCODERS_SCORE_ERROR)


@torch.no_grad()
def precision_cases(model: Camp, origin: Origin) -> Iterator[Case]:
    """Real examples; features of zero, and far too large; captions of one word."""
    batch, tokens = origin.example_batch(), origin.open_tokenizer().encode(origin.example_captions)
    features = model.region_features(batch)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    start, end = (int(ids[0, place]) for place in (0, lengths[0] - 1))  # markers
    words = np.setdiff1d(tokens.ids, [0, start, end])[:ONE_WORD_CAPTIONS]  # 0 pads
    short = torch.tensor([[start, word, end] for word in words])
    yield Case("real", batch, ids, lengths)
    yield Case("zero features", features * 0, ids, lengths)
    yield Case(HUGE, features * LARGE, ids, lengths)
    yield Case("one word", features, short, torch.full((len(words),), 3))


def check_precision(model: Camp, origin: Origin, bundle: Bundle, precision: str) -> list[PrecisionCheck]:
    """Run every case both ways. bfloat16 is computed by OpenVINO; float16 emulated on the processor (`emulate_half`)."""
    backend = "openvino" if precision == "bfloat16" else "onnxruntime"
    graphs = bundle.manifest.graphs_in(precision)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines: dict[str, Engine] = {}
        for name, graph in graphs.items():
            path = bundle.path(graph.file)
            open_engine(
                bundle, name, backend, precision=precision
            ).close()  # the file itself, whatever is computed with
            if precision == "float16":
                emulate_half(path, folder / f"{name}.onnx")
            engine = OnnxRuntimeEngine(folder / f"{name}.onnx") if precision == "float16" else OpenVinoEngine(path)
            engines[name] = stack.enter_context(engine)
        cases = progress(list(precision_cases(model, origin)), f"comparing {precision} with PyTorch")
        return [
            _compare(c, reference_outputs(model, c, torch.float32), graph_outputs(engines, c), model.scorer.activation)
            for c in cases
        ]


def _compare(case: Case, reference: Arrays, found: Arrays, activation: str) -> PrecisionCheck:
    expected, logits = reference["logits"], found["logits"]
    off = np.abs(expected - logits)
    span = max(float(np.ptp(expected)), 1e-6)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        usual = float(np.quantile(off, 0.99))
    scores = [activate(matrix, activation) for matrix in (expected, logits)]
    return PrecisionCheck(
        name=case.name,
        images=len(case.images),
        texts=len(case.lengths),
        finite=all(bool(np.isfinite(array).all()) for array in found.values()),
        max_score_error=float(np.abs(scores[0] - scores[1]).max()),
        share_of_range=float(off.max()) / span,
        share_of_largest=float(off.max()) / max(float(np.abs(expected).max()), SMALL_LOGIT),
        usual_share=usual / span,
        top10_agreement=top_agreement(expected, logits),
        max_look_error=largest_error(reference, found, is_explanation),
        max_vector_error=largest_error(reference, found, is_vector),
    )


def top_agreement(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The share of each text's ten best images, by ``found`` [I, T], that ``expected`` [I, T] puts in its ten best, too.

    An image as good as the tenth is among them: any of a tie may be.
    """
    best = np.argsort(-found, axis=0, kind="stable")[:TOP]
    last = -np.sort(-expected, axis=0)[:TOP][-1:]
    return float((np.take_along_axis(expected, best, axis=0) >= last).mean())
