"""Sees what a mutant makes Python do: code that is compiled or run, programs, sockets, and files that are changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

MAX_NOTES = 20
PROGRAMS = frozenset(f"os.{name}" for name in ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty"))
PROGRAMS |= {"subprocess.Popen", "pty.spawn"}
CALLS = frozenset(("pickle.find_class", "code.__new__", "os.putenv"))
CHANGES = frozenset(
    f"os.{name}" for name in ("remove", "rename", "rmdir", "mkdir", "link", "symlink", "chmod", "truncate")
)
WATCHED = PROGRAMS | CALLS | CHANGES | {"open", "exec", "compile", "ctypes.dlopen"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """An audit hook, which notes forbidden events while it is armed. It can never be removed from a process.

    Args:
        folder: where files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self._armed = False
        self._folder = f"{folder}{os.sep}"
        sys.addaudithook(self._hear)

    def arm(self) -> None:
        """Forget earlier events, and note those that follow."""
        self.notes.clear()
        self._armed = True

    def disarm(self) -> None:
        """Note no more events."""
        self._armed = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed or len(self.notes) >= MAX_NOTES:
            return
        if event in WATCHED or event.startswith("socket."):
            self._armed = False  # looking at an event may cause others
            try:
                if self._is_forbidden(event, arguments):
                    self.notes.append(f"{event} {str(arguments)[:200]}")
            finally:
                self._armed = True

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            return bool(flags & WRITES) and not self._is_inside(arguments[0])
        if event in ("exec", "compile"):
            code = arguments[0]
            file = code.co_filename if isinstance(code, CodeType) else arguments[-1]
            return self._is_inside(file) or not _is_import()
        if event in CHANGES:
            return not all(self._is_inside(path) for path in arguments[:2] if isinstance(path, (str, bytes, Path)))
        if event == "ctypes.dlopen":
            return arguments[0] is not None and self._is_inside(arguments[0])
        return event in PROGRAMS or event in CALLS or event.startswith("socket.")

    def _is_inside(self, path: Any) -> bool:
        """Whether a path is in the folder; numbers are files that are open already."""
        if isinstance(path, int):
            return True
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "<none>"
        if text.startswith("<"):  # code that comes from no file
            return False
        return os.path.abspath(text).startswith(self._folder) or text == os.devnull  # noqa: PTH100  # of any text


def _is_import() -> bool:
    """Whether Python is importing a module, whose code lies with the packages: some are imported at their first use."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
