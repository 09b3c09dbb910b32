"""The command `camp info`: what a bundle is, from its manifest and its built engines; no engine is opened."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.commands.options import BundleArgument, JsonOption
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import Manifest
from camp_sdk.runtime.messages import brief, visible
from camp_sdk.runtime.tensorrt.plans import PlanRecord, read_records

MAX_VALUE = 200  # characters of one name or value of the manifest in a table
MAX_ROWS, MAX_COLUMNS = 100, 40  # of a table that only people read
Records = list[tuple[Path, PlanRecord]]


def info_command(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle is: network, graphs, precisions, checks, training, files and engines."""
    opened = Bundle(bundle)  # also compares every file with its hash
    records, broken = read_records(opened.folder)
    if as_json:
        try:
            typer.echo(json.dumps(described(opened, records, broken), indent=2, allow_nan=False))
        except RecursionError:  # figures "for people" are not checked
            raise BundleError(f"{bundle} has figures in its manifest that are nested too deeply to print") from None
        return
    console, manifest = Console(), opened.manifest
    _print_head(console, opened)
    console.print(graphs_table(manifest))
    for name, checks in checks_of(manifest).items():
        if checks:
            console.print(_checks_table(name, checks))
    for title, values in (("trained with", manifest.training), ("made with", manifest.made_with)):
        if values:
            console.print(_values_table(title, values))
    console.print(_files_table(manifest))
    console.print(_engines_table(records) if records else "engines: none; camp build makes them")
    for problem in broken:
        console.print(_shown(problem, "red"))


def described(bundle: Bundle, records: Records, broken: Sequence[str]) -> dict[str, Any]:
    """The JSON of a bundle: its manifest, with its folder, fingerprint, size and engines.

    Args:
        bundle: The bundle.
        records: The folder and the record of each of its engines.
        broken: What is wrong with engines whose record cannot be read.
    """
    engines = [{"folder": str(folder), **asdict(record)} for folder, record in records]
    head = {"folder": str(bundle.folder), "fingerprint": bundle.fingerprint, "bytes": _bytes_of(bundle.manifest)}
    whole = head | bundle.manifest.as_dict() | {"engines": engines, "broken_engines": list(broken)}
    return {name: _finite(value) for name, value in whole.items()}


def checks_of(manifest: Manifest) -> dict[str, tuple[dict[str, Any], ...]]:
    """The figures of the export's checks, by precision."""
    return {"float32": manifest.parity, **{name: lowered.checks for name, lowered in manifest.precisions.items()}}


def graphs_table(manifest: Manifest) -> Table:
    """Every graph in every precision, with its inputs and outputs."""
    table = Table(
        "graph", "precision", Column("MB", justify="right"), "reads", "makes", title="graphs", show_lines=True
    )
    lowered = ((precision, own.graphs) for precision, own in manifest.precisions.items())
    for precision, graphs in (("float32", manifest.graphs), *lowered):
        for name, graph in graphs.items():
            size = f"{manifest.files[graph.file].bytes / 1e6:.1f}"
            table.add_row(name, precision, size, _tensors(graph.inputs), _tensors(graph.outputs))
    return table


def _print_head(console: Console, bundle: Bundle) -> None:
    manifest, size = bundle.manifest, _bytes_of(bundle.manifest)
    known = f" of {brief(manifest.vocabulary)}" if manifest.vocabulary else ""
    limit = f"{brief(manifest.max_words)} words{known}"
    lines = {
        "bundle": str(bundle.folder),
        "network": f"{manifest.variant[:MAX_VALUE]}, scores by {manifest.activation}",
        "sizes": _pairs(manifest.sizes),
        "takes": _taken(manifest),
        "texts": f"at most {limit}; {len(manifest.stop_words)} stop words",
        "ranks": _ranked(manifest),
        "precisions": ", ".join(["float32", *manifest.precisions]),
        "size": f"{size / 1e6:.1f} MB in {len(manifest.files)} files, each as its hash says",
        "fingerprint": bundle.fingerprint,
    }
    for name, value in lines.items():
        console.print(_shown(f"{name + ':':<13}{value}"), soft_wrap=True)


def _taken(manifest: Manifest) -> str:
    features = f"features [R, {manifest.feature_width}] float32"
    if (pixels := manifest.pixels) is None:
        return features
    return f"pictures, {pixels.fit} to {pixels.height} x {pixels.width} pixels, or {features}"


def _ranked(manifest: Manifest) -> str:
    if first := manifest.first_stage:
        return f"the {brief(first.shortlist)} images nearest by global vector, unless a ranking asks for another number"
    return "every image" + (", or a shortlist by global vector" if manifest.has_vectors else "")


def _tensors(specs: Iterable[TensorSpec]) -> Text:
    return Text("\n").join(_shown(f"{spec.name} [{', '.join(map(str, spec.shape))}] {spec.dtype}") for spec in specs)


def _checks_table(precision: str, checks: Iterable[Mapping[str, Any]]) -> Table:
    rows = [dict(check) for check in itertools.islice(checks, MAX_ROWS)]
    names = list(dict.fromkeys(name for row in rows for name in row))[:MAX_COLUMNS]
    heads = (Column(_shown(name[:MAX_VALUE].replace("_", " "))) for name in names)
    table = Table(*heads, title=f"export's checks in {precision}")
    for row in rows:
        table.add_row(*(_value(row.get(name, "")) for name in names))
    return table


def _values_table(title: str, values: Mapping[str, Any]) -> Table:
    table = Table("", "", title=title, show_header=False)
    for name, value in itertools.islice(values.items(), MAX_ROWS):
        table.add_row(_shown(name[:MAX_VALUE]), _shown(_pairs(value)) if isinstance(value, dict) else _value(value))
    if len(values) > MAX_ROWS:
        table.add_row("...", f"{len(values) - MAX_ROWS} more: --json")
    return table


def _files_table(manifest: Manifest) -> Table:
    table = Table("file", Column("bytes", justify="right"), "SHA-256", title="files")
    for name, entry in manifest.files.items():
        table.add_row(_shown(name), f"{entry.bytes:,}", entry.sha256)
    return table


def _engines_table(records: Records) -> Table:
    table = Table("engine", "precision", "built by", "for", Column("MB", justify="right"), title="engines")
    for _, record in records:
        target = (
            f"compute capability {record.compute_capability}" if record.compute_capability else "every GPU from 8.0"
        )
        library = f"{record.library.replace('_', '-')} {record.library_version}"
        cells = (record.graph, record.precision, library, target, f"{record.plan_bytes / 1e6:.1f}")
        table.add_row(*map(_shown, cells))
    return table


def _pairs(values: Mapping[str, Any]) -> str:
    some = itertools.islice(values.items(), MAX_COLUMNS)
    return ", ".join(f"{name[:MAX_VALUE]} {_plain(value)}" for name, value in some if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:MAX_VALUE] if isinstance(value, str) else brief(value)


def _value(value: Any) -> Text:
    return _shown(_plain(value))


def _finite(value: Any) -> Any:
    """Plain values with None for NaN and infinity, which JSON lacks; a manifest's figures may hold them."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _bytes_of(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files.values())


def _shown(text: str, style: str = "") -> Text:
    """Text that is safe to print: a bundle's files may hold markup or control characters."""
    return Text(visible(text), style=style)
