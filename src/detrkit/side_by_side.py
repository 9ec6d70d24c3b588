"""Work on all cores: in threads where Python lets others run meanwhile, else in a copy of the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["in_a_copy", "in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items; the first error stops the rest.

    Decoding a PNG file lets other threads run, and so does SciPy's assignment: all cores work.
    """
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def in_a_copy(work: Callable[[], bytes]) -> Iterator[Callable[[], bytes | None]]:
    """Do some work in a copy of this process while the block goes on.

    Gives a function that waits for the result, to be called once. It returns None where the work failed, and at once
    where no copy is made: where systems have none that is safe, and in processes with other threads or with torch,
    whose state a copy has no part in.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or "torch" in sys.modules or os.cpu_count() == 1:
        yield lambda: None
        return
    reading, writing = os.pipe()
    copy = os.fork()
    if copy == 0:
        status = 1
        try:
            os.close(reading)
            with open(writing, "wb") as end:
                end.write(work())
            status = 0
        finally:
            os._exit(status)  # whatever went wrong is left to the process itself, which says it
    os.close(writing)
    with open(reading, "rb") as pipe:

        def result() -> bytes | None:
            content = pipe.read()
            return content if os.waitpid(copy, 0)[1] == 0 else None

        try:
            yield result
        finally:
            _end(copy)


def _end(copy: int) -> None:
    """Stop a copy of this process that still runs."""
    try:
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    except (ProcessLookupError, ChildProcessError):  # its result was taken
        return
