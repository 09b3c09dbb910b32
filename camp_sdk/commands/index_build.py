"""The command `camp index build`: an index in parts, encoded by many processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.cluster.building import Built, Cluster, build_parts
from camp_sdk.cluster.encoding import Encoder
from camp_sdk.cluster.sources import find_sources
from camp_sdk.commands.options import BackendOption, JsonOption, MegapixelsOption, PrecisionOption
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.progress import progress_bar
from camp_sdk.runtime.files import absolute
from camp_sdk.runtime.messages import visible
from camp_sdk.terminal import stderr

SHOWN = 10  # pictures that were left out


def build_parts_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the parts, such as photos.parts; made if there is none.")],
    source: Annotated[
        str,
        typer.Option("--from", help="Folder of pictures, URL of one, or text file of paths and URLs, one a line."),
    ],
    bundle: Annotated[Path, typer.Option(help="Bundle folder written by camp export.")],
    parts: Annotated[int | None, typer.Option(help="Number of parts of a new folder. Default: 1.", min=1)] = None,
    ray: Annotated[
        str | None, typer.Option(help="Encode on a cluster of Ray: its address; local starts one on this machine.")
    ] = None,
    cpus: Annotated[int, typer.Option(help="Cores of each process, with --ray.", min=1)] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each process, with --ray.", min=0.0)] = 0.0,
    stored: Annotated[str | None, typer.Option(help="Storage of new parts, as `camp index add` takes it.")] = None,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Encode a corpus into parts, each an index; what was interrupted goes on where it was."""
    sources = find_sources(source)
    threads = None if ray is None else cpus
    encoder = Encoder(absolute(bundle), backend, precision, stored, threads, max_megapixels)
    cluster = None if ray is None else Cluster(ray, cpus, gpus)
    with progress_bar("encoding images", len(sources)) as encoded:
        built = build_parts(folder, sources, encoder, parts, cluster, encoded)
    _show(built, as_json)


def _show(built: Built, as_json: bool) -> None:
    counts = {"encoded": built.encoded, "unchanged": built.unchanged, "restarts": built.restarts}
    if as_json:
        skipped = [{"key": one.name, "reason": one.reason} for one in built.skipped]
        found = {"folder": str(built.parts.folder), "parts": built.parts.count} | counts | {"skipped": skipped}
        typer.echo(json.dumps(found))
        return
    for one in built.skipped[:SHOWN]:
        stderr.print(visible(f"{one.name} {one.reason}"), markup=False, highlight=False, soft_wrap=True)
    shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "encoded")
    left_out = f"; {len(built.skipped)} cannot be read" if built.skipped else ""
    typer.echo(visible(f"{built.parts.folder}: {built.parts.count} parts; {shown}{left_out}"))
