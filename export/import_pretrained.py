"""Import a published model of CLIP, so that `camp export` accepts it.

    camp import clip openai/clip-vit-base-patch32 --output runs/clip --bundle bundle/

SOURCE is a folder with config.json, model.safetensors, preprocessor_config.json and tokenizer.json, or a repository of
Hugging Face, which is fetched. Weights are read from safetensors only; nothing in the files is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import check_writable, followed, is_empty
from camp_sdk.terminal import run_command, stderr


def import_pretrained(source: str, output: Path, revision: str | None = None, bundle: Path | None = None) -> Path:
    """Convert a published model, and write it as ``output``/best.ckpt.

    Args:
        source: the model's folder, or a repository of Hugging Face.
        output: the folder to write into; new or empty.
        revision: the branch, tag or commit of the repository. The commit is recorded.
        bundle: also export the checkpoint, as a bundle in this folder; an older bundle there is replaced.

    Returns:
        The path of best.ckpt.

    Raises:
        BundleError: a file is missing or broken, is of a model of another kind, or the files do not fit together.
        ExportError: a graph does not give PyTorch's scores; the checkpoint is written, the bundle is not.
        InputError: ``output`` is not empty, ``bundle`` holds something other than an older bundle, or there is no such
            folder or repository, or it cannot be fetched.
        MissingExtraError: transformers, safetensors or huggingface_hub is not installed.
        OSError: the disk is full, or nothing can be written to ``output``.
    """
    from camp_sdk.export.bundling.writer import check_output, export_bundle  # here: --help does not wait for torch
    from camp_sdk.export.network.checkpoint import KEY, write_checkpoint
    from camp_sdk.export.pretrained.model import read_model
    from camp_sdk.export.pretrained.source import open_source

    if output.exists() and not is_empty(output):
        raise InputError(f"{output} is not empty: name a new folder")
    check_writable(followed(output))
    if bundle is not None:
        check_output(bundle)
    model, origin = read_model(open_source(source, revision))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = output / "best.ckpt"
    write_checkpoint({"state_dict": state, KEY: origin.as_dict()}, path)
    if bundle is not None:
        del model, state  # before the export reads them again
        export_bundle(path, bundle)
    return path


def command(
    source: Annotated[str, typer.Argument(help="Folder of the model, or a repository such as owner/name.")],
    output: Annotated[Path, typer.Option(help="Folder to write best.ckpt into.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Also export a bundle into this folder.")] = None,
) -> None:
    """Import a published model of CLIP."""
    path = import_pretrained(source, output, revision, bundle)
    following = f"camp export --checkpoint {path} --output bundle/" if bundle is None else f"camp info {bundle}"
    stderr.print(f"wrote {path}; next: {following}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(command)
