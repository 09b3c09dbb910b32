"""Metadata of items: JSON objects, and the rows of `fields` by which `where` finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

MAX_CHARACTERS = 1 << 20  # of an item's metadata, in JSON
MAX_LEVELS = 16
MAX_WHOLE = (1 << 63) - 1
# The kinds of values in `fields`; an element of a list has its kind + ELEMENT. A list or an object is found as a whole
# by the hash of its JSON.
NULL, BOOLEAN, NUMBER, TEXT, WHOLE = range(5)
ELEMENT = 10
FieldRow = tuple[str, int, Any]


def checked_metadata(metadata: Any, name: str) -> str:
    """The JSON of an item's metadata.

    Args:
        metadata: A mapping of strings to values that JSON has.
        name: The item, for messages.

    Raises:
        InputError: It is not; the message names the item and the value.
    """
    if not isinstance(metadata, Mapping):
        raise InputError(f"the metadata of {name} are {brief(metadata)}: expected a dict")
    _check(metadata, name, MAX_LEVELS)
    text = json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the metadata of {name} take {len(text)} characters: expected at most {MAX_CHARACTERS}")
    return text


def read_metadata(text: Any, name: str) -> dict[str, Any]:
    """The metadata that an index holds.

    Raises:
        BundleError: The text is not the JSON of an object.
    """
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BundleError(f"the metadata of {name} are damaged: update the item, or remove it and add it again")
    return found


def field_rows(metadata: Mapping[str, Any]) -> set[FieldRow]:
    """The rows of `fields` of one item, each (field, kind, value).

    Args:
        metadata: Its checked metadata.
    """
    return set(_rows(metadata, ""))


def kind_and_value(value: Any) -> tuple[int, Any]:
    """How a value stands in `fields`.

    Args:
        value: A checked value.
    """
    if value is None:
        return NULL, 0
    if isinstance(value, bool):
        return BOOLEAN, int(value)
    if isinstance(value, (int, float)):
        return NUMBER, value
    if isinstance(value, str):
        return TEXT, value
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return WHOLE, hashlib.sha256(canonical.encode()).hexdigest()


def check_value(value: Any, name: str) -> None:
    """Check that a value is one that JSON has.

    Raises:
        InputError: It is not.
    """
    _check(value, name, MAX_LEVELS)


def _rows(metadata: Mapping[str, Any], prefix: str) -> Iterator[FieldRow]:
    for key, value in metadata.items():
        field = f"{prefix}{key}"
        yield (field, *kind_and_value(value))
        if isinstance(value, Mapping):
            yield from _rows(value, f"{field}.")
        elif isinstance(value, (list, tuple)):
            for element in value:
                kind, stored = kind_and_value(element)
                yield field, kind + ELEMENT, stored


def _check(value: Any, name: str, levels: int) -> None:
    if not levels:
        raise InputError(f"{name} holds lists or dicts in each other: expected at most {MAX_LEVELS} levels")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InputError(f"{name} has the field {brief(key)}: expected a string")
            _check(key, name, levels)
            _check(inner, name, levels - 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check(inner, name, levels - 1)
    elif not _is_plain(value):
        raise InputError(
            f"{name} holds {brief(value)}: expected None, booleans, finite numbers, whole ones of at most 64 bits, "
            "text in Unicode, and lists and dicts of these"
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) <= MAX_WHOLE)
