"""From a checkpoint of the released research code to a ranking without PyTorch.

    python -m examples.released_checkpoint.run --output build/released

This command first makes small synthetic files in the released formats: a trained checkpoint (.pth.tar), its pickled
vocabulary, precomputed features and captions. Then it imports, exports, evaluates and ranks with them. With your own
files:

    python -m examples.released_checkpoint.run --output build/mine --checkpoint model_best.pth.tar \\
        --vocab f30k_precomp_vocab.pkl --data data/f30k_precomp --protocol flickr30k
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from camp_sdk import Retriever, evaluate, load_split
from camp_sdk.commands.eval import evaluation_table
from camp_sdk.evaluation import protocol_folds, work_of
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.progress import progress_bars
from camp_sdk.runtime.errors import InputError
from camp_sdk.terminal import run_command, show_step


def main(
    output: Annotated[Path, typer.Option(help="Folder to create.")] = Path("build/released"),
    checkpoint: Annotated[Path | None, typer.Option(help="Your checkpoint. Default: synthetic files.")] = None,
    vocab: Annotated[Path | None, typer.Option(help="Its vocabulary.")] = None,
    data: Annotated[Path | None, typer.Option(help="Its data set: a folder of precomputed features.")] = None,
    protocol: Annotated[str | None, typer.Option(help="flickr30k, coco-5k or coco-1k.")] = None,
    query: Annotated[str, typer.Option(help="Query of the final ranking.")] = "a red dog and a blue cup",
) -> None:
    """Import, export, evaluate and rank with a released checkpoint."""
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: remove it, or name another folder")
    if checkpoint is None or vocab is None or data is None:
        if checkpoint or vocab or data:
            raise InputError("--checkpoint, --vocab and --data go together: give all three, or none")
        from examples.released_checkpoint.synthetic import make_released_files  # here: only synthetic files need it

        checkpoint, vocab, data = make_released_files(output / "released")
    test = load_split(data, "test")
    folds = protocol_folds(protocol, test) if protocol else 1
    run, bundle = output / "imported", output / "bundle"
    show_step(f"camp import {checkpoint} --vocab {vocab} --data {data} --output {run}")
    imported = import_checkpoint(checkpoint, vocab, run, data)
    show_step(f"camp export --checkpoint {imported} --output {bundle}")
    export_bundle(imported, bundle)
    with Retriever(bundle) as retriever:
        show_step(f"camp eval {bundle} --data {data}" + (f" --protocol {protocol}" if protocol else ""))
        with progress_bars(work_of(test, folds)) as advance:
            result = evaluate(retriever, test, folds, advance, protocol)
        Console().print(evaluation_table(result, f"{data} test: {result.protocol}"))
        show_step(f'camp rank {bundle} --images {data / "test_ims.npy"} --query "{query}"')
        for match in retriever.rank(query, test.images):
            own = [test.captions[k] for k in np.flatnonzero(test.image_of_caption == match.corpus_id)]
            nearest = max(own, key=lambda caption: len(set(caption.lower().split()) & set(query.split())))
            Console().print(f"{match.rank}. {match.score:.4f}  image {match.corpus_id}: {nearest}", markup=False)


if __name__ == "__main__":
    run_command(main)
