"""The parity gate: every export compares the bundle with the PyTorch network it came from, on real examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

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
from camp_sdk.export.network.checkpoint import Origin
from camp_sdk.export.network.encoders import word_mask
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Arrays
from camp_sdk.terminal import progress

MAX_ERROR = 1e-4  # room for float32 sums in a different order; the demo's model (d = 128) differs by 2.4e-5
TITLE = f"ONNX against PyTorch: largest differences (at most {MAX_ERROR:g})"
COLUMNS = ("case", "I x T x N", "logits", "attention", "vectors", "top 10")
FAILURE = "the exported graphs do not give PyTorch's scores"


@dataclass(frozen=True)
class ParityCheck:
    """One comparison.

    Args:
        name: the case's name.
        images: I.
        texts: T.
        words: N, padding included.
        max_logit_error: the largest difference of the logits.
        max_attention_error: the largest difference of attention and gates, which are in 0..1.
        max_vector_error: the largest difference of the global vectors, which have unit length.
        same_top: whether each text's ten best images come in the same order.
    """

    name: str
    images: int
    texts: int
    words: int
    max_logit_error: float
    max_attention_error: float
    max_vector_error: float
    same_top: bool

    def faults(self) -> list[str]:
        """Every error that is out of bounds, with the bound; empty if the check passed. NaN is out of any bound."""
        errors = {
            "logits": self.max_logit_error,
            "attention": self.max_attention_error,
            "global vectors": self.max_vector_error,
        }
        found = [f"{what} off by {error:.1e} (at most {MAX_ERROR:g})" for what, error in errors.items()]
        kept = [fault for fault, error in zip(found, errors.values(), strict=True) if not error <= MAX_ERROR]
        return kept if self.same_top else [*kept, f"a different order of the top {TOP}"]

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""
        errors = (self.max_logit_error, self.max_attention_error, self.max_vector_error)
        shape = f"{self.images} x {self.texts} x {self.words}"
        return [self.name, shape, *(f"{error:.1e}" for error in errors), "same" if self.same_top else "differs"]


def parity_cases(origin: Origin) -> Iterator[Case]:
    """Real examples at shapes that break careless exports.

    They are one short text, one image, ragged lengths, padding beyond the longest text, and a text of one word.
    """
    images = origin.example_batch()
    tokens = origin.open_tokenizer().encode(origin.example_captions)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    shortest = int(tokens.lengths.argmin())
    ragged = ragged_lengths(lengths[:12])
    yield Case("one text", images, ids[[shortest], : lengths[shortest]], lengths[[shortest]])
    yield Case("one image", images[:1], ids, lengths)
    yield Case("ragged", images, ids[:12, : ragged.max()] * word_mask(ragged, int(ragged.max())), ragged)
    yield Case("padded by 7", images, torch.nn.functional.pad(ids, (0, 7)), lengths)
    yield Case("one word", images, ids[:1, [0, 1, int(lengths[0]) - 1]], torch.tensor([3]))  # with start and end marker


def ragged_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Shorten lengths [T] so that they spread from the longest down to two.

    Without this, the captions of a data set may all be equally long.
    """
    cut = torch.arange(len(lengths)) * (lengths.max() - 2) // max(len(lengths) - 1, 1)
    return (lengths - cut).clamp(min=2)


def check_parity(model: Camp, origin: Origin, bundle: Bundle) -> list[ParityCheck]:
    """Run every case with PyTorch and with ONNX Runtime on the CPU.

    PyTorch computes in float64, so that the difference is the error of the graphs alone. In float32, PyTorch itself
    would add an error of the same size: a vision network of fifty layers loses as many digits there as in the graphs.

    Args:
        model: the network in float32.
        origin: its tokenizer and examples.
        bundle: the exported bundle.
    """
    with ExitStack() as stack:
        engines = {n: stack.enter_context(open_engine(bundle, n, "onnxruntime")) for n in bundle.manifest.graphs}
        cases = progress(list(parity_cases(origin)), "comparing with PyTorch")
        return [_compare(c, reference_outputs(model, c, torch.float64), graph_outputs(engines, c)) for c in cases]


def _compare(case: Case, expected: Arrays, found: Arrays) -> ParityCheck:
    return ParityCheck(
        name=case.name,
        images=len(case.images),
        texts=len(case.lengths),
        words=case.tokens.shape[1],
        max_logit_error=largest_error(expected, found, lambda name: name == "logits"),
        max_attention_error=largest_error(expected, found, is_explanation),
        max_vector_error=largest_error(expected, found, is_vector),
        same_top=same_order(expected["logits"], found["logits"]),
    )


def same_order(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Whether each text's ten best images come in the same order in both.

    Two images whose expected logits differ by at most twice the allowed error count as a tie and may swap.

    Args:
        expected: logits [I, T] of PyTorch.
        found: logits [I, T] of the graphs.
    """
    best = np.argsort(-found, axis=0, kind="stable")[:TOP]
    ideal = -np.sort(-expected, axis=0)[:TOP]
    return bool((np.abs(np.take_along_axis(expected, best, axis=0) - ideal) <= 2 * MAX_ERROR).all())
