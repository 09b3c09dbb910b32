"""The command `camp build`: builds engines for a bundle's graphs and writes them into the bundle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.progress import progress_bar
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable
from camp_sdk.runtime.lowered import COARSE, FROM_SHORT
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine, built_engine, prefer, trtexec_command
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tensorrt.plans import PlanRecord

PRECISIONS = ("float16", "float32", *COARSE)
STEPS = 100  # of a progress bar


def build_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder written by camp export.")],
    backend: Annotated[str, typer.Option(help="tensorrt, or tensorrt-rtx (builds without a GPU).")] = "tensorrt",
    precision: Annotated[
        str | None,
        typer.Option(
            help="float16, float32, or, for first passes, int8 or float8. Default: float16 if the bundle has it."
        ),
    ] = None,
    graph: Annotated[list[str] | None, typer.Option(help="Build only this graph; may be repeated.")] = None,
    max_images: Annotated[int, typer.Option(help="Largest number of images in a call.", min=1)] = Limits.max_images,
    max_texts: Annotated[int, typer.Option(help="Largest number of texts in a call.", min=1)] = Limits.max_texts,
    max_words: Annotated[
        int | None, typer.Option(help="Largest number of words in a text, both markers included.", min=1)
    ] = None,
    max_regions: Annotated[int | None, typer.Option(help="Largest number of regions in an image.", min=1)] = None,
    workspace_bytes: Annotated[
        int | None, typer.Option(help="Largest scratch memory of a layer, in bytes.", min=1)
    ] = None,
    force: Annotated[bool, typer.Option(help="Rebuild engines that are already built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Build TensorRT engines for a bundle's graphs, inside the bundle."""
    limits = Limits(max_images, max_texts, max_words, max_regions, workspace_bytes)
    orders = _orders(Bundle(bundle), backend, precision, graph, limits)
    answers = []
    for order in orders:
        found = None if force else built_engine(order)
        record = prefer(order, found) if found else _build(order)
        answers.append(_as_dict(order, record, found is None))
        if not as_json:
            typer.echo(_line(record, found is None))
            typer.echo(f"  {trtexec_command(order)}")
    if as_json:
        typer.echo(json.dumps({"engines": answers}, indent=2))
    else:
        for used in sorted({answer["precision"] for answer in answers} - {"float32"}):
            typer.echo(
                f'{used} engines need that precision in use: camp rank ... --precision {used}, or precision="{used}"'
            )


def _orders(
    bundle: Bundle, backend: str, precision: str | None, graphs: list[str] | None, limits: Limits
) -> list[EngineOrder]:
    precision = precision or ("float16" if "float16" in bundle.manifest.precisions else "float32")
    precision = FROM_SHORT.get(precision, precision)
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: engines are built in {' or '.join(PRECISIONS)}")
    every = bundle.manifest.graphs_in(precision)
    if precision in COARSE:  # the first pass of a retriever whose encoders have their own precision
        every = bundle.manifest.precisions[precision].graphs
    here = here_of(backend)
    names = dict.fromkeys(graphs or every)
    orders = [EngineOrder(bundle, name, precision, here, limits) for name in names]
    for order in orders:
        check_writable(order.folder)  # fails before the first build, which may take minutes, like a wrong name or limit
    return orders


def _build(order: EngineOrder) -> PlanRecord:
    with progress_bar(f"building {order.graph}", STEPS) as advance:
        shown = 0

        def on_progress(share: float) -> None:
            nonlocal shown
            reached = int(share * STEPS)
            advance(reached - shown)
            shown = reached

        record = build_engine(order, on_progress)
        on_progress(1.0)
    return record


def _line(record: PlanRecord, is_new: bool) -> str:
    share = "" if record.precision == "float32" else f", {record.low_share:.0%} of its products in it"
    what = f"{record.graph}: {record.precision}{share}, {record.plan_bytes / 1e6:.1f} MB"
    return f"{what}, built in {record.build_s:.1f} s" if is_new else f"{what}, already built (--force builds it again)"


def _as_dict(order: EngineOrder, record: PlanRecord, is_new: bool) -> dict[str, Any]:
    fields = {"folder": str(order.folder), "built": is_new, "command": trtexec_command(order)}
    return json.loads(record.as_json()) | asdict(order.limits) | fields  # type: ignore[no-any-return]  # JSON of a dict
