"""The report of the GPU benchmark for a terminal, and its comparison with the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_measure import title_of
from gpu_methods import EAGER
from rich.markup import escape
from rich.table import Table

TARGET_BLOCK = title_of((256, 256))
TARGETS = {"of_products": 0.5, "x_eager": 3.0}


def add_shares(rows: Mapping[str, Any], peaks: Mapping[str, float | None]) -> None:
    """Add to the figures of every block their share of each peak, and their ratio to PyTorch's eager rate.

    Args:
        rows: figures of each method, changed in place.
        peaks: peak pairs per second, as from `peaks_of`.
    """
    eager = rows.get(EAGER, {}).get("blocks", {})
    for row in rows.values():
        for title, figures in row["blocks"].items():
            if "pairs_per_s" in figures:
                bases = {f"of_{name}": peak for name, peak in peaks.items()}
                bases["x_eager"] = eager.get(title, {}).get("pairs_per_s")
                figures |= {name: figures["pairs_per_s"] / base if base else None for name, base in bases.items()}


def best_engine(rows: Mapping[str, Any], title: str = TARGET_BLOCK) -> str | None:
    """The SDK engine with the highest rate at a block, None if no engine was measured."""
    rates = {
        name: row["blocks"][title]["pairs_per_s"]
        for name, row in rows.items()
        if not name.startswith("pytorch") and "pairs_per_s" in row["blocks"].get(title, {})
    }
    return max(rates, key=lambda name: rates[name], default=None)


def targets_of(cases: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the best engine at `TARGET_BLOCK` for each of `TARGETS`, by the number of words."""
    found: dict[str, Any] = {}
    for words, case in cases.items():
        if best := best_engine(case["rows"]):
            figures = case["rows"][best]["blocks"][TARGET_BLOCK]
            found[words] = {"engine": best, **{name: figures[name] for name in TARGETS}}
    return found


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """One table per variant and number of words; the last shows the device, rankings, targets and what is absent."""
    for variant, cases in report["variants"].items():
        for words, case in cases["words"].items():
            yield speed_table(f"{variant}, {words} words", case)
    rest = Table(title="the device, rankings, targets, and what is absent")
    rest.add_column("")
    rest.add_column("")
    for row in other_rows(report):
        rest.add_row(*row)
    yield rest


def speed_table(title: str, case: Mapping[str, Any]) -> Table:
    """Pairs per second of each method, with shares of the peaks and errors."""
    table = Table(title=f"{title}: pairs per second (% of product peak, % of copy peak, x PyTorch eager)")
    titles = list(dict.fromkeys(title for row in case["rows"].values() for title in row["blocks"]))
    for column in ("texts x images", *titles, "max score error", "top 10"):
        table.add_column(column, justify="left" if column.startswith("texts") else "right")
    for name, row in case["rows"].items():
        errors = (shown(row["max_score_error"], ".1e"), shown(row["top10_agreement"], ".1%"))
        table.add_row(name, *(cell(row["blocks"].get(title, {})) for title in titles), *errors)
    return table


def cell(figures: Mapping[str, Any]) -> str:
    """The figures of one block, in two lines."""
    if "pairs_per_s" not in figures:
        return "failed"
    shares = (shown(figures[name], ".0%") for name in ("of_products", "of_copies"))
    return f"{figures['pairs_per_s']:,.0f}\n({', '.join(shares)}, {shown(figures['x_eager'], '.1f')} x)"


def shown(value: float | None, form: str) -> str:
    """A formatted number, or a dash if the value is unknown."""
    return "-" if value is None else format(value, form)


def other_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of name and value for everything except pair scoring."""
    yield "GPU", f"{report['gpu']['name']}, CUDA {report['gpu']['driver_version']}"
    for rows, flops in report["device"].get("matmul_flops", {}).items():
        yield f"half-precision products of {rows} rows", f"{flops / 1e12:,.1f} TFLOP/s"
    if (copied := report["device"].get("copied_bytes")) is not None:
        yield "device memory, read and written", f"{copied / 1e9:,.0f} GB/s"
    for variant, found in report["variants"].items():
        for title, ms in found["rank_ms"].items():
            yield f"{variant}: rank of {title}, {found['rank_backend']}", f"{ms:.2f} ms"
    for words, found in report["targets"].items():
        reached = f"{shown(found['of_products'], '.0%')} of product peak, {shown(found['x_eager'], '.1f')} x eager"
        targets = f"{TARGETS['of_products']:.0%} and {TARGETS['x_eager']:.0f} x"
        yield f"paper, {words} words, {TARGET_BLOCK}: {found['engine']}", f"{reached} (targets: {targets})"
    for name, reason in report["absent"].items():
        yield f"absent: {name}", escape(reason)  # the reason may name an extra in brackets
