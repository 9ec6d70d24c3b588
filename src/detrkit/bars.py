"""Progress bars on stderr; rich is loaded where one may be seen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Bar", "may_show_bars", "progress_bar"]


class Bar:
    """A running progress bar; :meth:`update` can be used as a progress callback."""

    def __init__(self, show: Callable[[int, int | None], object] | None) -> None:
        self._show = show

    def update(self, done: int, total: int | None = None) -> None:
        """Set the completed amount and the total."""
        if self._show is not None:
            self._show(done, total)


@contextmanager
def progress_bar(description: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Bar]:
    """A bar with count (or megabytes) and time left on stderr; silent where stderr is not a terminal."""
    if not may_show_bars():
        yield Bar(None)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from detrkit.console import Console

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield Bar(lambda done, all: progress.update(task, completed=done, total=all))


def may_show_bars() -> bool:
    """Whether stderr may be a terminal; rich decides it."""
    return sys.stderr.isatty() or not os.environ.keys().isdisjoint(("FORCE_COLOR", "TTY_COMPATIBLE"))
