"""The pool of worker processes, and what it sees of them: crashes, hangs and memory."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import KINDS
from tests.fuzz.table import CRASH, HANG, MEMORY, OPENVINO, PROJECT_ERROR, Outcome
from tests.fuzz.worker import MEMORY_LIMIT, PAGE

ROOT = Path(__file__).parents[2]
HANG_S = 10.0
PREPARE_S = 180.0  # to import packages and read the whole files of a kind
LOOK_S = 0.05
MUTANTS_AT_ONCE = 32  # of one kind: a worker that has read its whole files goes on with it


class Process:
    """A worker process.

    Args:
        bases: the folder of the whole files.
        folder: the worker's own folder.
        seed: of the campaign.
        hang_s: how long a mutant may take.
    """

    def __init__(self, bases: Path, folder: Path, seed: int, hang_s: float) -> None:
        self.folder, self.hang_s = folder, hang_s
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Mutants of files in the cache folder are found there.
        places = {"TMPDIR": str(folder), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "mutant")}
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
        with (folder / "printed").open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(bases), str(folder), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                cwd=ROOT,
                env=os.environ | places | quiet,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.answers, self._requests = self._process.stdout, self._process.stdin
        self.task: tuple[str, int] | None = None
        self._pending = b""
        self._started = False
        self._begun = 0.0
        self._memory = 0

    def ask(self, task: tuple[str, int], way: int | None = None) -> None:
        """Let the worker read a mutant."""
        self.task, self._started, self._begun = task, False, time.monotonic()
        try:
            self._requests.write(json.dumps([*task, way]).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:  # its end shows when its answer is read
            pass

    def answer(self) -> dict[str, Any] | None:
        """The answer that has come by now, None if there is no whole one; call it if there is something to read."""
        chunk = os.read(self.answers.fileno(), 1 << 16)
        if not chunk:
            return {"outcome": CRASH, "detail": self._last_words()}
        self._pending += chunk
        while b"\n" in self._pending:
            line, _, self._pending = self._pending.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if "started" not in message:
                return message
            self._started, self._begun, self._memory = True, time.monotonic(), self._resident()
        return None

    def overdue(self) -> dict[str, Any] | None:
        """The outcome if the mutant takes too long or too much memory by now; the worker is killed then."""
        taken = self._resident() - self._memory
        if self._started and taken > MEMORY_LIMIT:
            self.end()
            return {"outcome": MEMORY, "detail": f"{taken >> 20} MB"}
        if time.monotonic() - self._begun > (self.hang_s if self._started else PREPARE_S):
            self.end()
            return {"outcome": HANG, "detail": f"more than {self.hang_s:g} s"}
        return None

    def _resident(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0

    def _last_words(self) -> str:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        printed = (self.folder / "printed").read_bytes()[-1500:].decode(errors="replace")
        when = "" if self._started else "while it read the whole files; "
        return f"{when}{name}: {printed}"

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self.answers.close()


class Pool:
    """Reads mutants in worker processes.

    Args:
        bases: the folder of the whole files.
        folder: for the workers' own folders.
        seed: of the campaign.
        size: the number of workers.
        hang_s: how long a mutant may take.
    """

    def __init__(self, bases: Path, folder: Path, seed: int, size: int = 2, hang_s: float = HANG_S) -> None:
        self._bases, self._folder, self._seed, self._size, self._hang_s = bases, folder, seed, size, hang_s

    def run(self, counts: Mapping[str, int], start: int = 0, on_outcome: Callable[[Outcome], None] = print) -> None:
        """Read the mutants of some kinds.

        Args:
            counts: how many mutants of each kind.
            start: the first number.
            on_outcome: receives the outcome of each.
        """
        tasks = _Tasks(counts, start)
        with selectors.DefaultSelector() as selector:
            for number in range(self._size):
                self._begin(selector, tasks, number)
            while selector.get_map():
                self._look(selector, tasks, on_outcome)

    def _begin(self, selector: selectors.BaseSelector, tasks: _Tasks, number: int) -> None:
        if tasks.left(number):
            process = self._open(number)
            selector.register(process.answers, selectors.EVENT_READ, (process, number))
            process.ask(tasks.next(number))

    def _open(self, number: int) -> Process:
        return Process(self._bases, self._folder / f"worker-{number}", self._seed, self._hang_s)

    def _look(self, selector: selectors.BaseSelector, tasks: _Tasks, on_outcome: Callable[[Outcome], None]) -> None:
        ready = {key.fd for key, _ in selector.select(LOOK_S)}
        for key in list(selector.get_map().values()):
            process, number = key.data
            answer = process.answer() if key.fd in ready else process.overdue()
            if answer is None:
                continue
            ended = answer["outcome"] in (CRASH, HANG, MEMORY)
            if not ended and not answer.get("worn") and tasks.left(number):
                on_outcome(Outcome(*process.task, answer["outcome"], answer["detail"]))
                process.ask(tasks.next(number))
                continue
            selector.unregister(process.answers)
            process.end()
            outcome = Outcome(*process.task, answer["outcome"], answer["detail"])
            on_outcome(self._confirmed(outcome, number) if ended else outcome)
            self._begin(selector, tasks, number)

    def _confirmed(self, outcome: Outcome, number: int) -> Outcome:
        """A process that ended may owe it to an earlier mutant, or to a busy machine: read the last one alone again."""
        again = self.alone(outcome.kind, outcome.number, number)
        way = KINDS[outcome.kind].without_openvino
        if again.outcome == CRASH and way is not None:
            by_onnx_runtime = self.alone(outcome.kind, outcome.number, number, way)
            if by_onnx_runtime.outcome == PROJECT_ERROR:
                return Outcome(outcome.kind, outcome.number, OPENVINO, by_onnx_runtime.detail)
        if again.failed:
            return again
        if outcome.outcome == HANG:
            return again
        return Outcome(outcome.kind, outcome.number, outcome.outcome, f"only after other mutants: {outcome.detail}")

    def alone(self, kind: str, number: int, worker: int = 0, way: int | None = None) -> Outcome:
        """Read one mutant in a process of its own; in another way than its number's, if one is given."""
        process = self._open(worker)
        try:
            process.ask((kind, number), way)
            with selectors.DefaultSelector() as selector:
                selector.register(process.answers, selectors.EVENT_READ)
                while True:
                    answer = process.answer() if selector.select(LOOK_S) else process.overdue()
                    if answer is not None:
                        return Outcome(kind, number, answer["outcome"], answer["detail"])
        finally:
            process.end()


class _Tasks:
    """The mutants to read, in runs of one kind. Some workers begin with the kinds that need PyTorch, others end."""

    def __init__(self, counts: Mapping[str, int], start: int) -> None:
        runs = [
            deque((name, start + number) for number in range(first, min(first + MUTANTS_AT_ONCE, count)))
            for name, count in sorted(counts.items(), key=lambda item: KINDS[item[0]].heavy)
            for first in range(0, count, MUTANTS_AT_ONCE)
        ]
        self._runs = deque(runs)
        self._own: dict[int, deque[tuple[str, int]]] = {}

    def left(self, worker: int) -> bool:
        return bool(self._runs or self._own.get(worker))

    def next(self, worker: int) -> tuple[str, int]:
        own = self._own.get(worker)
        if not own:
            own = self._own[worker] = self._runs.popleft() if worker % 2 == 0 else self._runs.pop()
        return own.popleft()


def saved(outcome: Outcome, bases: Path, seed: int, folder: Path) -> Path:
    """Write a failing mutant, with the reason and how to read it again, and return its folder.

    Args:
        outcome: of the mutant.
        bases: the folder of the whole files.
        seed: of the campaign.
        folder: for all failures.
    """
    target = folder / f"{outcome.kind}-{outcome.number}"
    shutil.rmtree(target, ignore_errors=True)
    (target / "mutant").mkdir(parents=True)
    KINDS[outcome.kind].generate(bases, seed, outcome.number, target / "mutant")
    again = f"python -m tests.fuzz mutants --seed {seed} --only {outcome.kind}:{outcome.number}"
    (target / "README").write_text(f"{outcome.outcome}; again: {again}\n\n{outcome.detail}\n", encoding="utf-8")
    return target
