"""How commands meet their user: progress on standard error, one line and an exit code instead of a traceback."""

from __future__ import annotations

import io
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from camp_sdk.runtime.errors import CampError, InputError, MissingExtraError

T = TypeVar("T")

stderr = Console(stderr=True)
TRAIN_PACKAGES = ("jinja2", "lightning", "onnx", "onnxscript", "tensorboard", "torch")
PARAMETER = re.compile(r"`([a-z][a-z_]*)`")
EXTRA_OF = dict.fromkeys(TRAIN_PACKAGES, "train")


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Walk ``items`` behind a progress bar on standard error, so that standard output stays the answer."""
    return track(items, title, total=total, console=stderr, transient=False)


def show_step(command: str) -> None:
    """Tell which command a script's next step is, on standard error: to be copied, so never cut."""
    stderr.print(f"\n$ {command}", style="dim", markup=False, highlight=False, soft_wrap=True)


def run_app(app: typer.Typer) -> None:
    """Run a command-line app; an error of ours, or of a file, becomes one line on standard error and exit code 1.

    So does a package that one of the extras brings. Ctrl-C ends it with 130, SIGTERM with 143, after what was half done is
    cleared away. What the terminal cannot show is written as an escape.
    """
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (CampError, OSError) as error:
        _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA_OF:
            raise
        _fail(MissingExtraError(package, EXTRA_OF[package]))
    except KeyboardInterrupt:
        stderr.print("interrupted", style="red")
        sys.exit(130)


def visible(text: str) -> str:
    """Text that steers no terminal: control characters, but for the ends of lines, are written as escapes."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def as_flags(message: str) -> str:
    """A message as the command line shows it: `batch_size`, a parameter in backticks, becomes --batch-size."""
    return PARAMETER.sub(lambda match: f"--{match[1].replace('_', '-')}", message)


def _fail(error: Exception) -> NoReturn:
    message = as_flags(str(error)) if isinstance(error, InputError) else str(error)
    stderr.print(f"error: {visible(message)}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def run_command(function: Callable[..., Any]) -> None:
    """Run one function as a whole script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run_app(app)
