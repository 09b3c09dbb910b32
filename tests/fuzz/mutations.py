"""Changes of bytes and of JSON documents, each decided by a random generator and by nothing else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 1024, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
Data = bytearray


def mutated_bytes(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a file with one to four changes.

    Args:
        content: The file.
        rng: Decides the changes.
        other: Another file, parts of which may come in.
    """
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changes = CHANGES if other else CHANGES[:-1]
        rng.choice(changes)(data, rng, other)
    return bytes(data)


def _place(data: Data, rng: Random) -> int:
    """A position in a file: often near its beginning, where headers are, or near its end."""
    if not data:
        return 0
    near = min(len(data), 128)
    where = rng.choice(("anywhere", "anywhere", "begin", "end"))
    return {
        "anywhere": rng.randrange(len(data)),
        "begin": rng.randrange(near),
        "end": len(data) - 1 - rng.randrange(near),
    }[where]


def _flip(data: Data, rng: Random, _: bytes) -> None:
    for _bit in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_byte(data: Data, rng: Random, _: bytes) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_number(data: Data, rng: Random, _: bytes) -> None:
    code, size = rng.choice((("b", 1), ("h", 2), ("i", 4), ("q", 8)))
    at = _place(data, rng)
    number = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    data[at : at + size] = struct.pack(rng.choice("<>") + code.upper(), number)


def _truncate(data: Data, rng: Random, _: bytes) -> None:
    del data[_place(data, rng) :]


def _slice(data: Data, rng: Random) -> slice:
    at = _place(data, rng)
    return slice(at, at + rng.choice((1, 2, 4, 8, 64, rng.randrange(1, 4096))))


def _remove(data: Data, rng: Random, _: bytes) -> None:
    del data[_slice(data, rng)]


def _duplicate(data: Data, rng: Random, _: bytes) -> None:
    part = data[_slice(data, rng)]
    at = _place(data, rng)
    data[at:at] = part * rng.choice((1, 1, 2, 50))


def _fill(data: Data, rng: Random, _: bytes) -> None:
    part = _slice(data, rng)
    data[part] = bytes([rng.choice((0, 0xFF, 0x41))]) * len(data[part])


def _extend(data: Data, rng: Random, _: bytes) -> None:
    data += rng.randbytes(rng.choice((1, 8, 1000)))


def _splice(data: Data, rng: Random, other: bytes) -> None:
    source = bytearray(other)
    if rng.random() < 0.5:  # the beginning of one file, the end of the other
        data[_place(data, rng) :] = source[_place(source, rng) :]
    else:
        data[_slice(data, rng)] = source[_slice(source, rng)]


CHANGES: tuple[Callable[[Data, Random, bytes], None], ...] = (
    _flip,
    _flip,
    _set_byte,
    _set_byte,
    _set_number,
    _set_number,
    _truncate,
    _remove,
    _duplicate,
    _fill,
    _extend,
    _splice,
)

# Texts of JSON that no Python value has: each takes the place of a value.
RAW = (
    "1e999",
    "-1e999",
    "NaN",
    "-0",
    "1" * 5000,
    "-" + "9" * 400,
    "0.1e-400",
    "[" * 200_000,
    '{"a":' * 200_000,
    "[" * 500 + "]" * 500,
    '{"a":' * 90 + "1" + "}" * 90,
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\u0000"',
    '"\x01\x1b[31m"',
    '{"a":1,"a":2}',
    "tru",
    "",
    "\ufeff1",
    '"' + "x" * 1_000_000 + '"',
    '"' + "\\n" * 3000 + '"',
    "[" + "0," * 300_000 + "0]",
)
PLACEHOLDER = "@@here@@"
WORDS = (
    "",
    " ",
    "..",
    "../x",
    "/etc/passwd",
    "\\",
    "a\nb",
    "\u202e",
    "e\u0301",
    "\U0001f600",
    "\x00",
    "I",
    "T",
    "x" * 300,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0.5,
    -1.5,
    1e308,
    2**64,
    -(2**63),
    10**30,
    [],
    {},
    [[]],
    [None],
    {"": None},
)


def mutated_json(text: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a JSON file with one to three changes of its structure; one in four has changed bytes instead.

    Args:
        text: The file.
        rng: Decides the changes.
        other: Another file, parts of which may come in.
    """
    if rng.random() < 0.25:
        return mutated_bytes(text, rng, other)
    root = [json.loads(text)]
    raw = None
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = _any_place(root, rng)
        if raw is None and rng.random() < 0.2:
            raw = rng.choice(RAW)
            holder[key] = PLACEHOLDER
        else:
            rng.choice(STRUCTURE)(holder, key, root, rng)
    written = json.dumps(root[0] if root else None, ensure_ascii=rng.random() < 0.5)
    if raw is not None:
        written = written.replace(json.dumps(PLACEHOLDER), raw, 1)
    return written.encode("utf-8", "surrogatepass")


def _places(holder: Any) -> list[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
    found = [(holder, key) for key in keys]
    return found + [place for key in keys for place in _places(holder[key])]


def _any_place(root: list[Any], rng: Random) -> tuple[Any, Any]:
    places = _places(root)
    if not places:
        root.append(None)
        return root, 0
    if rng.random() < 0.5:  # one level is chosen first: else long lists would take nearly all changes
        holders = list({id(holder): holder for holder, _ in places}.values())
        holder = rng.choice(holders)
        return rng.choice([place for place in places if place[0] is holder])
    return rng.choice(places)


def _drop(holder: Any, key: Any, _root: list[Any], _rng: Random) -> None:
    del holder[key]


def _replace(holder: Any, key: Any, _root: list[Any], rng: Random) -> None:
    holder[key] = rng.choice((rng.choice(VALUES), rng.choice(WORDS), rng.choice(NUMBERS)))


def _nudge(holder: Any, key: Any, _root: list[Any], rng: Random) -> None:
    value = holder[key]
    if isinstance(value, (bool, type(None))):
        holder[key] = not value
    elif isinstance(value, (int, float)):
        holder[key] = rng.choice(
            (-value, value + 1, value - 1, value * 2, float(value), str(value), rng.choice(NUMBERS))
        )
    elif isinstance(value, str):
        holder[key] = rng.choice((value[:-1], value + rng.choice(WORDS), value.upper(), value * 100, [value]))
    elif isinstance(value, list):
        holder[key] = rng.choice((value[:-1], value * 2, value[::-1], value * 1000 if len(value) < 100 else [], {}))
    else:
        pairs = [list(item) for item in value.items()]
        holder[key] = rng.choice((list(value), pairs, {**value, "": 0}, {**value, "extra": {}}))


def _nest(holder: Any, key: Any, _root: list[Any], rng: Random) -> None:
    holder[key] = rng.choice(([holder[key]], {str(key): holder[key]}, [[[holder[key]]]]))


def _rename(holder: Any, key: Any, _root: list[Any], rng: Random) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((*WORDS, str(key) + "s", str(key)[:-1], str(key).upper()))] = holder.pop(key)
    else:
        holder.insert(key, holder[key])


def _swap(holder: Any, key: Any, root: list[Any], rng: Random) -> None:
    other, place = _any_place(root, rng)
    if other is not root and holder is not root:
        holder[key] = json.loads(json.dumps(other[place]))  # a copy: the original may hold this very place


STRUCTURE: tuple[Callable[[Any, Any, list[Any], Random], None], ...] = (
    _drop,
    _drop,
    _replace,
    _replace,
    _nudge,
    _nudge,
    _nudge,
    _nest,
    _rename,
    _swap,
)


LINES = (b"\n", b"\r", b"  \n", b"\xff\xfe\n", b"\x00\n", "\u2028\n".encode(), b"a" * 2_000_000)


def mutated_lines(text: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a file of lines, with lines dropped, repeated, swapped, joined or damaged.

    Args:
        text: The file.
        rng: Decides the changes.
        other: Another file, parts of which may come in.
    """
    if rng.random() < 0.3:
        return mutated_bytes(text, rng, other)
    lines = text.splitlines(keepends=True)
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.choice(("drop", "repeat", "swap", "damage", "insert", "join"))
    if change == "drop":
        del lines[at]
    elif change == "repeat":
        lines[at:at] = [lines[to]] * rng.choice((1, 1, 5, 5000))
    elif change == "swap":
        lines[at], lines[to] = lines[to], lines[at]
    elif change == "damage":
        is_json = lines[at].startswith(b"{")
        lines[at] = mutated_json(lines[at], rng) + b"\n" if is_json else mutated_bytes(lines[at], rng)
    elif change == "insert":
        lines.insert(at, rng.choice(LINES))
    else:
        lines[at] = lines[at].rstrip()
    return b"".join(lines)
