"""Changes to a bundle's manifest, as JSON: they break it, or make it one of another time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], Any]


def rewrite(folder: Path, change: Change) -> Path:
    """Change a bundle's manifest; ``change`` edits it in place or returns another document."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    changed = change(manifest)
    path.write_text(json.dumps(manifest if changed is None else changed), encoding="utf-8")
    return folder


def rename_file(manifest: dict[str, Any], name: str) -> None:
    """Give the file of the image graph another name, in the manifest alone."""
    manifest["files"][name] = manifest["files"].pop("image.onnx")
    manifest["graphs"]["image"]["file"] = name


def drop(*keys: str) -> Change:
    """The change that takes out what is under some keys, from the outermost to the innermost."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


def put(value: Any, *keys: str) -> Change:
    """The change that puts a value under some keys, from the outermost to the innermost."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change
