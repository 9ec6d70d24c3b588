"""Reading annotations once in a run that asks for the same data several times."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["memory", "read_once"]

_memory: ContextVar[dict[Hashable, object] | None] = ContextVar("annotations that were read", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, the annotations of a split are read and checked the first time they are asked for.

    A run drafts its recipe from the data, trains on them, and may do so with several seeds. What was read is forgotten
    at the end of the outermost block: files may change between runs, which no size or time of one file would show for
    formats of many.
    """
    if _memory.get() is not None:
        yield
        return
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def memory() -> dict[Hashable, object]:
    """What readers keep for one another inside :func:`read_once`; outside an empty dictionary that nobody else sees."""
    found = _memory.get()
    return {} if found is None else found
