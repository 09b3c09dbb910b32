"""Bring an index up to a folder of pictures: what is new or changed is encoded, what vanished is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.arguments import Advance
from camp_sdk.data import open_rows
from camp_sdk.index.arrivals import key_of_path
from camp_sdk.index.items import Added
from camp_sdk.index.living import Index
from camp_sdk.picture_files import PassedOver, find_pictures
from camp_sdk.runtime.files import absolute

Bar = Callable[[str, int], AbstractContextManager[Advance]]  # a progress bar of a title and a total


@dataclass(frozen=True)
class Synced:
    """What `sync` did.

    Args:
        added: What `Index.add` did.
        vanished: The keys of items whose files are no longer in the folders.
        removed: Whether these were removed.
        passed_over: What the folders hold besides pictures.
    """

    added: Added
    vanished: tuple[str, ...]
    removed: bool
    passed_over: tuple[PassedOver, ...]

    @property
    def changed(self) -> bool:
        """Whether the index has changed."""
        return bool(self.added.added or self.added.replaced or (self.removed and self.vanished))


@dataclass(frozen=True)
class SyncOptions:
    """How to bring an index up to its sources.

    Args:
        metadata: Metadata by key, for the items that have some.
        prune: Remove the items whose files vanished.
        skip_broken: Leave out pictures that cannot be read.
        max_megapixels: Pictures with more megapixels are not decoded.
    """

    metadata: Mapping[str, Mapping[str, Any]]
    prune: bool
    skip_broken: bool
    max_megapixels: float


def sync(index: Index, sources: Sequence[Path], options: SyncOptions, bar: Bar) -> Synced:
    """Add the pictures of folders, with their subfolders, and of files of features.

    Args:
        index: The index.
        sources: Folders of pictures, pictures, and .npy files of features.
        options: How.
        bar: Makes a progress bar.

    Raises:
        InputError: A source holds no pictures, or one of them cannot be read.
        OSError: A folder cannot be read, or the index cannot be written.
    """
    folders = [source for source in sources if source.is_dir()]
    found = [find_pictures(folder, recursive=True) for folder in folders]
    files = [source for source in sources if not source.is_dir() and source.suffix != ".npy"]
    paths = list(dict.fromkeys(absolute(path) for path in (*files, *(path for one in found for path in one.paths))))
    base = index.path.parent
    keys = [key_of_path(path, base) for path in paths]
    total = Added(0, 0, 0)
    if paths:
        total = _add(index, "encoding images", paths, keys, options, bar)
    for source in sources:
        if source.suffix == ".npy" and not source.is_dir():
            features, names = open_rows(source)
            named = [f"{key_of_path(absolute(source), base)}, {name}" for name in names]
            total = _sum(total, _add(index, "encoding features", features, named, options, bar))
    vanished = _vanished(index, [absolute(folder) for folder in folders], {str(path) for path in paths})
    if options.prune and vanished:
        index.remove(vanished)
    return Synced(total, tuple(vanished), options.prune, tuple(other for one in found for other in one.passed_over))


def _add(index: Index, title: str, items: Any, keys: list[str], options: SyncOptions, bar: Bar) -> Added:
    metadata = (options.metadata.get(key) for key in keys)
    with bar(title, len(keys)) as advance:
        return index.add(items, keys, metadata, advance, options.skip_broken, options.max_megapixels)


def _vanished(index: Index, folders: Sequence[Path], paths: set[str]) -> list[str]:
    """The keys of items that were added as files of the folders, and that are no longer there."""
    if not folders:
        return []
    items = (
        (item.key, Path(item.document)) for item in index if item.document is not None and item.document not in paths
    )
    return [key for key, path in items if any(path.is_relative_to(folder) for folder in folders)]


def _sum(one: Added, other: Added) -> Added:
    return Added(
        one.added + other.added,
        one.replaced + other.replaced,
        one.unchanged + other.unchanged,
        one.skipped + other.skipped,
    )
