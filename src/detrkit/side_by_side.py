"""Work that lets other threads of Python run, on many things at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items; the first error stops the rest.

    Decoding a PNG file lets other threads run, and so does SciPy's assignment: all cores work.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
