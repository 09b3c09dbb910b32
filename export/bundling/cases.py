"""The comparison that both gates share: inputs, outputs of PyTorch and of the graphs, a table of results, a verdict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.contract import GLOBAL_SUFFIX, GraphSpec, TensorSpec, image_columns
from camp_sdk.runtime.encode import image_feeds
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface

TOP = 10
ORDER = ("vision", "image", "text", "scorer", "explainer")  # each graph reads the outputs of those before it


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison.

    Args:
        name: its name in tables and messages.
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
        """Every error that is out of bounds, with the bound; empty if the check passed. NaN is out of any bound."""

    def cells(self) -> list[str]:
        """One row of the table, without the verdict."""


@torch.no_grad()
def reference_outputs(model: Camp, case: Case, dtype: torch.dtype) -> Arrays:
    """Features, logits, global vectors, attention and gates by PyTorch.

    Args:
        model: the network in float32.
        case: the inputs.
        dtype: what the network computes in.

    Returns:
        The outputs by name, as float32.
    """
    model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    features = model.region_features(case.images.to(dtype))
    image, text = model.encode_images(features), model.encode_texts(case.tokens, case.lengths)
    vectors = {name: tensor for name, tensor in (image | text).items() if is_vector(name)}
    out = {"features": features, "logits": model.scorer(image, text)} | vectors | model.scorer.explain(image, text)
    return {name: tensor.float().numpy() for name, tensor in out.items()}


def graph_outputs(engines: Mapping[str, Engine], case: Case) -> Arrays:
    """Run the graphs one after the other, as the runtime does.

    Args:
        engines: an engine for each graph, by the graph's name.
        case: the inputs. Pixels are used only if there is a vision graph.

    Returns:
        Every output of every graph, and the inputs, by name.
    """
    images = case.images.numpy()
    made: Arrays = {"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()}
    made["pixels" if images.ndim == 4 and "vision" in engines else "features"] = images
    for name in ORDER:
        if name in engines and not (name == "vision" and "features" in made):
            reads, _ = engines[name].interface()
            given = made | _image_inputs(made["features"], reads) if name == "image" else made
            made |= engines[name].run({n: given[n].astype(dtype, copy=False) for n, (dtype, _) in reads.items()})
    return made


def _image_inputs(features: NDArray[np.float32], reads: Interface) -> Arrays:
    """The image graph's inputs, from the columns of features [I, R, D]."""
    specs = tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in reads.items())
    return image_feeds(features, image_columns(GraphSpec("", specs, ())))


def is_explanation(name: str) -> bool:
    """Whether an output holds attention or gates."""
    return name.startswith(("attention", "gates"))


def is_vector(name: str) -> bool:
    """Whether an output is one of the two global vectors."""
    return name.endswith(GLOBAL_SUFFIX)


def largest_error(expected: Arrays, found: Arrays, chosen: Callable[[str], bool]) -> float:
    """The largest absolute difference among some outputs.

    Args:
        expected: the outputs of PyTorch, by name.
        found: the outputs of the graphs, by name.
        chosen: whether to compare the output of a name.

    Returns:
        The difference; 0 if no output is chosen, NaN if a chosen one has a different shape or holds NaN.
    """
    errors = [_difference(array, found[name]) for name, array in expected.items() if chosen(name)]
    return float(np.max([0.0, *errors]))  # numpy's maximum keeps NaN, Python's may lose it


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return float("nan")
    return float(np.abs(expected.astype(np.float64) - found).max())


def figures_of(check: Any) -> dict[str, Any]:
    """The fields of a check for the manifest, with three digits: the others differ with the order of sums."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in asdict(check).items()}


def checks_table(title: str, columns: Sequence[str], checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal, with a verdict in the last column."""
    table = Table(*columns, "", title=title)
    for check in checks:
        table.add_row(*check.cells(), "FAILED" if check.faults() else "ok")
    return table


def require(checks: Sequence[Check], failure: str, advice: str = "") -> None:
    """Raise ExportError unless every check passed.

    Args:
        checks: the checks.
        failure: the beginning of the message; the faults of every failed check follow.
        advice: the end of the message.
    """
    if failed := [f"{check.name}: {', '.join(check.faults())}" for check in checks if check.faults()]:
        raise ExportError(f"{failure}, no bundle was written: {'; '.join(failed)}{advice}")
