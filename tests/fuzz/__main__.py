"""The campaign's command: `python -m tests.fuzz [all|mutants|kills|threads] ...`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from camp_sdk.progress import progress_bar
from tests.fuzz.kills import run_kills
from tests.fuzz.kinds import ALL, KINDS, counts
from tests.fuzz.manythreads import run_threads
from tests.fuzz.table import Outcome, as_json, counted, failures_of, table_of
from tests.fuzz.workers import Pool, saved

PARTS = ("mutants", "kills", "threads")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Damage every file that a stranger can give.")
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="bases, workers and failures go there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=20_000, help="of all kinds together")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only these kinds; may be repeated")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="read one mutant again, and keep it under failures/")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--count", type=int, default=100, help="of kills")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rankings", type=int, default=1000, help="of each thread")
    return parser.parse_args(arguments)


def run_mutants(given: argparse.Namespace, bases: Path) -> list[Outcome]:
    """Read the mutants of a campaign, print their table, and keep those that did harm."""
    pool = Pool(bases, given.output / "workers", given.seed, given.workers)
    outcomes: list[Outcome] = []
    if given.only:
        kind, _, number = given.only.rpartition(":")
        outcomes.append(pool.alone(kind, int(number)))
        print(outcomes[0].outcome, outcomes[0].detail, saved(outcomes[0], bases, given.seed, given.output / "failures"))
        return list(failures_of(outcomes))
    wanted = counts(given.mutants, [KINDS[name] for name in given.kind] if given.kind else list(ALL))
    with progress_bar("reading mutants", sum(wanted.values())) as advance:

        def note(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if outcome.failed:
                saved(outcome, bases, given.seed, given.output / "failures")
            advance(1)

        pool.run(wanted, on_outcome=note)
    found = counted(outcomes)
    Console(width=200).print(table_of(found))
    if given.json:
        given.json.write_text(json.dumps(as_json(found, outcomes), indent=2) + "\n", encoding="utf-8")
    return list(failures_of(outcomes))


def main(arguments: Sequence[str]) -> int:
    """Run the parts that were asked for, and return the exit code: 1 if anything failed."""
    given = options(arguments)
    given.output = given.output.absolute()
    bases = given.output / "bases"
    # In a process of its own: this one must hold no engine and no thread, because the kills fork it.
    built = f"from pathlib import Path; from tests.fuzz.bases import build_bases; build_bases(Path({str(bases)!r}))"
    subprocess.run([sys.executable, "-c", built], check=True)
    failures: list[str] = []
    if given.part in ("all", "mutants"):
        harmful = run_mutants(given, bases)
        failures += [f"{one.kind}:{one.number} {one.outcome}: {one.detail[-300:]}" for one in harmful]
    if given.part in ("all", "kills"):
        failures += run_kills(bases, given.output / "kills", given.count, given.seed)
    if given.part in ("all", "threads"):
        failures += run_threads(bases / "features", given.threads, given.rankings)
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
