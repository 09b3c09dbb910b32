"""The command `camp export-triton`: makes a model repository of Triton Inference Server of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.commands.options import BundleArgument, JsonOption
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.lowered import FROM_SHORT
from camp_sdk.triton.repository import TritonOptions, export_repository

SHORT = FROM_SHORT | {"fp32": "float32"}


def export_triton_command(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option(help="Repository folder to write; replaces an older repository.")],
    precision: Annotated[str, typer.Option(help="fp32, or fp16 if the bundle has it.")] = "fp32",
    plans: Annotated[bool, typer.Option("--plans", help="Use the TensorRT engines of camp build, not ONNX.")] = False,
    device: Annotated[str, typer.Option(help="Where the models run: gpu or cpu.")] = "gpu",
    max_batch: Annotated[int, typer.Option(help="Largest batch of the encoders.", min=1)] = TritonOptions.max_batch,
    as_json: JsonOption = False,
) -> None:
    """Make a model repository for NVIDIA's Triton Inference Server."""
    options = TritonOptions(SHORT.get(precision, precision), plans, device, max_batch)
    models = export_repository(Bundle(bundle), output, options)
    if as_json:
        typer.echo(json.dumps({"repository": str(output), "models": models}, indent=2))
    else:
        typer.echo(f"{output}: {', '.join(models)}")
