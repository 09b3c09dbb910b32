"""Arguments and options that several commands of `camp` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.backends import BACKENDS

IMAGES_HELP = (
    "Folder of pictures (not of its subfolders), or float32 features [I, R, D], a .npy file; equal fives count once."
)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder made by export/to_onnx.py.")]
BackendOption = Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.")]
PrecisionOption = Annotated[
    str, typer.Option(help="float32, float16 (GPUs) or bfloat16 (openvino): faster, scores differ a little.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBrokenOption = Annotated[
    bool,
    typer.Option("--skip-broken", help="Leave out pictures that cannot be read; they are named on standard error."),
]
MegapixelsOption = Annotated[float, typer.Option(help="Do not decode pictures of more.")]
