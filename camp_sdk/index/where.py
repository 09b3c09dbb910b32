"""Conditions on metadata: checked, and evaluated by statements whose text is fixed and whose values are parameters."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.index.metadata import ELEMENT, NUMBER, TEXT, check_value, kind_and_value
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

Mask = NDArray[np.bool_]
Select = Callable[["Lookup"], Mask]  # the mask of one lookup

RANGES = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = ("equal", "in", *RANGES, "contains", "exists")
COMBINED = ("and", "or", "not")
MAX_LEVELS, MAX_CONDITIONS = 16, 1000
EQUAL = "SELECT number FROM fields WHERE field = ? AND kind = ? AND value = ?"
EXISTS = "SELECT number FROM fields WHERE field = ? AND kind < ?"
CONTAINS = "SELECT number FROM fields WHERE field = ? AND kind = ? AND instr(value, ?) > 0"


@dataclass(frozen=True)
class Lookup:
    """The items that one statement finds.

    Args:
        statement: A SELECT of numbers, whose text holds no value.
        values: Its parameters.
    """

    statement: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Condition:
    """A checked condition: a lookup, or others combined.

    Args:
        kind: "lookup", "and", "or" or "not".
        parts: What is combined; for a lookup, itself.
    """

    kind: str
    parts: tuple[Condition | Lookup, ...]

    def mask(self, select: Select) -> Mask:
        """Which items meet the condition.

        Args:
            select: The mask of one lookup.
        """
        masks = (select(part) if isinstance(part, Lookup) else part.mask(select) for part in self.parts)
        found = next(masks).copy()
        if self.kind == "not":
            return ~found
        for mask in masks:
            if self.kind == "or":
                found |= mask
            else:
                found &= mask
        return found


def compile_where(where: Any) -> Condition | None:
    """Check conditions, as `Index.where` takes them.

    Returns:
        The condition; None for an empty dict, which every item meets.

    Raises:
        InputError: They are not understood; the message says where and why.
    """
    parts = list(_conditions(where, MAX_LEVELS))
    if sum(map(_size, parts)) > MAX_CONDITIONS:
        raise InputError(f"`where` holds more than {MAX_CONDITIONS} conditions: expected fewer")
    return _all(parts) if parts else None


def _conditions(where: Any, levels: int) -> Iterator[Condition]:
    if not isinstance(where, Mapping):
        raise InputError(f"`where` holds {brief(where)}: expected a dict, such as {{'album': '2024'}}")
    if not levels:
        raise InputError(f"`where` is nested too deeply: expected at most {MAX_LEVELS} levels")
    for field, wanted in where.items():
        if not isinstance(field, str):
            raise InputError(f"`where` names the field {brief(field)}: expected a string")
        check_value(field, "`where`")
        yield _combined(field, wanted, levels) if field in COMBINED else _field(field, wanted)


def _combined(kind: str, wanted: Any, levels: int) -> Condition:
    if kind == "not":
        inner = list(_conditions(wanted, levels - 1))
        if not inner:
            raise InputError("`where`: 'not' takes a dict of at least one condition")
        return Condition("not", (_all(inner),))
    if not isinstance(wanted, (list, tuple)) or not wanted:
        raise InputError(f"`where`: {kind!r} takes a list of at least one dict, not {brief(wanted)}")
    parts = [list(_conditions(one, levels - 1)) for one in wanted]
    if not all(parts):
        raise InputError(f"`where`: {kind!r} holds an empty dict: expected at least one condition in each")
    return Condition(kind, tuple(map(_all, parts)))


def _field(field: str, wanted: Any) -> Condition:
    if not isinstance(wanted, Mapping):
        return _operator(field, "equal", wanted)
    unknown = [name for name in wanted if name not in OPERATORS]
    if unknown or not wanted:
        found = f"the operator {brief(unknown[0])}" if unknown else "no operator"
        raise InputError(
            f"`where`: {brief(field)} has {found}: expected {', '.join(OPERATORS)}; a field of an object is "
            "named with a dot, as in 'camera.maker'"
        )
    ranges = {name: value for name, value in wanted.items() if name in RANGES}
    parts = [_operator(field, name, value) for name, value in wanted.items() if name not in RANGES]
    return _all([*parts, *([_range(field, ranges)] if ranges else [])])


def _operator(field: str, operator: str, value: Any) -> Condition:
    if operator == "exists":
        if not isinstance(value, bool):
            raise InputError(f"`where`: exists of {brief(field)} is {brief(value)}: expected True or False")
        found = Condition("lookup", (Lookup(EXISTS, (field, ELEMENT)),))
        return found if value else Condition("not", (found,))
    check_value(value, f"`where` of {brief(field)}")
    if operator == "in":
        if not isinstance(value, (list, tuple)) or not value:
            raise InputError(f"`where`: in of {brief(field)} is {brief(value)}: expected a list of at least one value")
        return Condition("or", tuple(Lookup(EQUAL, (field, *kind_and_value(one))) for one in value))
    kind, stored = kind_and_value(value)
    if operator == "equal":
        return Condition("lookup", (Lookup(EQUAL, (field, kind, stored)),))
    element = Lookup(EQUAL, (field, kind + ELEMENT, stored))
    return Condition("or", (element, *([Lookup(CONTAINS, (field, kind, stored))] if kind == TEXT else [])))


def _range(field: str, ranges: Mapping[str, Any]) -> Condition:
    kinds = set()
    for name, value in ranges.items():
        check_value(value, f"`where` of {brief(field)}")
        kinds.add(kind_and_value(value)[0])
        if not kinds <= {NUMBER} and not kinds <= {TEXT}:
            raise InputError(f"`where`: {name} of {brief(field)} is {brief(value)}: expected numbers, or text for all")
    compared = " AND ".join(f"value {RANGES[name]} ?" for name in ranges)
    statement = f"SELECT number FROM fields WHERE field = ? AND kind = ? AND {compared}"  # noqa: S608 - fixed operators
    return Condition("lookup", (Lookup(statement, (field, kinds.pop(), *ranges.values())),))


def _all(parts: list[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else Condition("and", tuple(parts))


def _size(condition: Condition | Lookup) -> int:
    return 1 if isinstance(condition, Lookup) else sum(map(_size, condition.parts))


def numbers_of(connection: sqlite3.Connection, lookup: Lookup) -> NDArray[np.int64]:
    """The numbers of the items that a lookup finds, in any order.

    Args:
        connection: An open transaction.
        lookup: The lookup.
    """
    rows = connection.execute(lookup.statement, lookup.values)
    return np.fromiter((row[0] for row in rows if isinstance(row[0], int)), np.int64)
