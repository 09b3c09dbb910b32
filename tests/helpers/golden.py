"""Bundles whose golden examples are others, and engines that score wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import Bundle
from camp_sdk.runtime import selftest
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.files import sha256_of

GRAPHS = ("image", "text", "scorer")


def listed_again(folder: Path, *names: str) -> Bundle:
    """A bundle whose files were changed, with a manifest that lists them as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        size = (folder / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "sha256": sha256_of(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle(folder)


def with_golden(folder: Path, **changes: Any) -> Bundle:
    """A bundle with other golden arrays; None leaves one out."""
    with np.load(folder / "golden.npz") as file:
        arrays = {**file, **changes}
    np.savez(folder / "golden.npz", **{name: array for name, array in arrays.items() if array is not None})
    return listed_again(folder, "golden.npz")


def spoil(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    """Let every engine of a scorer give one logit that is off by an amount."""

    def opened(bundle: Bundle, graph: str, *arguments: Any, **options: Any) -> Engine:
        engine = open_engine(bundle, graph, *arguments, **options)
        run = engine.run

        def spoiled(feeds: Any) -> Any:
            out = run(feeds)
            out["logits"] = out["logits"].copy()
            out["logits"][0, 0] += amount
            return out

        if graph == "scorer":
            monkeypatch.setattr(engine, "run", spoiled)
        return engine

    monkeypatch.setattr(selftest, "open_engine", opened)
