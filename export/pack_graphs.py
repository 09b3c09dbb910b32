"""Pack graphs that other programs made as a bundle: `camp pack`.

    camp pack --image image.onnx --text text.onnx --scorer scorer.onnx --tokenizer tokenizer.json --output bundle/

The bundle is written only if the graphs fit each other, and give the same logits in padded batches and blocks as for
each pair alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.export.training.options import FIT, channels
from camp_sdk.runtime.errors import BundleError
from camp_sdk.terminal import run_command, stderr

MAX_LINES = 1000  # read; a bundle keeps fewer


def command(
    image: Annotated[Path, typer.Option(help="Graph from features [I, R, D] to the images' tensors.")],
    text: Annotated[Path, typer.Option(help="Graph from tokens [T, N] and lengths [T] to the texts' tensors.")],
    scorer: Annotated[Path, typer.Option(help="Graph from the tensors of both sides to logits [I, T].")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of Hugging Face's tokenizers.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    vision: Annotated[Path | None, typer.Option(help="Graph from pixels [B, 3, H, W] to features [B, R, D].")] = None,
    explainer: Annotated[
        Path | None,
        typer.Option(help="Graph from these tensors to attention and gates."),
    ] = None,
    name: Annotated[str, typer.Option(help="The network's name, as tables and camp info show it.")] = "packed",
    activation: Annotated[str, typer.Option(help="From logits to scores: sigmoid, or none for cosines.")] = "sigmoid",
    fit: Annotated[str, typer.Option(help=FIT)] = "letterbox",
    pixel_mean: Annotated[str, typer.Option(help="Mean of each channel, in 0..1. Default: ImageNet's.")] = "",
    pixel_std: Annotated[str, typer.Option(help="Standard deviation of each channel. Default: ImageNet's.")] = "",
    captions: Annotated[Path | None, typer.Option(help="File of example texts, one per line.")] = None,
) -> None:
    """Pack graphs that other programs made as a bundle."""
    from camp_sdk.export.bundling.packing import Facts, Parts, pack  # here: --help does not wait for torch

    mean, std = channels("pixel_mean", pixel_mean), channels("pixel_std", pixel_std)
    facts = Facts(name, activation, fit, mean or Facts.pixel_mean, std or Facts.pixel_std, _lines(captions))
    pack(Parts(image, text, scorer, tokenizer, vision, explainer), output, facts)
    stderr.print(f"wrote {output}", highlight=False)


def _lines(file: Path | None) -> list[str]:
    """The first lines of a file of texts that are not empty."""
    if file is None:
        return []
    try:
        with file.open(encoding="utf-8-sig") as opened:
            lines = list(itertools.islice(filter(None, map(str.strip, opened)), MAX_LINES))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read as text: {error}") from None
    if not lines:
        raise BundleError(f"{file} holds no text: expected one per line")
    return lines


if __name__ == "__main__":
    run_command(command)
