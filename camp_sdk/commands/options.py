"""Arguments and options that several commands of `camp` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.backends import BACKENDS

IMAGES_HELP = (
    "Folder of pictures (without subfolders), or .npy file of float32 features [I, R, D]; rows repeated five times "
    "count once."
)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder written by camp export.")]
BackendOption = Annotated[str, typer.Option(help=f"Inference engine: auto, {', '.join(BACKENDS)}.")]
PrecisionOption = Annotated[
    str, typer.Option(help="float32; faster, with slightly different scores: float16 (GPUs), bfloat16 (openvino).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBrokenOption = Annotated[
    bool,
    typer.Option("--skip-broken", help="Skip pictures that cannot be read, with a warning on standard error."),
]
MegapixelsOption = Annotated[float, typer.Option(help="Largest picture to decode, in megapixels.")]
