"""What callers pass, looked at before any work is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import InputError

Advance = Callable[[int], None]  # hears of so many items just done
MOST_THREADS = 1024  # engines start as many as they are told, whatever cores there are


def silent(items: int) -> None:
    """The progress callback that does nothing."""


def is_whole(count: Any) -> bool:
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(count, (int, np.integer)) and not isinstance(count, bool)


def is_several(items: Any) -> bool:
    """Whether one can walk over it: an array of no axes says that it is iterable, too."""
    return isinstance(items, Iterable) and getattr(items, "ndim", 1) != 0


def checked_count(name: str, count: Any, most: int | None = None) -> int | None:
    """A whole number from 1 to ``most``, or None. Raises InputError, by the argument's name, for anything else."""
    if count is None:
        return None
    if not is_whole(count) or count < 1 or (most and count > most):
        sizes = f"from 1 to {most}" if most else "1 or more"
        raise InputError(f"{name} is {count!r}: expected a whole number, {sizes}, or None")
    return int(count)


def check_top_k(top_k: Any, shortlist: Any) -> None:
    """Raise InputError unless top_k is 1 or more, and shortlist no shorter, or None."""
    if not is_whole(top_k) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}: expected a whole number, 1 or more")
    if shortlist is not None and (not is_whole(shortlist) or shortlist < top_k):
        raise InputError(f"shortlist is {shortlist!r}: expected a whole number, at least top_k = {top_k}, or None")


def checked_names(names: Iterable[Any] | None) -> list[str] | None:
    """Names as strings. Raises InputError unless it is a list, for the first that is neither a string nor a path."""
    if names is None:
        return None
    if isinstance(names, (str, bytes)) or not is_several(names):
        raise InputError(f"names is {names!r}: expected a list of strings or paths")
    listed = list(names)
    for index, name in enumerate(listed):
        if not isinstance(name, (str, Path)):
            raise InputError(f"name {index} is {name!r}: expected a string or a path")
    return [str(name) for name in listed]


def distinct(items: Sequence[Any]) -> tuple[list[Any], NDArray[np.intp]]:
    """Each distinct item once (strings, paths and bytes by value, arrays and PIL images by identity), and where each went."""
    places: dict[Any, int] = {}
    kept: list[Any] = []
    where = np.empty(len(items), np.intp)
    for index, item in enumerate(items):
        key = item if isinstance(item, (str, Path, bytes)) else id(item)
        if key not in places:
            places[key] = len(kept)
            kept.append(item)
        where[index] = places[key]
    return kept, where
