"""A folder of parts: indexes that together hold one corpus, each item in the part that its key decides."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import absolute, write_aside
from camp_sdk.runtime.messages import brief

DESCRIPTION = "parts.json"
FORMAT_VERSION = 1
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Parts:
    """A folder of parts.

    Args:
        folder: The folder.
        count: The number of parts.
        bundle: The fingerprint of the bundle that encodes them.
    """

    folder: Path
    count: int
    bundle: str

    @property
    def paths(self) -> list[Path]:
        """The index of each part; one without items may not be there."""
        return [self.folder / f"{name}.index" for name in self.names]

    @property
    def names(self) -> list[str]:
        """The name of each part."""
        return [f"part-{part:05d}" for part in range(self.count)]

    def divided(self, shards: int) -> list[list[int]]:
        """Divide the parts among shards, evenly.

        Args:
            shards: The number of shards; there are at most as many as parts.

        Returns:
            The numbers of the parts of each shard.
        """
        shards = min(shards, self.count)
        return [list(range(shard, self.count, shards)) for shard in range(shards)]

    def part_of(self, key: str) -> int:
        """The part that holds an item: the same whenever and wherever it is encoded.

        Args:
            key: The key of the item.
        """
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count


def is_parts(path: Path) -> bool:
    """Whether a path is a folder of parts.

    Args:
        path: The path.
    """
    return (path / DESCRIPTION).is_file()


def make_parts(folder: Path, count: int | None, bundle: str) -> Parts:
    """Open a folder of parts, or make one.

    Args:
        folder: The folder.
        count: The number of parts; None for that of the folder, or 1.
        bundle: The fingerprint of the bundle that encodes them.

    Raises:
        InputError: The folder has another number of parts, or is something else.
        BundleError: Another bundle encoded its parts, or its description is damaged.
        OSError: The folder cannot be written.
    """
    folder = absolute(folder)
    if not (folder / DESCRIPTION).exists():
        return _new_parts(folder, count or 1, bundle)
    found = read_parts(folder)
    if count is not None and count != found.count:
        raise InputError(f"`parts` is {count}, and {folder} has {found.count}: leave it out, or make another folder")
    if bundle != found.bundle:
        raise BundleError(
            f"{folder} was made by another bundle ({found.bundle[:12]}, this one is {bundle[:12]}): make another folder"
        )
    return found


def read_parts(folder: Path) -> Parts:
    """Open a folder of parts.

    Args:
        folder: The folder.

    Raises:
        BundleError: It is none, or its description is damaged.
    """
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_bytes())
        return Parts(folder, *_checked(found))
    except FileNotFoundError:
        raise BundleError(f"{folder} has no {DESCRIPTION}: expected a folder made by `camp index build`") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path} is damaged, or was written by a newer camp-sdk: make the folder again") from None


def _new_parts(folder: Path, count: int, bundle: str) -> Parts:
    if not 1 <= count <= MAX_PARTS:
        raise InputError(f"`parts` is {count}: expected 1 to {MAX_PARTS}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and has no {DESCRIPTION}: expected a new folder for the parts")
    folder.mkdir(parents=True, exist_ok=True)
    made = Parts(folder, count, bundle)
    described = {"format": FORMAT_VERSION} | {k: v for k, v in asdict(made).items() if k != "folder"}
    with write_aside(folder / DESCRIPTION) as aside:
        aside.write_text(json.dumps(described) + "\n", encoding="utf-8")
    return made


def _checked(found: Any) -> tuple[int, str]:
    count, bundle = found["count"], found["bundle"]
    if found["format"] != FORMAT_VERSION or not isinstance(bundle, str) or type(count) is not int:
        raise ValueError(brief(found))
    if not 1 <= count <= MAX_PARTS:
        raise ValueError(brief(count))
    return count, bundle
