"""What both gates share: inputs of a comparison, the network's outputs and the graphs' for them, a table, a verdict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from camp_sdk.export.bundling.graphs import ExportError
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.manifest import GLOBAL_SUFFIX

TOP = 10
ORDER = ("vision", "image", "text", "scorer", "explainer")  # each reads what those before it make


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison.

    Args:
        name: what it is called in tables and messages.
        images: pixels [I, 3, H, W] or features [I, R, D].
        tokens: [T, N] int64, padded to any length.
        lengths: [T] int64.
    """

    name: str
    images: Tensor
    tokens: Tensor
    lengths: Tensor


class Check(Protocol):
    """The outcome of one comparison."""

    @property
    def name(self) -> str:
        """The case's name."""

    def faults(self) -> list[str]:
        """What is out of bounds, with the bound; empty if the check passed. NaN is out of any bound."""

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""


@torch.no_grad()
def reference_outputs(model: Camp, case: Case, dtype: torch.dtype) -> Arrays:
    """Features, logits, global vectors and explanation by PyTorch, computed in ``dtype`` and returned as float32."""
    model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    features = model.region_features(case.images.to(dtype))
    image, text = model.encode_images(features), model.encode_texts(case.tokens, case.lengths)
    vectors = {name: tensor for name, tensor in (image | text).items() if is_vector(name)}
    out = {"features": features, "logits": model.scorer(image, text)} | vectors | model.scorer.explain(image, text)
    return {name: tensor.float().numpy() for name, tensor in out.items()}


def graph_outputs(engines: Mapping[str, Engine], case: Case) -> Arrays:
    """Every output of every graph, chained as the runtime chains them, with the inputs."""
    images = case.images.numpy()
    made: Arrays = {"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()}
    made["pixels" if images.ndim == 4 and "vision" in engines else "features"] = images
    for name in ORDER:
        if name in engines and not (name == "vision" and "features" in made):
            reads, _ = engines[name].interface()
            made |= engines[name].run({n: made[n].astype(dtype, copy=False) for n, (dtype, _) in reads.items()})
    return made


def is_explanation(name: str) -> bool:
    """Whether an output is attention or a gate."""
    return name.startswith(("attention", "gates"))


def is_vector(name: str) -> bool:
    """Whether an output is one of the two global vectors."""
    return name.endswith(GLOBAL_SUFFIX)


def largest_error(expected: Arrays, found: Arrays, chosen: Callable[[str], bool]) -> float:
    """The largest difference among the outputs that ``chosen`` picks by name; 0 if there is none.

    NaN for an output of another shape, or one that holds NaN.
    """
    errors = [_difference(array, found[name]) for name, array in expected.items() if chosen(name)]
    return float(np.max([0.0, *errors]))  # numpy's maximum keeps a NaN, Python's loses it


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return float("nan")
    return float(np.abs(expected.astype(np.float64) - found).max())


def checks_table(title: str, columns: Sequence[str], checks: Sequence[Check]) -> Table:
    """The checks as a terminal table, with a verdict in the last column."""
    table = Table(*columns, "", title=title)
    for check in checks:
        table.add_row(*check.cells(), "FAILED" if check.faults() else "ok")
    return table


def require(checks: Sequence[Check], failure: str, advice: str = "") -> None:
    """Raise ExportError, with what each failed case is off by, unless every check passed."""
    if failed := [f"{check.name}: {', '.join(check.faults())}" for check in checks if check.faults()]:
        raise ExportError(f"{failure}, no bundle was written: {'; '.join(failed)}{advice}")
