"""Export a checkpoint as a bundle: ONNX graphs, tokenizer, manifest and golden examples.

    camp export --checkpoint runs/paper/best.ckpt --output bundle/ --precision fp16

The bundle is checked against PyTorch, and written only if it passes. It then replaces an older bundle of the same name.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.lowered import FROM_SHORT, PRECISION_FOLDERS
from camp_sdk.terminal import run_command, stderr


class Lower(Enum):
    """Precisions that a bundle may hold besides float32, by their folders."""

    FP16 = PRECISION_FOLDERS["float16"]
    BF16 = PRECISION_FOLDERS["bfloat16"]
    INT8 = PRECISION_FOLDERS["int8"]
    FP8 = PRECISION_FOLDERS["float8"]


def command(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint written by camp train or camp import.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    network: Annotated[
        str | None, typer.Option(help="Your own network that the checkpoint holds: my_package.my_module:MyNetwork.")
    ] = None,
    precision: Annotated[
        list[Lower] | None,
        typer.Option(
            help="Also write graphs for GPUs (fp16), for processors that compute in bfloat16 (bf16; needs openvino), "
            "or for a fast first pass of a ranking (int8; fp8 with TensorRT)."
        ),
    ] = None,
) -> None:
    """Export a checkpoint as a bundle, and check its scores against PyTorch."""
    from camp_sdk.export.bundling.writer import export_bundle  # here, so that --help does not wait for torch

    export_bundle(checkpoint, output, [FROM_SHORT[wanted.value] for wanted in dict.fromkeys(precision or ())], network)
    stderr.print(f"wrote {output}", highlight=False)


if __name__ == "__main__":
    run_command(command)
