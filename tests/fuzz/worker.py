"""The process that reads mutants, one after another: `python -m tests.fuzz.worker BASES FOLDER SEED`.

Requests and answers are lines of JSON on standard input and output. What targets print goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tests.fuzz.containers import CANARY
from tests.fuzz.guard import Guard
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.table import ANOTHER, CODE, MEMORY, NOT_FINITE, OTHER_EXCEPTION, PROJECT_ERROR, SAME

MEMORY_LIMIT = 1 << 30  # that a mutant may add
ADDRESSES = 16 << 30  # that a worker may add: requests beyond it fail, and show as MemoryError
MAX_MESSAGE = 2000
WORN = 400 << 20  # bytes that the mutants of one worker may leave behind before another takes its place
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return resident()


class Worker:
    """Reads mutants in this process.

    Args:
        bases: the folder of the whole files.
        folder: this worker's own folder.
        seed: of the campaign.
    """

    def __init__(self, bases: Path, folder: Path, seed: int) -> None:
        self._bases, self._seed = bases, seed
        self._mutant = folder / "mutant"
        self._here = folder / "here"
        self._here.mkdir(parents=True, exist_ok=True)
        os.chdir(self._here)
        self._guard = Guard(folder)
        self._whole: dict[tuple[str, str, int], Any] = {}  # answers for the whole files, by kind, base and way
        self._floor = 0
        self._limited = False

    def prepare(self, kind: Kind, number: int) -> None:
        """Read the whole file that a mutant is made of, if it was not read before."""
        key = self._key(kind, number)
        if key in self._whole:
            return
        self._fresh()
        kind.write(self._bases / key[1], None, self._mutant)
        self._whole[key] = kind.target(self._bases, self._mutant, key[2])
        gc.collect()
        gc.freeze()
        self._floor = resident()

    def _key(self, kind: Kind, number: int) -> tuple[str, str, int]:
        return kind.name, kind.base(self._seed, number), kind.way(number)

    def read(self, kind: Kind, number: int) -> dict[str, Any]:
        """Read a mutant, and return its outcome, the reason, and whether another worker should go on."""
        self._fresh()
        kind.generate(self._bases, self._seed, number, self._mutant)
        self._limit()
        before = resident()
        _reset_peak()
        self._guard.arm()
        try:
            answer = kind.target(self._bases, self._mutant, kind.way(number))
        except BaseException as error:
            self._guard.disarm()
            outcome, detail = _judged_error(error)
        else:
            self._guard.disarm()
            outcome, detail = self._judged(self._whole[self._key(kind, number)], answer)
        if (taken := _peak() - before) > MEMORY_LIMIT:
            outcome, detail = MEMORY, f"{taken >> 20} MB; {detail}"
        if self._guard.notes or (self._here / CANARY).exists():
            outcome, detail = CODE, "; ".join(self._guard.notes) or "the canary is there"
            self._clear()
        if resident() > self._floor + WORN // 4:
            gc.collect()
        return {"outcome": outcome, "detail": detail, "worn": resident() > self._floor + WORN}

    def _clear(self) -> None:
        for path in self._here.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _limit(self) -> None:
        if not self._limited:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
            resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESSES, resource.RLIM_INFINITY))
            self._limited = True

    def _fresh(self) -> None:
        shutil.rmtree(self._mutant, ignore_errors=True)
        self._mutant.mkdir()

    def _judged(self, whole: dict[str, Any], answer: dict[str, Any]) -> tuple[str, str]:
        import numpy as np

        numbers = {name: np.asarray(value) for name, value in answer.items() if not isinstance(value, str)}
        for name, value in numbers.items():
            if not np.isfinite(value).all():
                return NOT_FINITE, name
        texts = all(whole.get(name) == value for name, value in answer.items() if isinstance(value, str))
        same = texts and all(
            np.shape(whole.get(name)) == value.shape and np.allclose(whole[name], value, 1e-4, 1e-4)
            for name, value in numbers.items()
        )
        return (SAME if same else ANOTHER), ""


def _judged_error(error: BaseException) -> tuple[str, str]:
    from camp_sdk import CampError

    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return OTHER_EXCEPTION, repr(error)
    try:
        message = str(error)
    except Exception as second:
        return OTHER_EXCEPTION, f"{type(error).__name__} without a message: {second!r}"
    if not isinstance(error, (CampError, OSError)):
        return OTHER_EXCEPTION, "".join(traceback.format_exception(error))[-3000:]
    if len(message) > MAX_MESSAGE and "\n" in message:
        return OTHER_EXCEPTION, f"a message of {len(message)} characters on several lines: {message[:300]}"
    return PROJECT_ERROR, f"{type(error).__name__}: {message[:300]}"


def main() -> None:
    """Answer requests until standard input ends."""
    bases, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests, worker = sys.stdin, Worker(bases, folder, seed)
    for line in requests:
        name, number, way = json.loads(line)
        kind = KINDS[name] if way is None else replace(KINDS[name], ways=(0,) * way + (1,))
        worker.prepare(kind, number)
        _send(answers, {"started": time.time()})
        _send(answers, worker.read(kind, number))


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
