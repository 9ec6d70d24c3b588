"""A cache, so that a run reads the same annotations only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

__all__ = ["annotation_cache", "read_once", "remembered"]

Content = TypeVar("Content")

_cache: ContextVar[dict[Hashable, object] | None] = ContextVar("annotation cache", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Context in which the annotations of a split are read and checked only once.

    A run reads the data to draft its recipe and again to train, possibly with several seeds. The cache ends with the
    outermost block, since files may change between runs; size and time of a single file would not reveal this for
    formats with many files.
    """
    if _cache.get() is not None:
        yield
        return
    token = _cache.set({})
    try:
        yield
    finally:
        _cache.reset(token)


def annotation_cache() -> dict[Hashable, object]:
    """The cache of the current :func:`read_once` block; outside such a block a new empty dictionary per call."""
    found = _cache.get()
    return {} if found is None else found


def remembered(key: Hashable, read: Callable[[], Content]) -> Content:
    """What ``read`` gives; within a :func:`read_once` block it is called once. A key stands for one type."""
    cache = annotation_cache()
    if key not in cache:
        cache[key] = read()
    return cast(Content, cache[key])
