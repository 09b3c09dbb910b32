"""The report of pairs.py: tables for a terminal, and the plot of the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table


def tables(report: dict[str, Any]) -> list[Table]:
    """Two tables for a terminal: pair scoring; and block shapes, rankings, start-up and memory."""
    released = report["variants"]["gate_fusion_new"]["rows"]["pytorch"]["pairs_per_s"]
    sizes = report["sizes"]
    summary = f"d = {sizes['d']}, {sizes['regions']} regions, {sizes['mean_words']:.1f} words on average"
    speed = Table(title=f"pairs per second, {summary}")
    for column in ("", "pairs/s", "% of peak", "x PyTorch", "x released", "max score error", "top 10"):
        speed.add_column(column, justify="left" if not column else "right")
    for variant, found in report["variants"].items():
        own = found["rows"]["pytorch"]["pairs_per_s"]
        for name, row in found["rows"].items():
            precision = "int8" if "int8 and" in name else "bfloat16" if "bfloat16" in name else "float32"
            peak = report["peak_pairs_per_s"][variant].get(precision)
            share = f"{row['pairs_per_s'] / peak:.0%}" if peak else ""
            errors = (
                [f"{row['max_score_error']:.1e}", f"{row['top10_agreement']:.1%}"]
                if "max_score_error" in row
                else ["", ""]
            )
            ratios = [f"{row['pairs_per_s'] / own:.1f}", f"{row['pairs_per_s'] / released:.1f}"]
            speed.add_row(f"{variant}: {name}", f"{row['pairs_per_s']:,.0f}", share, *ratios, *errors)
        speed.add_section()
    rest = Table(title="block rule against the best of a sweep; rankings; start-up; memory")
    rest.add_column("")
    rest.add_column("", justify="right")
    for variant, found in report["variants"].items():
        for backend, shapes in found["blocks"].items():
            for kind, rule in shapes["rule"].items():
                block = " x ".join(map(str, rule["block"]))
                rest.add_row(f"{variant}, {backend}, {kind}: {block}", f"{rule['of_best']:.0%} of the best")
    for name, row in report["rank_ms"].items():
        rest.add_row(f"rank: {name}", ", ".join(f"{shape}: {ms:.1f} ms" for shape, ms in row.items()))
    start = report["start"]
    rest.add_row("import camp_sdk / import numpy", f"{start['import_ratio']:.2f}")
    by_package = ", ".join(f"{package} {ms:.0f}" for package, ms in start["import_ms_by_package"].items())
    rest.add_row("import camp_sdk, ms by package", by_package)
    rest.add_row("resident after import", f"{start['resident_bytes'] / 1e6:.0f} MB")
    for backend, seconds in start["open_and_first_rank_s"].items():
        rest.add_row(f"open a bundle and rank 100 images, {backend}", f"{seconds:.2f} s")
    for name, row in report["memory"].items():
        rest.add_row(
            f"peak memory, {name}", f"{row['peak_bytes'] / 1e6:.0f} MB, scoring {row['scoring_bytes'] / 1e6:.0f} MB"
        )
    return [speed, rest]


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot pairs per second of each variant as bars on a logarithmic axis, with the float32 peak as a dashed line."""
    from matplotlib.figure import Figure

    labels = {
        "pytorch": "PyTorch, as published",
        "onnxruntime float32, gallery float32": "ONNX Runtime",
        "openvino float32, gallery float32": "OpenVINO",
        "openvino bfloat16, gallery float32": "OpenVINO, bfloat16",
        "openvino int8 and float32": "OpenVINO, int8 first",
    }
    variants, sizes = list(report["variants"]), report["sizes"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = ("#9aa0a6", "#3b6fb6", "#2a9d72", "#e08a2e", "#b03a48")
    for k, ((name, label), colour) in enumerate(zip(labels.items(), colours, strict=True)):
        rows = [report["variants"][variant]["rows"] for variant in variants]
        places = [place for place, row in enumerate(rows) if name in row]
        values = [rows[place][name]["pairs_per_s"] for place in places]
        bars = axes.bar(np.array(places) + 0.17 * (k - 2), values, 0.16, label=label, color=colour)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=7, color="white", padding=-11)
    peaks = [report["peak_pairs_per_s"][variant]["float32"] for variant in ("paper", "gate_fusion_new")]
    axes.hlines(
        peaks, [-0.45, 1.55], [0.45, 2.45], color="black", linewidth=1, linestyle="dashed", label="float32 peak"
    )
    axes.set_yscale("log")
    axes.set_xticks(range(len(variants)), variants)
    axes.set_ylabel("pairs per second")
    axes.set_ylim(axes.get_ylim()[0] / 2, axes.get_ylim()[1] * 1.6)
    machine = f"{report['machine']['processor']}, {report['machine']['cores']} cores"
    axes.set_title(f"d = {sizes['d']}, {sizes['regions']} regions; {machine}", fontsize=10)
    axes.legend(fontsize=7.5, ncols=6, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
