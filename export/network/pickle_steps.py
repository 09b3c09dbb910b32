"""Follows the opcodes of a pickle without loading it, and refuses what would take more than its size suggests.

A pickle may fetch what it has made from a memo, and so have one long list copied, or one long tuple hashed, again and
again. Keys of a dict may be chosen so that each is compared with all before it.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Container
from dataclasses import dataclass
from typing import IO, Any

MAX_VALUES = 1 << 20  # of one file, where a list counts as often as it is held
MAX_DEPTH = 64  # of containers in one another
MAX_FETCHED = 1 << 24  # values in what is fetched from the memo, counted each time
MAX_BITS = 64  # of a whole number: longer ones can be made to have any hash
MAX_SCATTERED = 1 << 14  # keys of dicts that are whole numbers, and not one more than the key before
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
HASHED = {"SETITEM": 2, "SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}  # of how many values, the first
ADDS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS"}  # change what is already on the stack
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
KEYS = {"int", "text", "bool", "none"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch before 1.6 begins its files with it; one long number collides with none
ORDERED_DICT = "collections OrderedDict"
_KIND_OF = {
    "NONE": "none",
    "NEWTRUE": "bool",
    "NEWFALSE": "bool",
    "EMPTY_LIST": "list",
    "LIST": "list",
} | dict.fromkeys(
    ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), "text"
)


class RefusedNameError(pickle.UnpicklingError):
    """A pickle asks for a function or class that it does not need."""


@dataclass(eq=False, slots=True)
class _Item:
    """What is known of a value on the unpickler's stack.

    Args:
        kind: "int", "text", "list", "tuple", "global", ...
        value: A whole number, or the name of a global.
        size: How many values are walked where it is copied or hashed: those it holds, and those in its tuples.
        depth: How deep its tuples are nested.
        fetched: Whether it was fetched from the memo.
        begins: The kind of the first value it holds.
        named: Whether each of its values is a list or tuple that begins with text.
        inside: The first value of a tuple.
        last: The last key of a dict that is a whole number.
    """

    kind: str
    value: Any = None
    size: int = 1
    depth: int = 1
    fetched: bool = False
    begins: str = ""
    named: bool = True
    inside: _Item | None = None
    last: int = -1


_MARK = _Item("mark")


class _Follower:
    """The stack and the memo of an unpickler, of which only sizes are kept."""

    def __init__(self, allowed: Container[str] | None) -> None:
        self.allowed = allowed
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        self.fetched = self.scattered = self.steps = 0

    def step(self, op: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do what an opcode does."""
        if op.name in PUTS:
            self._put(len(self.memo) if argument is None else int(argument))
        elif op.name in GETS:
            self._fetch(self.memo.get(int(argument or 0)))
        elif op.name == "DUP":
            self._fetch(self.stack[-1] if self.stack else None)
        elif op.name == "MARK":
            self.stack.append(_MARK)
        elif op.name in ADDS:
            self._add(op, self._take(op))
        elif op.name != "STOP":
            taken = self._take(op)
            self.stack += [self._made(op, argument, taken)] * len(op.stack_after)
        self.steps += 1

    def _put(self, index: int) -> None:
        if not 0 <= index <= self.steps:  # unpicklers may make a list as long as the largest index
            raise pickle.UnpicklingError(f"it keeps a value under the number {index}, after {self.steps} steps")
        if self.stack:
            self.memo[index] = self.stack[-1]

    def _fetch(self, item: _Item | None) -> None:
        item = item or _Item("object")
        item.fetched = True
        self.fetched += item.size
        if self.fetched > MAX_FETCHED:
            raise pickle.UnpicklingError(f"it repeats lists, dicts or tuples of more than {MAX_FETCHED} values in all")
        self.stack.append(item)

    def _take(self, op: pickletools.OpcodeInfo) -> list[_Item]:
        """Take what an opcode takes from the stack, the lowest first."""
        taken: list[_Item] = []
        before = list(op.stack_before)
        if pickletools.markobject in before:
            while self.stack and (item := self.stack.pop()) is not _MARK:
                taken.append(item)
            before = before[: before.index(pickletools.markobject)]
        taken += [self.stack.pop() for _ in before if self.stack]
        return taken[::-1]

    def _made(self, op: pickletools.OpcodeInfo, argument: Any, taken: list[_Item]) -> _Item:
        if op.name == "GLOBAL":
            return self._global(str(argument))
        if op.name in NUMBERS:
            return _number(argument)
        if "TUPLE" in op.name:
            return _tuple(taken)
        if op.name == "REDUCE" and len(taken) == 2:
            _check_call(*taken)
        made = _Item(_KIND_OF.get(op.name, "object"))
        self._check_keys(made, op, taken)
        return _grown(made, taken)

    def _global(self, name: str) -> _Item:
        if self.allowed is not None and name not in self.allowed:
            raise RefusedNameError(f"it asks for {name.replace(' ', '.')[:80]}, which is not data: refused")
        return _Item("global", name)

    def _add(self, op: pickletools.OpcodeInfo, taken: list[_Item]) -> None:
        if not taken:
            return
        target, *values = taken
        if target.fetched:  # whoever fetched it saw that it was short
            raise pickle.UnpicklingError("it changes a list, dict or object after it was used")
        self._check_keys(target, op, values)
        self.stack.append(_grown(target, values))

    def _check_keys(self, target: _Item, op: pickletools.OpcodeInfo, values: list[_Item]) -> None:
        for key in values[:: HASHED[op.name]] if op.name in HASHED else ():
            if key.kind not in KEYS:
                raise pickle.UnpicklingError("a key of its dicts is no text or whole number")
            if key.kind == "int":
                self.scattered += key.value != target.last + 1
                target.last = key.value
        if self.scattered > MAX_SCATTERED:
            raise pickle.UnpicklingError(f"over {MAX_SCATTERED} whole numbers are keys of its dicts, not in order")


def _number(value: Any) -> _Item:
    if int(value).bit_length() > MAX_BITS and value != LEGACY_MAGIC:
        raise pickle.UnpicklingError(f"it holds a whole number of {int(value).bit_length()} bits, over {MAX_BITS}")
    return _Item("bool" if isinstance(value, bool) else "int", int(value))


def _tuple(parts: list[_Item]) -> _Item:
    size = 1 + sum(part.size for part in parts)
    depth = 1 + max((part.depth for part in parts), default=0)
    if size > MAX_VALUES or depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"it holds a tuple of more than {MAX_VALUES} values, or nested over {MAX_DEPTH}")
    first = parts[0] if parts else None
    return _Item("tuple", len(parts), size, depth, begins=first.kind if first else "", inside=first)


def _grown(container: _Item, values: list[_Item]) -> _Item:
    container.begins = container.begins or (values[0].kind if values else "")
    # What an object is made of may be copied with it; of what a list or dict holds, only tuples are walked.
    container.size += sum(value.size if container.kind != "list" else 1 for value in values)
    container.named &= all(value.begins == "text" for value in values)
    return container


def _check_call(function: _Item, arguments: _Item) -> None:
    """Raise UnpicklingError for an ordered dict of pairs whose keys are not text; Python 2 wrote such lists."""
    if function.value != ORDERED_DICT or (arguments.kind == "tuple" and not arguments.value):
        return
    pairs = arguments.inside
    if arguments.value != 1 or pairs is None or pairs.kind != "list" or not pairs.named:
        raise pickle.UnpicklingError("it makes an ordered dict of something other than pairs of a name and a value")


def check_pickle(content: bytes | IO[bytes], allowed: Container[str] | None = None) -> None:
    """Check one pickle without loading it; a file is then positioned behind it.

    Args:
        content: The pickle, or a file at its beginning.
        allowed: The functions and classes that it may ask for, each as "module name"; None for any, if the unpickler
            that loads it decides.

    Raises:
        RefusedNameError: It asks for another one.
        ValueError, pickle.UnpicklingError: It is not a whole pickle, or loading it could take more time or memory than
            its size suggests.
    """
    follower = _Follower(allowed)
    for op, argument, _ in pickletools.genops(content):
        follower.step(op, argument)
