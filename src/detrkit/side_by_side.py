"""Work on all cores: in threads where Python lets others run meanwhile, else in a copy of the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

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
def in_a_copy(work: Callable[[], NDArray[np.float64]], *, most: int) -> Iterator[Callable[[], Numbers | None]]:
    """Compute an array in a copy of this process while the block goes on.

    Gives a function that waits for the array, to be called once. It returns None where the work failed, and at once
    where no copy is made: where systems have none that is safe, and in processes with other threads or with torch,
    whose state a copy has no part in.

    Args:
        work: computes the array.
        most: the most numbers that it can have.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or "torch" in sys.modules or os.cpu_count() == 1:
        yield lambda: None
        return
    import mmap

    import numpy as np

    space = np.frombuffer(mmap.mmap(-1, 8 * (most + 1)))  # which both processes see
    reading, writing = os.pipe()
    copy = os.fork()
    if copy == 0:
        status = 1
        try:
            found = work()
            space[0] = found.size
            space[1 : found.size + 1] = found.ravel()
            os.write(writing, b"1")  # its end takes the system some time
            status = 0
        finally:
            os._exit(status)  # whatever went wrong is left to the process itself, which says it
    os.close(writing)

    def result() -> Numbers | None:
        return space[1 : int(space[0]) + 1] if os.read(reading, 1) else None

    try:
        yield result
    finally:
        os.close(reading)
        _end(copy)


def _end(copy: int) -> None:
    """Stop a copy of this process that still runs."""
    try:
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    except (ProcessLookupError, ChildProcessError):  # something else has waited for it
        return
