"""What a forked process does with objects it inherited.

A fork copies all memory, but of the threads only the one that forks. Inference libraries wait for their other threads
when they run, when their objects are destroyed, and when the process exits.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """An object that must know of a fork."""

    def forked(self) -> None:
        """Called in the new process, right after the fork."""


_LIVE: WeakSet[Any] = WeakSet()
_LIBRARIES: set[str] = set()  # modules whose objects have been watched, even if they are gone


def watch_forks(thing: Inherited) -> None:
    """Call an object's `forked` in every process that inherits it.

    Args:
        thing: the object; it is forgotten when it is garbage-collected.
    """
    _LIVE.add(thing)
    _LIBRARIES.add(type(thing).__module__)


def abandon(natives: Iterable[Any]) -> None:
    """Keep the objects of a library from ever being destroyed; their memory is shared with the process that owns them.

    Args:
        natives: the objects.
    """
    for native in natives:
        # A reference that nobody gives back: one that a module held would be dropped at the end of the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


def _after_fork() -> None:
    for thing in list(_LIVE):
        thing.forked()
    if _LIBRARIES:
        _exit_at_once()


def _exit_at_once() -> None:
    """Let the process end without the destructors of the libraries that were loaded before the fork.

    They wait for threads that are not there. Python has ended by then, and what was loaded later has been destroyed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc; it calls the last handler first, with the exit status
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
        libc.__cxa_atexit(ctypes.cast(libc.fflush, ctypes.c_void_p), None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
