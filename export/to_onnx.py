"""Export a checkpoint as a bundle: ONNX graphs, tokenizer, manifest, golden examples; checked against PyTorch, or not made.

    python export/to_onnx.py --checkpoint runs/paper/best.ckpt --output bundle/ --precision fp16

An older bundle of that name is replaced when the new one is whole.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.manifest import PRECISION_FOLDERS
from camp_sdk.terminal import run_command, stderr


class Lower(Enum):
    """Precisions a bundle may hold beside float32, by their folders."""

    FP16 = PRECISION_FOLDERS["float16"]
    BF16 = PRECISION_FOLDERS["bfloat16"]


def command(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint written by export/train.py.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    precision: Annotated[
        list[Lower] | None,
        typer.Option(
            help="Also write graphs for GPUs (fp16), or for processors that compute in bfloat16 (bf16; needs openvino)."
        ),
    ] = None,
) -> None:
    """Export a checkpoint as a bundle, and check its scores against PyTorch."""
    from camp_sdk.export.bundling.writer import export_bundle  # here: --help need not wait for torch

    names = {folder: name for name, folder in PRECISION_FOLDERS.items()}
    export_bundle(checkpoint, output, [names[wanted.value] for wanted in dict.fromkeys(precision or ())])
    stderr.print(f"wrote {output}", highlight=False)


if __name__ == "__main__":
    run_command(command)
