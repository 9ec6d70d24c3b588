"""Text from files and from the web on a terminal: names cannot steer it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console as _Console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar", "Console", "one_line", "printable", "progress_bar", "say"]

# Control characters, line and paragraph separators, and marks that turn the direction of the text around.
_CONTROL = {"Cc", "Zl", "Zp"}
_DIRECTION = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text with what would steer the terminal written out (``\\x1b``); line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in "\n\t" or not _steers(sign) else ascii(sign)[1:-1] for sign in text)


def one_line(text: str) -> str:
    """The text as one printable line."""
    return printable(" ".join(text.splitlines()))


def say(text: str) -> None:
    """Print printable text on stderr; of several processes of a training only the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text), file=sys.stderr)


def _steers(sign: str) -> bool:
    # a surrogate (Cs) stands for a byte of a file name that is not text: printing it raises
    return unicodedata.category(sign) in _CONTROL | {"Cs"} or sign in _DIRECTION


class Console(_Console):
    """A console of rich that writes out control sequences in what is printed, and sends its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of a renderable, with printable text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Bar:
    """A running progress bar; :meth:`update` can be used as a progress callback."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, total: int | None = None) -> None:
        """Set the completed amount and the total."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(description: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Bar]:
    """A bar with count (or megabytes) and time left on stderr; silent where stderr is not a terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Bar(progress, progress.add_task(description, total=total))
