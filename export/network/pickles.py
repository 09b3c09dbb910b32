"""Checks of files that torch or pickle will load: before loading, that it takes little; after, that the values do.

A few bytes can stand for gigabytes: compressed members, indices of an unpickler's memo, lists that hold another list
twice, tensors that repeat one number. Nothing here runs code of a file.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from camp_sdk.runtime.messages import brief

MAX_VALUES = 1 << 20  # of one file, where a list counts as often as it is held
MAX_DEPTH = 64  # of containers in one another
LEGACY_PICKLES = 5  # in a file of torch before 1.6: magic number, protocol, system, content, names of storages
ZIP_START = b"PK\x03\x04"  # by which torch knows a zip file
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
REFUSED = ("builtins bytearray", "__builtin__ bytearray")  # torch allows it, and a number makes it of any size
_MARK = (-1, 0)
_ONE = (1, 1)


def check_checkpoint_file(path: Path) -> None:
    """Check a file before torch loads it.

    Args:
        path: a file that torch wrote, in either of its formats.

    Raises:
        ValueError: loading the file could take more time or memory than its size suggests.
        zipfile.BadZipFile, OSError, and others: the file is broken.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, path.stat().st_size)
            return
        file.seek(0)
        size = path.stat().st_size
        for _ in range(LEGACY_PICKLES):
            if not file.tell() or file.tell() < size:
                check_pickle(file)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"its member {brief(member.filename)} is compressed, which torch never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError(f"its members declare more bytes than the {size} of the file")
    for member in members:
        if member.filename.endswith(".pkl"):
            with archive.open(member) as file:
                check_pickle(file)


def check_pickle(content: bytes | IO[bytes]) -> None:
    """Check one pickle without loading it; a file is then positioned behind it.

    Args:
        content: the pickle, or a file at its beginning.

    Raises:
        ValueError: it is not a whole pickle, or loading it could take more time or memory than its size suggests.
    """
    # How many values, and how deep, the tuple at each place of the unpickler's stack holds. Tuples alone count, because
    # Python walks them when they are keys of a dict; everything else that can be changed cannot be such a key.
    stack: list[tuple[int, int]] = []
    memo: dict[int, tuple[int, int]] = {}
    for count, (op, argument, _) in enumerate(pickletools.genops(content)):
        if op.name in PUTS or op.name == "MEMOIZE":
            index = len(memo) if argument is None else int(argument)
            if not 0 <= index <= count:  # unpicklers may make a list as long as the largest index
                raise pickle.UnpicklingError(f"it keeps a value under the number {index}, after {count} steps")
            memo[index] = stack[-1] if stack else _ONE
        elif op.name in GETS:
            stack.append(memo.get(int(argument or 0), _ONE))
        elif op.name == "GLOBAL" and argument in REFUSED:
            raise pickle.UnpicklingError(f"it asks for {argument.replace(' ', '.')}, which is not data: refused")
        else:
            _step(op, stack)


def _step(op: pickletools.OpcodeInfo, stack: list[tuple[int, int]]) -> None:
    """What an opcode does to the stack."""
    if op.name == "MARK":
        stack.append(_MARK)
        return
    if op.name == "DUP":
        stack.append(stack[-1] if stack else _ONE)
        return
    taken: list[tuple[int, int]] = []
    before = list(op.stack_before)
    if pickletools.markobject in before:
        while stack and (item := stack.pop()) is not _MARK:
            taken.append(item)
        before = before[: before.index(pickletools.markobject)]
    taken += [stack.pop() for _ in before if stack]
    if "TUPLE" not in op.name:
        stack += [_ONE] * len(op.stack_after)
        return
    made = (1 + sum(size for size, _ in taken), 1 + max((depth for _, depth in taken), default=0))
    if made[0] > MAX_VALUES or made[1] > MAX_DEPTH:
        raise pickle.UnpicklingError(f"it holds a tuple of more than {MAX_VALUES} values, or nested over {MAX_DEPTH}")
    stack.append(made)


def check_values(loaded: Any, size: int) -> None:
    """Check what a file held: every later walk of it, such as the writing of JSON, then takes little.

    Args:
        loaded: the content of the file.
        size: the size of the file in bytes.

    Raises:
        ValueError: containers are nested too deep, in a circle, or so that they hold too many values; or a tensor is
            not dense, or has more numbers than are stored.
    """
    sizes: dict[int, tuple[int, int]] = {}  # by id: how many values a container holds, and how deep
    opened: set[int] = set()
    storages: dict[int, int] = {}
    stack = [loaded]
    while stack:
        item = stack[-1]
        parts = list(_parts(item))
        waiting = [part for part in parts if id(part) not in sizes]
        if waiting:
            if id(item) in opened:
                raise ValueError("it holds a list or dict that holds itself")
            opened.add(id(item))
            stack += waiting
            continue
        stack.pop()
        if isinstance(item, Tensor):
            storages |= _storage_of(item)
        own = len(item) if isinstance(item, (list, tuple, dict, set)) else 0
        held = [sizes[id(part)] for part in parts]
        count, depth = 1 + own + sum(n for n, _ in held), 1 + max((d for _, d in held), default=0)
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"it holds more than {MAX_VALUES} values, or lists nested over {MAX_DEPTH} deep")
        sizes[id(item)] = count, depth
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors take more bytes than the {size} of the file")


def _parts(item: Any) -> Iterator[Any]:
    """The containers and tensors that a container holds."""
    inside: Any = ()
    if isinstance(item, dict):
        inside = (*item.keys(), *item.values())
    elif isinstance(item, (list, tuple, set)):
        inside = item
    return (part for part in inside if isinstance(part, (list, tuple, dict, set, Tensor)))


def _storage_of(tensor: Tensor) -> dict[int, int]:
    """The address and size of a tensor's storage; ValueError unless the tensor is dense and stores all its numbers."""
    if not is_plain(tensor):
        raise ValueError("it holds a tensor that is not dense, or has more numbers than are stored")
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}


def is_plain(tensor: Any) -> bool:
    """Whether this is a dense tensor on the CPU that stores all its numbers, not a few broadcast to a huge shape."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
