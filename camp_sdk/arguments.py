"""Checks of arguments, made before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import InputError

Advance = Callable[[int], None]  # receives the number of items just done
MAX_THREADS = 1024  # engines start as many threads as asked for, however few cores there are


def silent(items: int) -> None:
    """A progress callback that does nothing."""


def is_whole(count: Any) -> bool:
    """Whether a value is a whole number, of Python or of numpy."""
    return isinstance(count, (int, np.integer)) and not isinstance(count, bool)


def is_several(items: Any) -> bool:
    """Whether a value can be iterated over. A numpy array without axes claims to be iterable, but is not."""
    return isinstance(items, Iterable) and getattr(items, "ndim", 1) != 0


def checked_count(name: str, count: Any, most: int | None = None) -> int | None:
    """Return a count as an int, or None.

    Args:
        name: The name of the argument, for the message.
        count: The value that the caller passed.
        most: The largest valid count; None for no limit.

    Raises:
        InputError: The value is neither None nor a whole number from 1 to ``most``.
    """
    if count is None:
        return None
    if not is_whole(count) or count < 1 or (most and count > most):
        sizes = f"from 1 to {most}" if most else "1 or more"
        raise InputError(f"{name} is {count!r}: expected a whole number, {sizes}, or None")
    return int(count)


def check_top_k(top_k: Any, shortlist: Any) -> None:
    """Raise InputError unless ``top_k`` is 1 or more, and ``shortlist`` is None, 0 or at least ``top_k``."""
    if not is_whole(top_k) or top_k < 1:
        raise InputError(f"`top_k` is {top_k!r}: expected a whole number, 1 or more")
    if shortlist is not None and (not is_whole(shortlist) or 0 != shortlist < top_k):
        expected = f"a whole number, at least `top_k` = {top_k}, or 0 to score every item"
        raise InputError(f"`shortlist` is {shortlist!r}: expected {expected}")


def check_offset(offset: Any) -> None:
    """Raise InputError unless ``offset`` is a whole number, 0 or more."""
    if not is_whole(offset) or offset < 0:
        raise InputError(f"`offset` is {offset!r}: expected a whole number, 0 or more")


def checked_names(names: Iterable[Any] | None) -> list[str] | None:
    """Return names as strings, or None.

    Raises:
        InputError: The argument is not a list, or a name is neither a string nor a path.
    """
    if names is None:
        return None
    if isinstance(names, (str, bytes)) or not is_several(names):
        raise InputError(f"names is {names!r}: expected a list of strings or paths")
    listed = list(names)
    for index, name in enumerate(listed):
        if not isinstance(name, (str, Path)):
            raise InputError(f"name {index} is {name!r}: expected a string or a path")
    return [str(name) for name in listed]


def _value(item: Any) -> Any:
    """What distinguishes an item from others: the file it stands for, its own value, or its identity."""
    if isinstance(item, os.PathLike):
        return Path(os.fsdecode(item))
    return item if isinstance(item, (str, bytes)) else id(item)


def distinct(items: Sequence[Any]) -> tuple[list[Any], NDArray[np.intp]]:
    """Remove duplicates: strings, paths and bytes are compared by value, arrays and PIL images by identity.

    Returns:
        Each distinct item once, and for every item the index of its first occurrence in that list.
    """
    places: dict[Any, int] = {}
    kept: list[Any] = []
    where = np.empty(len(items), np.intp)
    for index, item in enumerate(items):
        key = _value(item)
        if key not in places:
            places[key] = len(kept)
            kept.append(item)
        where[index] = places[key]
    return kept, where
