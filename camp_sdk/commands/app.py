"""The `camp` command and the list of its subcommands. Results go to standard output, progress to standard error."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from camp_sdk import __version__
from camp_sdk.commands.build import build_command
from camp_sdk.commands.data import data_app
from camp_sdk.commands.doctor import doctor_command
from camp_sdk.commands.encode import encode_command
from camp_sdk.commands.eval import eval_command
from camp_sdk.commands.export_triton import export_triton_command
from camp_sdk.commands.index import index_app
from camp_sdk.commands.index_build import build_parts_command
from camp_sdk.commands.index_search import search_command
from camp_sdk.commands.info import info_command
from camp_sdk.commands.rank import rank_command
from camp_sdk.commands.serve import CONTEXT, serve_command
from camp_sdk.terminal import run_app

COMMANDS: dict[str, Callable[..., None]] = {
    "eval": eval_command,
    "rank": rank_command,
    "encode": encode_command,
    "info": info_command,
    "build": build_command,
    "doctor": doctor_command,
    "export-triton": export_triton_command,
}
# Modules of camp_sdk.export, each with a function `command`. They are imported by name, only when they are needed,
# because the SDK does not depend on the packages for training.
TRAINING_COMMANDS = {
    "scenes": "scenes",
    "train": "train",
    "import": "import_checkpoint",
    "import clip": "import_pretrained",
    "export": "to_onnx",
    "pack": "pack_graphs",
}


class _Commands(TyperGroup):
    """All commands; those for training and export are imported when they are run or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *TRAINING_COMMANDS]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, words if words[0] in TRAINING_COMMANDS else args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in TRAINING_COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"camp_sdk.export.{TRAINING_COMMANDS[cmd_name]}")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name, rich_help_panel="Train and export (extra: train)")(module.command)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Rank pictures by text with CAMP.",
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.command("serve", context_settings=CONTEXT)(serve_command)
app.add_typer(data_app, name="data")
index_app.command("search")(search_command)
index_app.command("build")(build_parts_command)
app.add_typer(index_app, name="index")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the `camp` command."""
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # --max-megapixels is the limit here
    run_app(app)


if __name__ == "__main__":
    main()
