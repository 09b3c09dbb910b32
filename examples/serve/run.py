"""Serve the pictures that `make demo` drew: an index of them, with what each shows as metadata, and a page to search.

    python -m examples.serve.run

Then open the address that is printed, or ask from Python: python -m examples.serve.search "a large blue star".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk import Added, Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.server.settings import Settings
from camp_sdk.terminal import progress, run_command, show_step


def main(
    demo: Annotated[Path, typer.Option(help="Folder that make demo wrote.")] = Path("build/demo"),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
) -> None:
    """Index the pictures of the demo, and serve them on this machine until Ctrl-C."""
    index_pictures(demo)
    settings = settings_of(demo, port)
    show_step(f"camp serve {settings.bundle} --index {settings.index} --port {port}")
    from camp_sdk.server.run import serve  # here: without its packages, the command prints one line

    serve(settings)


def settings_of(demo: Path, port: int) -> Settings:
    """The settings of the server.

    Args:
        demo: The folder of the demo.
        port: The port to listen at.
    """
    return Settings(demo / "bundle", index=demo / "photos.index", port=port)


def index_pictures(demo: Path) -> Added:
    """Encode the test pictures of the demo that the index does not hold yet.

    Args:
        demo: The folder of the demo.

    Raises:
        InputError: The demo has not run.
    """
    settings, pictures = settings_of(demo, 0), demo / "data" / "test"
    if settings.index is None or not (settings.bundle.is_dir() and pictures.is_dir()):
        raise InputError(f"{demo} has no bundle and pictures: run make demo first, which takes about eight minutes")
    described = list(_described(pictures / "metadata.jsonl"))
    with Retriever(settings.bundle) as retriever, retriever.open_index(settings.index, create=True) as index:
        paths = progress([pictures / name for name, _ in described], "indexing pictures")
        return index.add(paths, metadata=[metadata for _, metadata in described])


def _described(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of pictures, and what each shows."""
    for line in file.read_text(encoding="utf-8").splitlines():
        scene = json.loads(line)
        metadata: dict[str, Any] = {"caption": scene["captions"][0], "objects": len(scene["objects"])}
        for field in ("colour", "shape"):
            metadata[f"{field}s"] = sorted({one[field] for one in scene["objects"]})
        yield scene["file_name"], metadata


if __name__ == "__main__":
    run_command(main)
