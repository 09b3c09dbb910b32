"""What all commands share: progress on standard error, and errors as one line and an exit code, without a traceback."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from camp_sdk.runtime.errors import CampError, InputError, MissingExtraError
from camp_sdk.runtime.messages import visible

T = TypeVar("T")

stderr = Console(stderr=True)
TRAIN_PACKAGES = ("jinja2", "lightning", "onnx", "onnxscript", "tensorboard", "torch")
CLIP_PACKAGES = ("huggingface_hub", "safetensors", "transformers")
SERVER_PACKAGES = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")
FLAGS = {"memory_budget_bytes": "--memory-budget"}  # those that differ from their parameter's name
PARAMETER = re.compile(r"`([a-z][a-z_]*)`")
EXTRA_OF = {
    package: extra
    for extra, packages in (("train", TRAIN_PACKAGES), ("clip", CLIP_PACKAGES), ("server", SERVER_PACKAGES))
    for package in packages
}


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Iterate over ``items`` with a progress bar on standard error, which leaves standard output to results."""
    return track(items, title, total=total, console=stderr, transient=False)


def show_step(command: str) -> None:
    """Print the command that a script runs next to standard error, on one line so that it can be copied."""
    stderr.print(f"\n$ {command}", style="dim", markup=False, highlight=False, soft_wrap=True)


def run_app(app: typer.Typer) -> None:
    """Run a command-line app.

    A `CampError`, an OSError, or the absence of a package that an extra installs becomes one line on standard error and
    exit code 1. Ctrl-C ends the app with exit code 130 and SIGTERM with 143, after unfinished output is removed.
    Characters that the terminal cannot show are written as escapes.
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


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def as_flags(message: str) -> str:
    """A message for the command line: a parameter in backticks, such as `batch_size`, becomes --batch-size."""
    return PARAMETER.sub(lambda match: FLAGS.get(match[1], f"--{match[1].replace('_', '-')}"), message)


def _fail(error: Exception) -> NoReturn:
    message = as_flags(str(error)) if isinstance(error, InputError) else str(error)
    stderr.print(f"error: {visible(message)}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def run_command(function: Callable[..., Any]) -> None:
    """Run one function as a whole script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run_app(app)
