"""Published files of captions in small, and the `camp data` commands that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from camp_sdk import load_split
from tests.helpers.command import Camp
from tests.helpers.tiny import files_of

CAPTIONS = {name: [f"{name} {k} of five" for k in "abcde"] for name in ("1.jpg", "2.jpg", "3.jpg")}
SPLITS = {"1.jpg": "train", "2.jpg": "val", "3.jpg": "restval"}


def write(path: Path, value: Any) -> Path:
    """Write a text, or a value as JSON on one line."""
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_pictures(folder: Path) -> Path:
    """Write the pictures that the captions are of."""
    folder.mkdir()
    for name in CAPTIONS:
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def pairs_of(data: Path, split: str) -> dict[str, list[str]]:
    """The captions of each picture of a split, by its path below pictures/ as `load_split` finds it."""
    loaded = load_split(data, split)
    root = data.parent.resolve() / "pictures"
    assert all(isinstance(path, Path) and path.is_file() for path in loaded.images)
    pairs: dict[str, list[str]] = {Path(str(path)).relative_to(root).as_posix(): [] for path in loaded.images}
    for owner, caption in zip(loaded.image_of_caption, loaded.captions, strict=True):
        pairs[list(pairs)[owner]].append(caption)
    return pairs


def refused(camp: Camp, here: Path, *arguments: object) -> str:
    """The one line of a command that must fail, after which there are only the files that were there before."""
    before = files_of(here)
    result = camp("data", *arguments, "--output", here / "out")
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.code, result.out) == (1, "")
    assert files_of(here) == before
    assert [path.name for path in here.glob(".*")] == []
    return line


def karpathy(splits: dict[str, str], **more: Any) -> dict[str, Any]:
    """Karpathy's file with the pictures of some splits."""
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": t, "tokens": []} for t in CAPTIONS[name]], **more}
        for name, split in splits.items()
    ]
    return {"images": images, "dataset": "flickr30k"}
