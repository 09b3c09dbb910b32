"""Checks of files that torch or pickle will load: before loading, that it takes little; after, that the values do.

A few bytes can stand for gigabytes: compressed members, indices of an unpickler's memo, lists that hold another list
twice, tensors that repeat one number. Nothing here runs code of a file.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camp_sdk.export.network.pickle_steps import MAX_DEPTH, MAX_VALUES, ORDERED_DICT, check_pickle
from camp_sdk.runtime.messages import brief

LEGACY_PICKLES = 5  # in a file of torch before 1.6: magic number, protocol, system, content, names of storages
ZIP_START = b"PK\x03\x04"  # by which torch knows a zip file
# Everything else that torch's own list allows can be made to take long, or any amount of memory.
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(f"torch {kind}Storage" for kind in STORAGES) | {
    ORDERED_DICT,
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}
# torch ignores case when it looks for a member, so another spelling could stand in for one that was checked.
_MEMBER = re.compile(
    r"[^/]+/(?:data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+)",
    re.ASCII,
)


def check_checkpoint_file(path: Path, classes: Iterable[str] = ()) -> None:
    """Check a file before torch loads it.

    Args:
        path: a file that torch wrote, in either of its formats.
        classes: what it may ask for besides tensors and ordered dicts, each as "module name".

    Raises:
        ValueError: loading the file could take more time or memory than its size suggests.
        zipfile.BadZipFile, OSError, and others: the file is broken.
    """
    allowed = ALLOWED.union(classes)
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, size)
                for name in archive.namelist():
                    if name.endswith("/data.pkl"):
                        check_pickle(archive.open(name), allowed)
            return
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            if not file.tell() or file.tell() < size:
                check_pickle(file, allowed)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"its member {brief(member.filename)} is compressed, which torch never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError(f"its members declare more bytes than the {size} of the file")
    if min(
        (member.header_offset for member in members), default=0
    ):  # Python skips it, and finds other members than torch
        raise ValueError("it has bytes before its first member, which torch never writes")
    names = [member.orig_filename for member in members]  # Python cuts the others at a NUL
    if strange := [name for name in names if not _MEMBER.fullmatch(name)]:
        raise ValueError(f"it has the member {brief(strange[0])}, which torch never writes")
    if len(set(names)) < len(names) or len({name.split("/")[0] for name in names}) > 1:
        raise ValueError("it has a member twice, or members in several folders, which torch never writes")


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
    opened: dict[int, list[Any]] = {}  # by id: the parts of each container that was begun
    storages: dict[int, int] = {}
    stack = [loaded]
    while stack:
        item = stack[-1]
        if id(item) in sizes:
            stack.pop()
            continue
        if id(item) not in opened:
            opened[id(item)] = parts = _parts(item)
            if waiting := [part for part in parts if id(part) not in sizes]:
                if any(id(part) in opened for part in waiting):
                    raise ValueError("it holds a list or dict that holds itself")
                stack += waiting
                continue
        stack.pop()
        if isinstance(item, Tensor):
            storages |= _storage_of(item)
        sizes[id(item)] = _size_of(item, [sizes[id(part)] for part in opened.pop(id(item))])
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors take more bytes than the {size} of the file")


def _size_of(item: Any, held: list[tuple[int, int]]) -> tuple[int, int]:
    """How many values a container holds, and how deep, from those of its parts."""
    own = len(item) if isinstance(item, (list, tuple, dict, set)) else 0
    count, depth = 1 + own + sum(n for n, _ in held), 1 + max((d for _, d in held), default=0)
    if count > MAX_VALUES or depth > MAX_DEPTH:
        raise ValueError(f"it holds more than {MAX_VALUES} values, or lists nested over {MAX_DEPTH} deep")
    return count, depth


def _parts(item: Any) -> list[Any]:
    """The containers and tensors that a container holds."""
    inside: Any = ()
    if isinstance(item, dict):
        inside = (*item.keys(), *item.values())
    elif isinstance(item, (list, tuple, set)):
        inside = item
    return [part for part in inside if isinstance(part, (list, tuple, dict, set, Tensor))]


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
