"""Writers that are killed at random moments, with the signal that no program can see coming."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from random import Random

from camp_sdk.progress import progress_bar
from tests.fuzz.operations import ABSENT, NEW, OLD, OPERATIONS, Operation

POLL_S = 0.001
PREPARED = (
    "camp_sdk.commands.app",
    "camp_sdk.retriever",
    "camp_sdk.export.bundling.writer",
    "camp_sdk.export.import_checkpoint",
    "camp_sdk.export.released.files",
    "camp_sdk.export.released.nltk_words",
    "onnxruntime",
    "onnxscript",
    "lightning",
    "camp_sdk.export.training.run",
)


def run_kills(bases: Path, folder: Path, count: int, seed: int, names: list[str] | None = None) -> list[str]:
    """Kill writers, and return a line for each torn output and each writer that could not run again.

    This process must have no threads, because it forks.

    Args:
        bases: the folder of the whole files.
        folder: for the outputs.
        count: the number of kills.
        seed: decides the moments.
        names: only these operations.
    """
    import importlib

    for module in PREPARED:  # once, not in every child
        importlib.import_module(module)
    chosen = [operation for operation in OPERATIONS if names is None or operation.name in names]
    whole = sum(operation.share for operation in chosen)
    failures: list[str] = []
    with progress_bar("killing writers", count) as advance:
        done = sum_of_shares = 0
        for operation in chosen:
            sum_of_shares += operation.share
            kills = round(count * sum_of_shares / whole) - done
            done += kills
            failures += _kill_often(operation, bases, folder, kills, Random(f"{seed}:{operation.name}"))
            advance(kills)
    return failures


def _kill_often(operation: Operation, bases: Path, folder: Path, kills: int, rng: Random) -> list[str]:
    if not kills:
        return []
    case = _Case(operation, bases, folder)
    took = case.measured()
    seen = [case.kill(rng.uniform(0, took)) for _ in range(kills)]
    states = {state: [found for found, _ in seen].count(state) for state in (ABSENT, OLD, NEW)}
    print(f"{operation.name}: {took:.2f} s, {kills} kills: {states}", file=sys.stderr)
    return [f"{operation.name}: {failure}" for _, failure in seen if failure]


class _Case:
    """One operation in a folder of its own."""

    def __init__(self, operation: Operation, bases: Path, folder: Path) -> None:
        self._operation, self._bases = operation, bases
        self._folder = folder / operation.name.replace(" ", "-")
        self._printed = folder / "printed"

    def measured(self) -> float:
        """How long the operation takes, in seconds, when nothing kills it."""
        self._prepare()
        begun = time.monotonic()
        self._require("run")
        took = time.monotonic() - begun
        if (state := self._state()) != NEW:
            raise AssertionError(f"{self._operation.name} left the output {state}: {self._printed.read_text()[-2000:]}")
        return took

    def kill(self, after_s: float) -> tuple[str, str]:
        """Kill the operation after a time, look at its output, and run it again.

        Returns:
            The state of the output, and what is wrong; empty if nothing is.
        """
        self._prepare()
        self._child("run", after_s)
        try:
            state = self._state()
            if self._operation.once and state == NEW:
                return state, ""
            self._require("run")
            again = self._state()
        except AssertionError as error:
            return "torn", f"killed after {after_s:.3f} s: {error}"
        return state, "" if again == NEW else f"killed after {after_s:.3f} s: running again left the output {again}"

    def _prepare(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._require("before")

    def _require(self, step: str) -> None:
        if self._child(step):
            raise AssertionError(f"{step} failed: {self._printed.read_text(errors='replace')[-2000:]}")

    def _state(self) -> str:
        self._require("state")
        return (self._folder / "state").read_text()

    def _child(self, step: str, kill_after_s: float | None = None) -> int:
        """Run a step in a forked process, and return its status; kill it after a time."""
        if not (child := os.fork()):
            self._step(step)
        deadline = None if kill_after_s is None else time.monotonic() + kill_after_s
        while True:
            ended, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
            if ended:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                deadline = None
            time.sleep(POLL_S)

    def _step(self, step: str) -> None:
        status = 1
        try:
            printed = os.open(self._printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            result = getattr(self._operation, step)(self._bases, self._folder)
            if result:
                (self._folder / "state").write_text(result)
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
