"""Progress bars on standard error, so that standard output stays the answer. rich is imported when the first is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields the function to call with the number of items just done.

        with progress_bar("encoding images", len(paths)) as advance:
            gallery = retriever.encode_images(paths, on_progress=advance)

    total: how many items there will be; None, of a generator for example, shows a bar without an end.
    """
    with progress_bars({title: total}) as advance:
        yield lambda done: advance(title, done)


@contextmanager
def progress_bars(totals: Mapping[str, int | None]) -> Iterator[Callable[[str, int], None]]:
    """Several bars, one a title; yields the function to call with a title and the number of its items just done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        tasks = {title: bar.add_task(title, total=total) for title, total in totals.items()}
        yield lambda title, done: bar.advance(tasks[title], done)
