"""Open an index, or make one; the arguments are checked here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camp_sdk.index.database import create_file
from camp_sdk.index.living import Index
from camp_sdk.index.schema import KINDS
from camp_sdk.model import Model
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import absolute, check_writable
from camp_sdk.runtime.messages import brief


def open_index(
    model: Model | None,
    path: Any,
    create: bool,
    wanted: tuple[str | None, str | None],
    timeout_s: float,
    ann: bool = False,
) -> Index:
    """Open an index, or make one; see `Retriever.open_index`.

    Args:
        model: The network; None for what needs none.
        path: The file.
        create: Whether to make a new one if there is none.
        wanted: The precision and the kind asked for; None for any.
        timeout_s: How long a change waits for another writer.
        ann: Whether to use the approximate search.
    """
    if not isinstance(path, (str, Path)) or "\0" in str(path):
        raise InputError(f"path is {brief(path)}: expected the path of a file")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 <= timeout_s < 1e6:
        raise InputError(f"timeout_s is {timeout_s!r}: expected seconds, 0 or more")
    file = absolute(path)
    if create and model is not None and not file.exists():
        check_writable(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        create_file(file, *_kind_and_precision(model, *wanted))
    index = Index(file, model, timeout_s, ann)
    for name, own, expected in zip(("precision", "kind"), (index.precision, index.kind), wanted, strict=True):
        if expected is not None and own != expected:
            index.close()
            raise InputError(f"{file} has the {name} {own}, not {brief(expected)}: leave it out, or make another index")
    return index


def _kind_and_precision(model: Model, precision: str | None, kind: str | None) -> tuple[str, str, str]:
    """The kind, the bundle and the precision of a new index."""
    kind = kind or KINDS[0]
    if kind not in KINDS:
        raise InputError(f"kind is {brief(kind)}: expected one of {', '.join(KINDS)}")
    if kind == "text" and precision not in (None, "float32"):
        raise InputError(f"precision is {brief(precision)}: an index of texts stores float32")
    precision = "float32" if kind == "text" else model.stored_precision(precision or "float16")
    return kind, model.bundle.fingerprint, precision
