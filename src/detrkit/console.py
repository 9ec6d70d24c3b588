"""The console of rich for tables, bars and colours; what needs none of them prints through ``detrkit.terminal``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console as _Console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from detrkit.terminal import printable

__all__ = ["Console"]


class Console(_Console):
    """A console of rich that writes out control sequences in what is printed, and sends its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of a renderable, with printable text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
