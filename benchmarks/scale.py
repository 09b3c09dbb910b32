"""What 1, 10 and 100 million pictures take: the tables of docs/scale.md, from the figures that were measured.

    python benchmarks/scale.py            prints the tables
    python benchmarks/scale.py --write    puts them into docs/scale.md

Figures come from benchmarks/results; whatever was not measured is a constant here, named ASSUMED, and the page says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import run_command

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scale.md"
BEGIN, END = "<!-- benchmarks/scale.py -->", "<!-- end -->"
PICTURES, RATES = (1, 10, 100), (10, 1000)  # millions; queries per second
SHORTLIST = 200  # as the benchmarks have it
REGIONS = 36
MILLION = 1_000_000

ASSUMED_CORES, ASSUMED_MEMORY_GB = 16, 64  # of a machine
ASSUMED_LOAD = 0.6  # of its cores, at the most: waiting times grow beyond
ASSUMED_FIRST_STAGE_S = 0.1  # that a query may wait for it: more machines share it otherwise
ASSUMED_PRICE = 0.04  # dollars for a core and an hour
ASSUMED_RESULT_BYTES = 64 + SHORTLIST * 16  # a query's answers of one machine: numbers and products


@dataclass(frozen=True)
class Network:
    """A network whose figures were measured.

    Args:
        variant: Its variant, d = 1024.
        backend: The row of the benchmark of pairs.
        stored: How its tensors are stored.
    """

    variant: str
    backend: str
    stored: str

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second of the benchmark's cores."""
        found: float = _results("pairs")["variants"][self.variant]["rows"][self.backend]["pairs_per_s"]
        return found

    @property
    def item_bytes(self) -> int:
        """Bytes of a picture, without its global vector in the vector file."""
        found: int = _results("pairs")["variants"][self.variant]["gallery_bytes_per_image"][self.stored]
        return found


NETWORKS = (
    Network("paper", "openvino float32, gallery int8", "int8"),
    Network("scalar", "openvino float32, gallery int8", "int8"),
)


@cache
def _results(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def _million() -> dict[str, float]:
    """What a million items took, in the benchmark of indexes."""
    found: dict[str, float] = max(_results("index")["sizes"], key=lambda size: size["items"])
    return found


@dataclass(frozen=True)
class Plan:
    """What a network takes for a number of pictures and a rate of queries.

    Args:
        network: The network.
        millions: Pictures.
        rate: Queries per second.
        ann: Whether the first stage is approximate.
    """

    network: Network
    millions: int
    rate: int
    ann: bool

    @property
    def _width(self) -> int:
        return int(_results("pairs")["sizes"]["d"])

    @property
    def disk_gb(self) -> float:
        """Tensors and vectors on disks."""
        return self.millions * MILLION * (self.network.item_bytes + 4 * self._width) / 1e9

    @property
    def memory_gb(self) -> float:
        """What the first stage reads, which has to stay in memory."""
        measured = _million()
        of_vectors = measured["ann_bytes"] if self.ann else 4 * measured["width"] * measured["items"]
        return self.millions * MILLION / measured["items"] * of_vectors * self._width / measured["width"] / 1e9

    @property
    def first_stage_s(self) -> float:
        """Core-seconds of the first stage of one query: proportional to the items and to d."""
        measured = _million()
        cores = _results("index")["machine"]["cores"]
        seconds = measured["ann_ms" if self.ann else "first_stage_ms"] / 1e3 * cores
        return float(self.millions * MILLION / measured["items"] * seconds * self._width / measured["width"])

    @property
    def scoring_s(self) -> float:
        """Core-seconds of the pairs of one query."""
        return SHORTLIST / self.network.pairs_per_s * float(_results("pairs")["machine"]["cores"])

    @property
    def shards(self) -> int:
        """Machines that share the pictures: for the memory, or for the time of a query, whichever takes more."""
        for_time = self.first_stage_s / ASSUMED_CORES / ASSUMED_FIRST_STAGE_S
        return max(1, math.ceil(for_time), math.ceil(self.memory_gb / ASSUMED_MEMORY_GB))

    @property
    def machines(self) -> int:
        """Machines for the cores of all queries; at least one for each shard."""
        cores = self.rate * (self.first_stage_s + self.scoring_s) / ASSUMED_LOAD
        return max(self.shards, math.ceil(cores / ASSUMED_CORES))

    @property
    def network_mb_per_s(self) -> float:
        """Answers of all shards to the machines that merge them."""
        return self.rate * self.shards * ASSUMED_RESULT_BYTES / 1e6 if self.shards > 1 else 0.0

    @property
    def dollars(self) -> float:
        """The price of a million queries, if the machines are paid for all the time."""
        hours = MILLION / self.rate / 3600
        return self.machines * ASSUMED_CORES * ASSUMED_PRICE * hours

    @property
    def most(self) -> str:
        """What takes most of the cores."""
        return "first stage" if self.first_stage_s > self.scoring_s else "scoring"


def plans() -> Iterator[Plan]:
    """All that the table shows."""
    for network in NETWORKS:
        for millions in PICTURES:
            for rate in RATES:
                yield from (Plan(network, millions, rate, ann) for ann in (False, True))


def table() -> str:
    """The table, in Markdown."""
    heads: tuple[str, ...] = ("network", "pictures", "queries/s", "first stage", "disk", "memory", "core-s of it")
    heads += ("core-s of scoring", "shards", "machines", "network", "$ a million queries", "most cores go to")
    rows = [heads, ("---",) * len(heads), *map(_row, plans())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(plan: Plan) -> tuple[str, ...]:
    return (
        f"`{plan.network.variant}`",
        f"{plan.millions} M",
        f"{plan.rate:,}",
        "approximate" if plan.ann else "exact",
        f"{plan.disk_gb:,.0f} GB",
        f"{plan.memory_gb:,.1f} GB",
        f"{plan.first_stage_s:,.2g}",
        f"{plan.scoring_s:,.2g}",
        f"{plan.shards:,}",
        f"{plan.machines:,}",
        f"{plan.network_mb_per_s:,.0f} MB/s",
        f"{plan.dollars:,.0f}",
        plan.most,
    )


def sizes() -> str:
    """What a picture takes, in Markdown."""
    heads = ("network", "float32", "float16", "int8", "global vector", "its approximate copy")
    rows = [heads, ("---",) * len(heads)]
    width = _results("pairs")["sizes"]["d"]
    for network in NETWORKS:
        held = _results("pairs")["variants"][network.variant]["gallery_bytes_per_image"]
        copy = _million()["ann_bytes"] / _million()["items"] * width / _million()["width"]
        stored = (held[name] for name in ("float32", "float16", "int8"))
        rows.append((f"`{network.variant}`", *(f"{size / 1e3:,.0f} kB" for size in (*stored, 4 * width, copy))))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page() -> str:
    """docs/scale.md with the tables in their place."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n\n{sizes()}\n\n{table()}\n\n{END}{after}"


def main(write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/scale.md.")] = False) -> None:
    """Compute the tables of docs/scale.md."""
    if not write:
        typer.echo(f"{sizes()}\n\n{table()}")
        return
    fresh = page()
    with write_aside(PAGE) as aside:
        aside.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
