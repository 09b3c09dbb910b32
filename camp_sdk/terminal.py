"""How commands meet their user: progress bars on standard error, one line and an exit code instead of a traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress, track

from camp_sdk.runtime.errors import CampError, MissingExtraError

T = TypeVar("T")

stderr = Console(stderr=True)
TRAIN_PACKAGES = ("jinja2", "lightning", "onnx", "onnxscript", "tensorboard", "torch")
EXTRA_OF = dict.fromkeys(TRAIN_PACKAGES, "train")


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Walk ``items`` behind a progress bar on standard error, so that standard output stays the answer."""
    return track(items, title, total=total, console=stderr, transient=False)


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields the function to call with the number of items just done."""
    with progress_bars({title: total}) as advance:
        yield lambda done: advance(title, done)


@contextmanager
def progress_bars(totals: Mapping[str, int | None]) -> Iterator[Callable[[str, int], None]]:
    """Several bars, one a title; yields the function to call with a title and the number of its items just done."""
    with Progress(*Progress.get_default_columns(), console=stderr) as bar:
        tasks = {title: bar.add_task(title, total=total) for title, total in totals.items()}
        yield lambda title, done: bar.advance(tasks[title], done)


def run_app(app: typer.Typer) -> None:
    """Run a command-line app; an error of ours, or of a file, becomes one line on standard error and exit code 1.

    So does a package that one of the extras brings. What the terminal cannot show is written as an escape.
    """
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
        sys.exit(130)


def _fail(error: Exception) -> NoReturn:
    stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def run_command(function: Callable[..., Any]) -> None:
    """Run one function as a whole script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run_app(app)
