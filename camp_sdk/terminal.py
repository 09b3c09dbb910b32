"""How commands meet their user: progress bars on standard error, one line and an exit code instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress, track

from camp_sdk.runtime.errors import CampError

T = TypeVar("T")

stderr = Console(stderr=True)


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """Walk ``items`` behind a progress bar on standard error, so that standard output stays the answer."""
    return track(items, title, total=total, console=stderr, transient=False)


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields the function to call with the number of items just done."""
    with Progress(*Progress.get_default_columns(), console=stderr) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def run_app(app: typer.Typer) -> None:
    """Run a command-line app; a CampError becomes one line on standard error and exit code 1."""
    try:
        app()
    except CampError as error:
        stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def run_command(function: Callable[..., Any]) -> None:
    """Run one function as a whole script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run_app(app)
