"""The parity gate: an exported bundle against the PyTorch network it came from, on real examples, every time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from camp_sdk.export.checkpoint import Origin
from camp_sdk.export.graphs import ExportError
from camp_sdk.export.measure import features_of
from camp_sdk.export.model import Camp
from camp_sdk.export.networks import word_mask
from camp_sdk.runtime.bundle import GLOBAL_SUFFIX, Bundle
from camp_sdk.runtime.engine import Arrays
from camp_sdk.runtime.engines import open_engine
from camp_sdk.terminal import progress

MAX_ERROR = 1e-4  # float32 sums in another order; the demo's model (d = 128) differs by 2.4e-5
TOP = 10


@dataclass(frozen=True)
class Check:
    """One comparison: its shape, the largest difference of each kind, and whether the top ten came in the same order."""

    name: str
    images: int
    texts: int
    words: int
    max_logit_error: float
    max_attention_error: float
    max_vector_error: float
    same_top: bool

    @property
    def passed(self) -> bool:
        """NaN fails: a comparison with it is never true."""
        errors = (self.max_logit_error, self.max_attention_error, self.max_vector_error)
        return self.same_top and all(error <= MAX_ERROR for error in errors)


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison: images as the network takes them, tokens padded to any length, lengths."""

    name: str
    images: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor


def parity_cases(origin: Origin) -> Iterator[Case]:
    """Real examples at shapes that break careless exports: one short text, ragged lengths, padding beyond the longest."""
    images = origin.example_batch()
    tokens = origin.open_tokenizer().encode(origin.example_captions)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    shortest = int(tokens.lengths.argmin())
    ragged = ragged_lengths(lengths[:12])
    yield Case("one text", images, ids[[shortest], : lengths[shortest]], lengths[[shortest]])
    yield Case("one image", images[:1], ids, lengths)
    yield Case("ragged", images, ids[:12, : ragged.max()] * word_mask(ragged, int(ragged.max())), ragged)
    yield Case("padded by 7", images, torch.nn.functional.pad(ids, (0, 7)), lengths)
    yield Case("one word", images, ids[:1, [0, 1, int(lengths[0]) - 1]], torch.tensor([3]))  # between its markers


def ragged_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Lengths that differ as much as they can, down to two: captions of one data set may all be equally long."""
    cut = torch.arange(len(lengths)) * (lengths.max() - 2) // max(len(lengths) - 1, 1)
    return (lengths - cut).clamp(min=2)


def check_parity(model: Camp, origin: Origin, bundle: Bundle) -> list[Check]:
    """Run every case both ways. The engines are ONNX Runtime on the CPU, as in CI."""
    with ExitStack() as stack:
        graphs = {n: stack.enter_context(open_engine(bundle, n, "onnxruntime")) for n in bundle.manifest.graphs}
        cases = progress(list(parity_cases(origin)), "comparing with PyTorch")
        return [_compare(case, reference_outputs(model, case), bundle_outputs(bundle, graphs, case)) for case in cases]


@torch.no_grad()
def reference_outputs(model: Camp, case: Case) -> Arrays:
    """Features, logits and explanation by PyTorch in float64: what is found is then the graphs' own error, not the sum of two.

    A vision network of fifty layers loses as many digits in PyTorch's float32 as in theirs.
    """
    model = copy.deepcopy(model).double()
    features = features_of(model, case.images.double())
    image, text = model.encode_images(features), model.encode_texts(case.tokens, case.lengths)
    logits = model.scorer(image, text)
    vectors = {name: tensor for name, tensor in (image | text).items() if name.endswith(GLOBAL_SUFFIX)}
    out = {"features": features, "logits": logits} | vectors | model.scorer.explain(image, text)
    return {name: tensor.float().numpy() for name, tensor in out.items()}


def bundle_outputs(bundle: Bundle, graphs: dict[str, Any], case: Case) -> Arrays:
    """The same by the exported graphs, chained as the runtime chains them."""
    features = (
        graphs["vision"].run({"pixels": case.images.numpy()})["features"] if "vision" in graphs else case.images.numpy()
    )
    sides = graphs["image"].run({"features": features})
    sides |= graphs["text"].run({"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()})
    out = {"features": features} | {name: array for name, array in sides.items() if name.endswith(GLOBAL_SUFFIX)}
    for name in ("scorer", "explainer"):
        out |= graphs[name].run({spec.name: sides[spec.name] for spec in bundle.manifest.graphs[name].inputs})
    return out


def _compare(case: Case, expected: Arrays, found: Arrays) -> Check:
    errors = {name: _difference(array, found[name]) for name, array in expected.items()}
    return Check(
        name=case.name,
        images=len(case.images),
        texts=len(case.lengths),
        words=case.tokens.shape[1],
        max_logit_error=errors["logits"],
        max_attention_error=_worst(e for name, e in errors.items() if name.startswith(("attention", "gates"))),
        max_vector_error=_worst(e for name, e in errors.items() if name.endswith(GLOBAL_SUFFIX)),
        same_top=same_order(expected["logits"], found["logits"]),
    )


def _worst(errors: Iterable[float]) -> float:
    return float(np.max([0.0, *errors]))  # numpy's maximum keeps a NaN, Python's loses it


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return float("nan")
    return float(np.abs(expected.astype(np.float64) - found).max())


def same_order(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Whether each text's ten best images come in the same order; logits closer than the tolerance may swap.

    Two images whose expected logits differ by less than twice the error allowed are a tie that either side may break.
    """
    best = np.argsort(-found, axis=0, kind="stable")[:TOP]
    ideal = -np.sort(-expected, axis=0)[:TOP]
    return bool((np.abs(np.take_along_axis(expected, best, axis=0) - ideal) <= 2 * MAX_ERROR).all())


def parity_table(checks: list[Check]) -> Table:
    """The checks as a terminal table."""
    table = Table(title=f"ONNX against PyTorch: largest differences (at most {MAX_ERROR:g})")
    for column in ("case", "I x T x N", "logits", "attention", "vectors", "top 10", ""):
        table.add_column(column)
    for c in checks:
        figures = [f"{error:.1e}" for error in (c.max_logit_error, c.max_attention_error, c.max_vector_error)]
        verdict = "ok" if c.passed else "FAILED"
        shape = f"{c.images} x {c.texts} x {c.words}"
        table.add_row(c.name, shape, *figures, "same" if c.same_top else "differs", verdict)
    return table


def require_parity(checks: list[Check]) -> None:
    """ExportError naming every case that failed."""
    if failed := [asdict(check) for check in checks if not check.passed]:
        raise ExportError(f"the exported graphs do not give PyTorch's scores, no bundle was written: {failed}")
