"""Report the progress of a build (a TensorRT builder's nested phases, as one share from 0 to 1), and stop a build."""

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
    """Receives the phases of a build and reports the finished share, which never decreases.

    After each step the builder asks whether to continue. The answer is no once ``cancelled`` is set or `on_progress`
    has raised. The exception is kept in ``failure``, because it must not propagate through the library. The library
    calls from several threads at once.

    Args:
        on_progress: receives the finished share of the build, 0..1.
    """

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self.cancelled = False
        self.failure: BaseException | None = None
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0
        self._lock = threading.Lock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Start a phase.

        Args:
            name: the phase's name.
            parent: the enclosing phase, of which this phase is part of one step; None for an outermost phase.
            steps: the number of steps in the phase.
        """
        with self._lock:
            self._phases[name] = _Phase(parent or None, max(1, steps))

    def step_complete(self, name: str, step: int) -> bool:
        """Finish one step of a phase.

        Args:
            name: the phase's name.
            step: the step's number, counted from 0.

        Returns:
            Whether the build should continue.
        """
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._report()
        return not self.cancelled and self.failure is None

    def phase_finish(self, name: str) -> None:
        """End a phase, possibly before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def _report(self) -> None:
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
    """A progress monitor of the library's own type, which passes every call on to ``progress``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library is loaded on demand and has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_finish(phase_name)

    return Monitor()
