"""Metadata that replace others, as the JSON merge patch (RFC 7396) that servers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nulls_in(metadata: Mapping[str, Any]) -> bool:
    """Whether a value of metadata, or of an object in them, is None: a merge patch cannot set it."""
    return any(value is None or (isinstance(value, Mapping) and nulls_in(value)) for value in metadata.values())


def patch_to(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that turns metadata into others.

    Args:
        metadata: The metadata as they are.
        wanted: The metadata as they should be, without None.
    """
    patch: dict[str, Any] = dict.fromkeys(metadata.keys() - wanted.keys())
    for name, value in wanted.items():
        held = metadata.get(name)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        patch[name] = patch_to(held or {}, value) if both else value
    return patch
