"""One training step: the hardest-negative loss over chosen pairs, compared with the same loss over all B x B pairs.

    python benchmarks/training_step.py

Both give the same gradient (tests/test_losses.py). Every measurement runs in a process of its own. The memory figure is
the increase of the process's peak during the step. The results are written to benchmarks/results/training_step.json.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import describe, median_s
from rich.console import Console
from rich.table import Table

from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.training.losses import Encoded, matching_bce, pair_loss
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import progress, run_command

RESULTS = Path(__file__).parent / "results" / "training_step.json"
WIDTH, REGIONS, WORDS = 256, 36, 14
BATCHES = (32, 64, 128)
KINDS = ("all pairs", "chosen pairs")


def measure(variant: str, kind: str, batch: int) -> tuple[float, int]:
    """Time one forward and backward pass.

    Args:
        variant: the network's variant.
        kind: one of `KINDS`.
        batch: pairs of the batch.

    Returns:
        Median seconds, and by how many bytes the pass raised the process's peak memory.
    """
    torch.manual_seed(0)
    model = Camp(ModelConfig(100, variant, WIDTH, 64, 32))
    features, matches = torch.rand(batch, REGIONS, 64), torch.eye(batch, dtype=torch.bool)
    tokens, lengths = torch.randint(4, 100, (batch, WORDS)), torch.full((batch,), WORDS)

    def step() -> None:
        image, text = model.encode_images(features), model.encode_texts(tokens, lengths)
        if kind == "chosen pairs":
            loss = pair_loss(model.scorer, Encoded(image, text, lengths), matches)
        else:
            logits = model.scorer(image, text)
            wrong = logits.masked_fill(matches, -math.inf)
            loss = matching_bce(logits.diagonal(), wrong.max(1).values, wrong.max(0).values)
        torch.autograd.backward(loss)

    before = memory_bytes("VmRSS")
    seconds = median_s(step, 3)
    return seconds, memory_bytes("VmHWM") - before


def memory_bytes(kind: str) -> int:
    """Resident bytes of this process on Linux: now (VmRSS) or at their peak (VmHWM)."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def main(
    one: Annotated[str, typer.Option(help="VARIANT/KIND/BATCH: measure only this case, and print it.")] = "",
) -> None:
    """Measure every variant, kind of loss and batch size."""
    if one:
        variant, kind, batch = one.split("/")
        print(json.dumps(measure(variant, kind, int(batch))))
        return
    cases = [(variant, kind, batch) for variant in ("paper", "scalar") for batch in BATCHES for kind in KINDS]
    rows = []
    for variant, kind, size in progress(cases, "training steps"):
        command = [sys.executable, __file__, "--one", f"{variant}/{kind}/{size}"]
        seconds, grown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"variant": variant, "kind": kind, "batch": size, "seconds": seconds, "peak_bytes": grown})
    sizes = {"d": WIDTH, "regions": REGIONS, "words": WORDS}
    report = {**describe("camp-sdk", "torch"), "sizes": sizes, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    with write_aside(RESULTS) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = Table("variant", "batch", "pairs with gradients", "seconds", "memory", title=f"training step, d = {WIDTH}")
    for row in rows:
        figures = (f"{row['seconds']:.2f}", f"{row['peak_bytes'] / 1e6:,.0f} MB")
        table.add_row(row["variant"], str(row["batch"]), row["kind"], *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    run_command(main)
