"""The commands `camp index ...`: fill an index, keep it up to date, and search it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.commands.options import (
    BackendOption,
    BundleOption,
    IndexArgument,
    JsonOption,
    MegapixelsOption,
    MemoryOption,
    PrecisionOption,
    SkipBrokenOption,
    ThreadsOption,
    WhereOption,
    conditions_of,
)
from camp_sdk.index.living import Index
from camp_sdk.index.metadata_files import read_metadata_file
from camp_sdk.index.opening import open_index
from camp_sdk.index.syncing import Synced, SyncOptions, sync
from camp_sdk.picture_files import describe
from camp_sdk.pictures import MAX_MEGAPIXELS, PictureError
from camp_sdk.progress import progress_bar
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.encoded import GALLERY_PRECISIONS
from camp_sdk.runtime.errors import BusyError, InputError
from camp_sdk.runtime.files import absolute
from camp_sdk.runtime.messages import brief, visible
from camp_sdk.terminal import stderr

index_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fill an index of pictures, keep it up to date, and search it.",
)

MetadataOption = Annotated[
    Path | None,
    typer.Option(help="File of metadata, .csv or .jsonl, with a column key, or file_name relative to this file."),
]
STORED_HELP = f"Storage of a new index: {', '.join(GALLERY_PRECISIONS)}. Default: float16."
TIMEOUT_S = 30.0  # for another writer to finish


@index_app.command("add")
def add_command(
    index: IndexArgument,
    sources: Annotated[
        list[Path], typer.Argument(help="Folders of pictures, with their subfolders; pictures; .npy files of features.")
    ],
    bundle: BundleOption,
    metadata: MetadataOption = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove items whose files are gone.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks, with --watch.", min=0.1)] = 5.0,
    stored: Annotated[str | None, typer.Option(help=STORED_HELP)] = None,
    skip_broken: SkipBrokenOption = False,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode what is new or changed, by size and time, then by content; makes the index if there is none."""
    file = absolute(index)
    held = _Metadata(metadata, file.parent)
    options = SyncOptions(held.read(), prune, skip_broken or watch, max_megapixels)
    with (
        Retriever(bundle, backend, precision, threads, memory_budget) as retriever,
        retriever.open_index(file, create=True, precision=stored) as opened,
    ):
        _show_synced(opened, _sync(opened, sources, options), as_json)
        while watch:
            time.sleep(interval)
            try:
                options = replace(options, metadata=held.read())
                synced = _sync(opened, sources, options, quiet=True)
            except (BusyError, InputError, OSError) as error:  # such as a folder that is empty for now
                stderr.print(visible(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
                continue
            if synced.changed:
                _show_synced(opened, synced, as_json)


@index_app.command("remove")
def remove_command(
    index: IndexArgument,
    keys: Annotated[list[str], typer.Argument(help="Keys of the items to remove.")],
    as_json: JsonOption = False,
) -> None:
    """Remove items by key."""
    with _opened(index) as opened:
        removed = opened.remove(keys)
        _print(as_json, {"removed": removed, "items": len(opened)}, f"{removed} removed, {len(opened)} left")


@index_app.command("update")
def update_command(
    index: IndexArgument,
    keys: Annotated[list[str] | None, typer.Argument(help="Keys of the items that --set changes.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field and its value in JSON or text: year=2024; repeatable.")
    ] = None,
    metadata: MetadataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change metadata; nothing is encoded. Fields that are not named stay."""
    if bool(keys) != bool(set_) or (not keys and metadata is None):
        raise InputError("give keys with `set`, or `metadata`")
    changes = dict(map(_field, set_ or []))
    updates: dict[str, dict[str, Any]] = dict.fromkeys(keys or [], changes)
    with _opened(index) as opened:
        updates |= {} if metadata is None else read_metadata_file(metadata, opened.path.parent)
        held = {key: opened.get(key) for key in updates}
        merged = {key: {**(item.metadata if item else {}), **updates[key]} for key, item in held.items()}
        unknown = opened.update_many(merged)
    updated = len(updates) - len(unknown)
    line = f"{updated} updated" + (f"; {len(unknown)} not in the index, such as {brief(unknown[0])}" if unknown else "")
    _print(as_json, {"updated": updated, "unknown": unknown}, line)


@index_app.command("list")
def list_command(
    index: IndexArgument,
    where: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="Most items to list.", min=1)] = None,
    offset: Annotated[int, typer.Option(help="Items to leave out at the beginning.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """List items and their metadata; with --json, one object per line."""
    with _opened(index) as opened:
        for item in opened.where(conditions_of(where) or {}, offset, limit):
            if as_json:
                typer.echo(json.dumps({"key": item.key, "document": item.document, "metadata": item.metadata}))
            else:
                typer.echo(visible(f"{item.key}  {json.dumps(item.metadata, ensure_ascii=False)}"))


@index_app.command("info")
def info_command(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Show what an index holds and takes."""
    with _opened(index) as opened:
        found = asdict(opened.info())
    found["path"] = str(found["path"])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("index", Column(Text(visible(found.pop("path")))))
    for name, value in found.items():
        table.add_row(name.replace("_", " "), Text(f"{value:,}" if isinstance(value, int) else str(value)))
    Console().print(table)


@index_app.command("ann")
def ann_command(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Compress the vectors of an index for `search --ann`, where memory is short; a million items take minutes."""
    with _opened(index) as opened:
        items = len(opened)
        with progress_bar("compressing", items) as advance:
            opened.build_ann(advance)
    _print(as_json, {"items": items}, f"{items} items can be searched with --ann")


@index_app.command("reencode")
def reencode_command(
    index: IndexArgument,
    bundle: BundleOption,
    stored: Annotated[str | None, typer.Option(help="How tensors are stored; default: as they are.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Remove items that cannot be read.")] = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move an index to another bundle, while others read and change it; pictures are read from their files again."""
    with _opened(index) as opened, Retriever(bundle, backend, precision, threads, memory_budget) as retriever:
        with progress_bar("encoding", len(opened)) as encoded:
            opened.reencode(retriever, None, stored, encoded, skip_broken)
        items = len(opened)
    _print(as_json, {"items": items, "bundle": retriever.bundle.fingerprint}, f"{items} items moved to {bundle}")


@index_app.command("compact")
def compact_command(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Write the file anew without what is free in it."""
    with _opened(index) as opened:
        before = opened.info().file_bytes
        opened.compact()
        after = opened.info().file_bytes
    _print(as_json, {"before_bytes": before, "after_bytes": after}, f"{before / 1e6:.1f} MB, now {after / 1e6:.1f} MB")


@contextmanager
def _opened(path: Path) -> Iterator[Index]:
    with open_index(None, path, False, (None, None), TIMEOUT_S) as index:
        yield index


class _Metadata:
    """Metadata of a file, which is read again when it has changed."""

    def __init__(self, path: Path | None, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._stamp: tuple[int, int] | None = None
        self._held: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        if self._path is not None:
            found = self._path.stat() if self._path.exists() else None
            stamp = found and (found.st_mtime_ns, found.st_size)
            if stamp is None or stamp != self._stamp:
                self._held = read_metadata_file(self._path, self._folder)
                self._stamp = stamp
        return self._held


def _sync(index: Index, sources: list[Path], options: SyncOptions, quiet: bool = False) -> Synced:
    from PIL import Image  # here: camp --help does not need it

    Image.MAX_IMAGE_PIXELS = None  # --max-megapixels is the limit here
    try:
        return sync(index, sources, options, _no_bar if quiet else progress_bar)
    except PictureError as error:
        raise InputError(f"{error}; --skip-broken leaves out such pictures") from None


@contextmanager
def _no_bar(title: str, total: int | None = None) -> Iterator[Any]:
    yield lambda done: None


def _show_synced(index: Index, synced: Synced, as_json: bool) -> None:
    added, items = synced.added, len(index)
    vanished = ("removed" if synced.removed else "vanished", len(synced.vanished))
    counts = {"added": added.added, "replaced": added.replaced, "unchanged": added.unchanged, vanished[0]: vanished[1]}
    if synced.passed_over and not as_json:
        line = visible(describe(synced.passed_over))
        stderr.print(line, markup=False, highlight=False, soft_wrap=True)
    if synced.vanished and not synced.removed and not as_json:
        line = f"{vanished[1]} files are gone, such as {brief(synced.vanished[0])}: --prune removes them from the index"
        stderr.print(line, markup=False, highlight=False, soft_wrap=True)
    lists = {
        "vanished": synced.vanished,
        "skipped": [asdict(one) for one in added.skipped],
        "passed_over": [asdict(one) for one in synced.passed_over],
    }
    shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "added")
    _print(
        as_json, {"index": str(index.path), "items": items} | counts | lists, f"{index.path}: {items} items; {shown}"
    )


def _print(as_json: bool, result: dict[str, Any], line: str) -> None:
    typer.echo(json.dumps(result) if as_json else visible(line))


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"`set` is {brief(text)}: expected a field and its value, such as year=2024")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
