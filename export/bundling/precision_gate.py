"""The gate of the lower precisions: compares their graphs with the PyTorch network on real and on hostile examples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common

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
from camp_sdk.export.bundling.ranges import PRODUCTS, activations
from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import MIN_HALF_SHARE
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.manifest import Manifest
from camp_sdk.runtime.scoring import activate
from camp_sdk.terminal import progress

MAX_SCORE_ERROR = 5e-3
MIN_AGREEMENT = 0.99
MAX_ATTENTION_ERROR = 0.02
MAX_VECTOR_ERROR = 5e-3
ONE_WORD_CAPTIONS = 50
# Features that are a hundred times too large make the logits a hundred times too large. Attention then selects single
# words and regions, and rounding decides between two that are almost equal. Rounding only the outputs of the encoders
# to half, with all else in float64, changes scores by 0.1, and single logits of trained networks by up to 13% of their
# range. For such features, the gate checks only the order of the logits, and that 99% of them differ by a small part of
# their range. That part is 0.1 to 0.6% for trained networks, and 2% for 72 pairs of a random network.
REAL = "real"  # the examples as they are
HUGE, HUGE_SCALE = "huge features", 100
MAX_USUAL_SHARE = 0.05
MAX_SHARE_OF_RANGE = 0.1
# Scores near 0 or 1 hide errors of the logits, so every case also checks the logits. They may differ by a small part of
# their range or, where all logits are about the same, of the largest logit. If that is 2 or less, the second bound is
# 0.02, which changes a score by at most 5e-3.
MAX_SHARE_OF_LARGEST = 0.01
SMALL_LOGIT = 2.0
# Stricter, because the examples are few: among 18,000 other pairs, the largest errors of eight trained networks were up
# to 2.2 times as large.
ENCODERS_SCORE_ERROR = MAX_SCORE_ERROR / 2
TITLE = f"against PyTorch: scores within {MAX_SCORE_ERROR:g}, {MIN_AGREEMENT:.0%} of the top {TOP}"
COLUMNS = ("case", "scores", "of range", "99% in", f"top {TOP}", "attention", "vectors")


@dataclass(frozen=True)
class PrecisionCheck:
    """One comparison of I images with T texts.

    Args:
        name: the case's name.
        images: I.
        texts: T.
        finite: whether all outputs are finite.
        max_score_error: the largest difference of the scores, after the activation, divided by the manifest's
            `score_unit`.
        share_of_range: the largest difference of the logits, divided by the range of PyTorch's logits.
        share_of_largest: the same difference, divided by the largest absolute logit, or by 2 if that is larger.
        usual_share: the 99th percentile of the logits' differences, divided by the range.
        top10_agreement: the share of each text's ten best images that are also among PyTorch's ten best, ties included.
        max_look_error: the largest difference of attention and gates, which are in 0..1.
        max_vector_error: the largest difference of the global vectors, which have unit length.
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
        """Every error that is out of bounds, with the bound; empty if the check passed. NaN is out of any bound."""
        of_range = ("logits off, as a share of their range, by", self.share_of_range, MAX_SHARE_OF_RANGE)
        bounds = [
            ("scores off by", self.max_score_error, MAX_SCORE_ERROR),
            ("attention off by", self.max_look_error, MAX_ATTENTION_ERROR),
            ("global vectors off by", self.max_vector_error, MAX_VECTOR_ERROR),
        ]
        if self.name == HUGE:
            bounds = [("99% of the logits off, as a share of their range, by", self.usual_share, MAX_USUAL_SHARE)]
        elif not self.share_of_largest <= MAX_SHARE_OF_LARGEST:
            bounds.append(of_range)
        found = [f"{what} {error:.1e} (at most {most:g})" for what, error, most in bounds if not error <= most]
        if too_few_agree(self.top10_agreement, self.images, self.texts):
            found.append(f"{self.top10_agreement:.1%} of the top {TOP} (at least {MIN_AGREEMENT:.0%})")
        return found if self.finite else ["not finite", *found]

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""
        shares = [f"{share:.1%}" for share in (self.share_of_range, self.usual_share, self.top10_agreement)]
        errors = [f"{error:.1e}" for error in (self.max_look_error, self.max_vector_error)]
        return [f"{self.name}, {self.images} x {self.texts}", f"{self.max_score_error:.1e}", *shares, *errors]

    @property
    def with_margin(self) -> bool:
        """Whether the case passed with enough margin for pairs that are not among the examples."""
        return self.passed and (self.name == HUGE or self.max_score_error <= ENCODERS_SCORE_ERROR)


@torch.no_grad()
def precision_cases(model: Camp, origin: Origin) -> Iterator[Case]:
    """Real examples, features of zero, features that are far too large, and captions of one word."""
    batch, tokens = origin.example_batch(), origin.open_tokenizer().encode(origin.example_captions)
    features = model.region_features(batch)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    start, end = (int(ids[0, place]) for place in (0, lengths[0] - 1))  # markers
    words = np.setdiff1d(tokens.ids, [0, start, end])[:ONE_WORD_CAPTIONS]  # 0 pads
    short = torch.tensor([[start, word, end] for word in words])
    yield Case(REAL, batch, ids, lengths)
    yield Case("zero features", features * 0, ids, lengths)
    yield Case(HUGE, features * HUGE_SCALE, ids, lengths)
    yield Case("one word", features, short, torch.full((len(words),), 3))


def check_precision(model: Camp, origin: Origin, bundle: Bundle, precision: str) -> list[PrecisionCheck]:
    """Run every case with PyTorch in float32 and with the graphs of a lower precision.

    OpenVINO runs the bfloat16 graphs. ONNX Runtime runs the float16 graphs, emulated on the processor (`emulate_half`).

    Args:
        model: the network in float32.
        origin: its tokenizer and examples.
        bundle: the exported bundle.
        precision: "float16" or "bfloat16".
    """
    backend = "openvino" if precision == "bfloat16" else "onnxruntime"
    graphs = bundle.manifest.graphs_in(precision)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines: dict[str, Engine] = {}
        for name, graph in graphs.items():
            file = bundle.file(graph.file)
            # The check below may run an emulation: open the file itself as well.
            open_engine(bundle, name, backend, precision=precision).close()
            if precision == "float16":
                emulate_half(file.path, folder / f"{name}.onnx")
                engine: Engine = OnnxRuntimeEngine(HeldFile(folder / f"{name}.onnx"))
            else:
                engine = OpenVinoEngine(file)
            engines[name] = stack.enter_context(engine)
        cases = progress(list(precision_cases(model, origin)), f"comparing {precision} with PyTorch")
        return [
            _compare(c, reference_outputs(model, c, torch.float32), graph_outputs(engines, c), bundle.manifest)
            for c in cases
        ]


def _compare(case: Case, reference: Arrays, found: Arrays, manifest: Manifest) -> PrecisionCheck:
    expected, logits = reference["logits"], found["logits"]
    off = np.abs(expected - logits)
    span = max(float(np.ptp(expected)), 1e-6)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        usual = float(np.quantile(off, 0.99))
    scores = [activate(matrix, manifest.activation) / manifest.score_unit for matrix in (expected, logits)]
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


def is_mostly_float32(file: Path) -> bool:
    """Whether a float16 graph computes less than `MIN_HALF_SHARE` of its products in float16, and some by weights not.

    `camp build` refuses such a graph. Each product is weighted by its largest tensor of fixed size.
    """
    model = ir.load(file)
    common.ShapeInferencePass()(model)
    nodes = [node for node in model.graph if node.op_type in PRODUCTS]
    wide = [node for node in nodes if node.outputs[0].dtype == ir.DataType.FLOAT]
    by_weights = any(len(activations(node)) < 2 for node in wide)
    return by_weights and sum(map(_fixed_size, wide)) > (1 - MIN_HALF_SHARE) * sum(map(_fixed_size, nodes))


def _fixed_size(node: ir.Node) -> int:
    shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None and value.shape is not None]
    return max((math.prod(size for size in shape if isinstance(size, int)) for shape in shapes), default=1)


def too_few_agree(agreement: float, images: int, texts: int) -> bool:
    """Whether an agreement of the best images is below the bound; with few places, a single one is more than 1%.

    Args:
        agreement: what `top_agreement` returned.
        images: the number of images.
        texts: the number of texts.
    """
    places = texts * min(TOP, images)
    return round((1 - agreement) * places) > max(1, (1 - MIN_AGREEMENT) * places)


def top_agreement(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The share of each text's ten best images that are also among the ten best of the reference.

    An image that ties with the tenth best counts as one of them.

    Args:
        expected: logits [I, T] of the reference.
        found: logits [I, T].

    Returns:
        The share, in 0..1, over all texts.
    """
    best = np.argsort(-found, axis=0, kind="stable")[:TOP]
    last = -np.sort(-expected, axis=0)[:TOP][-1:]
    return float((np.take_along_axis(expected, best, axis=0) >= last).mean())
