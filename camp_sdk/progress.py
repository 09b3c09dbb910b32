"""Progress bars on standard error, which leaves standard output to results; rich is imported with the first bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; a context manager.

        with progress_bar("encoding images", len(paths)) as advance:
            gallery = retriever.encode_images(paths, on_progress=advance)

    Args:
        title: The text before the bar.
        total: The number of items. None, for a generator of unknown length, shows a bar without an end.

    Yields:
        The function to call with the number of items just done.
    """
    with progress_bars({title: total}) as advance:
        yield lambda done: advance(title, done)


@contextmanager
def progress_bars(totals: Mapping[str, int | None]) -> Iterator[Callable[[str, int], None]]:
    """Show several progress bars on standard error; a context manager.

    Args:
        totals: The number of items by title, one bar for each; None for a bar without an end.

    Yields:
        The function to call with a title and the number of its items just done.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        tasks = {title: bar.add_task(title, total=total) for title, total in totals.items()}
        yield lambda title, done: bar.advance(tasks[title], done)
