"""Outcomes of mutants, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

SAME, PROJECT_ERROR, ANOTHER = "same answer", "project error", "another answer"
OTHER_EXCEPTION, CRASH, HANG, MEMORY, CODE = "other exception", "crash", "hang", "memory", "code"
NOT_FINITE = "not finite"
# Documented in docs/security.md: OpenVINO ends the process on some graphs that ONNX Runtime refuses.
OPENVINO = "OpenVINO ends"
HARMLESS = (SAME, PROJECT_ERROR, ANOTHER, OPENVINO)
FAILURES = (OTHER_EXCEPTION, CRASH, HANG, MEMORY, CODE, NOT_FINITE)
OUTCOMES = (*HARMLESS, *FAILURES)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Args:
        kind: the name of its kind.
        number: its number.
        outcome: one of `OUTCOMES`.
        detail: the reason, in words.
    """

    kind: str
    number: int
    outcome: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether it did harm."""
        return self.outcome in FAILURES


def failures_of(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Those that did harm."""
    return (outcome for outcome in outcomes if outcome.failed)


def counted(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """How many mutants of each kind had each outcome."""
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.kind, Counter())[outcome.outcome] += 1
    return {kind: {name: found[kind][name] for name in OUTCOMES} for kind in sorted(found)}


def table_of(counts: dict[str, dict[str, int]]) -> Table:
    """The table of kinds and outcomes, with their sums."""
    columns = [Column(name, justify="right") for name in ("mutants", *OUTCOMES)]
    table = Table("kind", *columns, title="what became of damaged files")
    for kind, row in counts.items():
        table.add_row(kind, *_cells(row))
    table.add_section()
    table.add_row("all", *_cells({name: sum(row[name] for row in counts.values()) for name in OUTCOMES}))
    return table


def _cells(row: dict[str, int]) -> list[str]:
    failures = {name: f"[bold red]{row[name]}[/]" if row[name] else "0" for name in FAILURES}
    return [str(sum(row.values())), *(failures.get(name, str(row[name])) for name in OUTCOMES)]


def as_json(counts: dict[str, dict[str, int]], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The table and the failures, for JSON."""
    return {"kinds": counts, "failures": [vars(outcome) for outcome in failures_of(outcomes)]}
