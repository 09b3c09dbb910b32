"""The graphs of lower precisions, as manifest.json lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.messages import brief

INT8, FLOAT8 = "int8", "float8"
COARSE = (INT8, FLOAT8)  # too coarse for scores of their own: only a first pass uses them
PRECISION_FOLDERS = {"float16": "fp16", "bfloat16": "bf16", INT8: "int8", FLOAT8: "fp8"}  # folders of the graphs
FROM_SHORT = {folder: name for name, folder in PRECISION_FOLDERS.items()}  # commands name precisions as folders do
FIRST_PASSES = (INT8, FLOAT8, "bfloat16")  # precisions for the first pass of a ranking, the fastest first
ERROR_LIMIT = 1e30  # of logits


@dataclass(frozen=True)
class LoweredGraphs:
    """The graphs of a lower precision, which replace the float32 ones.

    Args:
        graphs: the graphs by name; those missing here are used in float32.
        checks: figures of the export's precision gate.
        logit_error: the 99.9% quantile of the differences between this precision's logits and those of float32, on
            pairs of the export; None if it was not measured.
        rest_in_bfloat16: whether the error was measured with the rest of the graph in bfloat16, so that OpenVINO may
            compute it so.
    """

    graphs: dict[str, GraphSpec]
    checks: tuple[dict[str, Any], ...] = ()
    logit_error: float | None = None
    rest_in_bfloat16: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LoweredGraphs:
        """The graphs that a manifest's entry describes.

        Args:
            raw: the entry, as `as_dict` returns it.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: the entry is invalid.
        """
        error = raw.get("logit_error")
        if error is not None and (type(error) not in (int, float) or not 0 <= error < ERROR_LIMIT):
            raise ValueError(f"logit_error {brief(error)}: expected a number from 0 to {ERROR_LIMIT:g}, or null")
        rest = raw.get("rest_in_bfloat16", False)
        if type(rest) is not bool:
            raise ValueError(f"rest_in_bfloat16 {brief(rest)}: expected true or false")
        graphs = {str(name): GraphSpec.from_dict(graph) for name, graph in raw["graphs"].items()}
        checks = tuple(dict(check) for check in raw.get("checks") or ())
        return cls(graphs, checks, None if error is None else float(error), rest)

    def as_dict(self) -> dict[str, Any]:
        """The manifest's entry."""
        graphs = {name: graph.as_dict() for name, graph in self.graphs.items()}
        found: dict[str, Any] = {"graphs": graphs, "checks": list(self.checks), "logit_error": self.logit_error}
        return found | {"rest_in_bfloat16": self.rest_in_bfloat16}
