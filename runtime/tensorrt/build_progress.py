"""How far a build is: the nested phases a TensorRT builder reports, as one share from 0 to 1; and how to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Hears the phases of a build; `on_progress` hears the share that is done, which never falls.

    The builder asks after each step whether to go on: not once ``cancelled`` is set, or `on_progress` raised, which is kept in
    ``failure`` because no exception may pass through the library. The library calls from several threads at once.
    """

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self.cancelled = False
        self.failure: BaseException | None = None
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0
        self._lock = threading.Lock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, of so many steps, within a step of its parent if it has one."""
        with self._lock:
            self._phases[name] = _Phase(parent or None, max(1, steps))

    def step_complete(self, name: str, step: int) -> bool:
        """Step number ``step`` of a phase, counted from 0, is done; whether the build is to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._tell()
        return not self.cancelled and self.failure is None

    def phase_finish(self, name: str) -> None:
        """A phase is over, perhaps before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self) -> None:
        share = max((self._share(name) for name, phase in self._phases.items() if phase.parent is None), default=0.0)
        self._reached = max(self._reached, share)
        try:
            self._on_progress(self._reached)
        except BaseException as error:
            self.failure = self.failure or error

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = sum(
            self._share(child) for child, other in self._phases.items() if other.parent == name and child != name
        )
        return min(1.0, (phase.done + min(inner, 1.0)) / phase.steps)


def monitor_of(trt: Any, progress: BuildProgress) -> Any:
    """The library's own progress monitor, which reports to ``progress``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library is loaded where it is needed, and has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_finish(phase_name)

    return Monitor()
