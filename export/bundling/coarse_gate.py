"""The gate of first passes: are their logits close enough to those of float32 to find what must be rescored?"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camp_sdk.export.bundling.cases import TOP, Case, graph_outputs
from camp_sdk.export.bundling.precision_gate import (
    MAX_SHARE_OF_RANGE,
    MIN_AGREEMENT,
    REAL,
    precision_cases,
    too_few_agree,
    top_agreement,
)
from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.model import Camp
from camp_sdk.first_pass import best_in_two_passes
from camp_sdk.runtime.backends import SCORES_IN, open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.scoring import Logits, feeds_of
from camp_sdk.runtime.selftest import ON_PROCESSOR
from camp_sdk.terminal import progress

QUANTILE = 0.999
IMAGES, TEXTS = 4, 8  # of one block of examples
TITLE = f"against float32: the error within {MAX_SHARE_OF_RANGE:.0%} of the range, {MIN_AGREEMENT:.0%} of the top {TOP}"
COLUMNS = ("case", "99.9% error", "of range", f"top {TOP}, two passes", "rescored")


@dataclass(frozen=True)
class CoarseCheck:
    """One comparison of I images with T texts.

    Args:
        name: the case's name.
        images: I.
        texts: T.
        finite: whether all logits are finite.
        logit_error: the 99.9% quantile of the differences from the logits of float32; of the real examples, on pairs
            that were held out.
        share_of_range: the same, divided by the range of the logits of float32.
        top10_agreement: the share of each text's ten best images that two passes find, ties included.
        rescored: the mean number of images of a text that the second pass scores.
    """

    name: str
    images: int
    texts: int
    finite: bool
    logit_error: float
    share_of_range: float
    top10_agreement: float
    rescored: float

    def faults(self) -> list[str]:
        """Every error that is out of bounds, with the bound; empty if the check passed."""
        found = [] if self.finite else ["not finite"]
        if self.name == REAL and not self.share_of_range <= MAX_SHARE_OF_RANGE:
            share = f"{self.share_of_range:.1%} (at most {MAX_SHARE_OF_RANGE:.0%})"
            found.append(f"99.9% error, as a share of the range, {share}")
        if too_few_agree(self.top10_agreement, self.images, self.texts):
            found.append(f"{self.top10_agreement:.1%} of the top {TOP} (at least {MIN_AGREEMENT:.0%})")
        return found

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""
        figures = [f"{self.logit_error:.1e}", f"{self.share_of_range:.1%}", f"{self.top10_agreement:.1%}"]
        return [f"{self.name}, {self.images} x {self.texts}", *figures, f"{self.rescored:.1f}"]


def calibration_feeds(model: Camp, origin: Origin, bundle: Bundle) -> Iterator[Arrays]:
    """The scorer's inputs for every second example image with every second example caption, block by block.

    The others are held out: `check_coarse` measures the error on them.

    Args:
        model: the network in float32.
        origin: its tokenizer and examples.
        bundle: the float32 bundle.
    """
    case = next(precision_cases(model, origin))
    with ExitStack() as stack:
        engines: dict[str, Engine] = {
            name: stack.enter_context(open_engine(bundle, name, "onnxruntime"))
            for name in ("vision", "image", "text")
            if name in bundle.manifest.graphs
        }
        made = graph_outputs(engines, Case(case.name, case.images[::2], case.tokens[::2], case.lengths[::2]))
    graphs = bundle.manifest.graphs
    for first in range(0, len(made["lengths"]), TEXTS):
        texts = {spec.name: made[spec.name][first : first + TEXTS] for spec in graphs["text"].outputs}
        for start in range(0, len(case.images[::2]), IMAGES):
            images = {spec.name: made[spec.name][start : start + IMAGES] for spec in graphs["image"].outputs}
            yield feeds_of(graphs["scorer"].inputs, images | texts)


def check_coarse(model: Camp, origin: Origin, bundle: Bundle, precision: str) -> list[CoarseCheck]:
    """Score every case in both precisions on every backend of processors that is installed, and rank it in two passes.

    Args:
        model: the network in float32.
        origin: its tokenizer and examples.
        bundle: the exported bundle.
        precision: the precision of the first pass.

    Returns:
        The checks. That of the real examples has the error that a ranking allows for: the 99.9% quantile on pairs of
        which the image or the caption is held out; the largest one of all backends.
    """
    graphs = bundle.manifest.graphs
    names = [name for name in ("vision", "image", "text", "scorer") if name in graphs]
    backends = [name for name in ON_PROCESSOR if name in SCORES_IN[precision] and importlib.util.find_spec(name)]
    checks: list[CoarseCheck] = []
    with ExitStack() as stack:
        exact: dict[str, Engine] = {}
        for name in names:
            exact[name] = stack.enter_context(open_engine(bundle, name, "onnxruntime"))
        coarse = [stack.enter_context(open_engine(bundle, "scorer", b, precision=precision)) for b in backends]
        error = 0.0
        for case in progress(list(precision_cases(model, origin)), f"comparing {precision} with float32"):
            made = graph_outputs(exact, case)
            logits = made["logits"]
            inputs = feeds_of(graphs["scorer"].inputs, made)
            found = [engine.run(inputs)["logits"] for engine in coarse]
            measured = held_out(*logits.shape) if case.name == REAL else np.ones(logits.shape, bool)
            errors = [float(np.quantile(np.abs(logits - own)[measured], QUANTILE)) for own in found]
            worst = int(np.argmax(errors))
            if case.name == REAL:
                error = errors[worst]
            checks.append(_compared(case, logits, found[worst], errors[worst], error))
    return checks


def error_of(checks: Sequence[CoarseCheck]) -> float:
    """The error that a ranking allows for."""
    return next(check.logit_error for check in checks if check.name == REAL)


def held_out(images: int, texts: int) -> NDArray[np.bool_]:
    """The pairs [I, T] that `calibration_feeds` leaves out; all of them if it leaves out none."""
    out = np.ones((images, texts), bool)
    out[::2, ::2] = False
    return out if out.any() else ~out


def _compared(case: Case, logits: Logits, found: Logits, own: float, error: float) -> CoarseCheck:
    again: list[NDArray[np.intp]] = []

    def exact(pairs: NDArray[np.intp]) -> Logits:
        again.extend(pairs)
        scored: Logits = logits.T[pairs[:, 0], pairs[:, 1]]
        return scored

    finite = bool(np.isfinite(found).all())
    agreement = 0.0
    if finite:
        ranked = np.full_like(logits, -np.inf)
        for text, (numbers, best) in enumerate(best_in_two_passes(found.T, TOP, exact, error)):
            ranked[numbers, text] = best
        agreement = top_agreement(logits, ranked)
    span = max(float(np.ptp(logits)), 1e-6)
    counts = (len(case.images), len(case.lengths))
    return CoarseCheck(case.name, *counts, finite, own, own / span, agreement, len(again) / counts[1])
