"""What a forked process does with objects it inherited.

A fork copies memory, but only the thread that forks. Inference libraries wait for their other threads when they run, and
also when they are closed, collected, or when the process exits.
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


def watch_forks(thing: Inherited) -> None:
    """Call an object's `forked` in every process that inherits it.

    Args:
        thing: the object; it is forgotten when it is garbage-collected.
    """
    _LIVE.add(thing)


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
