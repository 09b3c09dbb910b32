"""Every error camp-sdk raises on purpose.

    CampError
    +-- InputError            what the caller passed cannot be used (also a ValueError)
    +-- BundleError           a bundle, gallery, checkpoint or data set on disk is broken or does not fit
    +-- BusyError             an index has another writer, or a server is busy, for longer than the caller waits
    +-- BackendError          an inference engine is not there or does not work on this machine
        +-- MissingExtraError an optional package is not installed (also an ImportError)

A message says what came, what was expected and what to do next.
"""

from __future__ import annotations


def install_command(extra: str) -> str:
    """How an extra is installed. There is no release yet: from a clone."""
    return f"pip install '.[{extra}]' (in a clone of camp-sdk)"


class CampError(Exception):
    """Base of all errors of this package: catch it to catch them all."""


class InputError(CampError, ValueError):
    """The caller's input cannot be used: the message names the item, what came and what was expected."""


class BundleError(CampError):
    """A file of a bundle, gallery, checkpoint or data set is missing, altered, too new or of another kind."""


class BusyError(CampError):
    """An index is written by somebody else (the message says by whom, and since when), or a server is busy.

    Try again later.
    """


class BackendError(CampError):
    """An inference engine asked for is not available here, or failed to open a graph."""


class MissingExtraError(BackendError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: {install_command(extra)}")
        self._arguments = (package, extra)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str], dict[str, object]]:
        return type(self), self._arguments, self.__dict__  # an exception is rebuilt from its message otherwise
