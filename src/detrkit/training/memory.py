"""Memory of a training: what is in use, the peak of a part of the program, what is free, and what is kept for later."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import psutil
import torch

from detrkit.data.pixel_limit import free_memory

__all__ = ["PeakMemory", "freed_memory_kept", "memory_in_use", "memory_left"]

INTERVAL = 0.004  # seconds between two looks at the memory of the process
# mallopt(3): M_MMAP_THRESHOLD and M_TRIM_THRESHOLD with their bytes
_KEEPING = (-3, 64 << 20), (-1, 2**31 - 1)
_USUAL = (-3, 32 << 20), (-1, 64 << 20)  # as far as the library raises them itself


def memory_in_use(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors have taken so far, else what the process has in memory now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def memory_left(device: torch.device) -> int:
    """Bytes that this process can still take: of the GPU, with what torch has reserved and does not use; else of the
    machine and of the process's own limits."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(min(free_memory(), psutil.virtual_memory().available))


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Context in which the C library (glibc) keeps what tensors free on the CPU for those of the next step.

    By default it returns large tensors to the system, which clears each page again when the next one asks for it: up to
    a sixth of a training step. Settings of the user (``MALLOC_…``, ``GLIBC_TUNABLES``) stay. What is kept is returned
    at the end.
    """
    library = _glibc()
    asked = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if device.type != "cpu" or library is None or asked:
        yield
        return
    try:
        for setting in _KEEPING:
            library.mallopt(*setting)
        yield
    finally:
        for setting in _USUAL:
            library.mallopt(*setting)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") else None


class PeakMemory:
    """Context that measures the most memory in use inside it.

    On a GPU torch counts every byte of tensors. Elsewhere a thread looks at the memory of the process every few
    milliseconds, because what a layer frees at once is in no figure afterwards.

    Attributes:
        peak: bytes, after the context.
        before: bytes in use at its beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = self.before = 0

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.peak = self.before = int(torch.cuda.memory_allocated(self.device))
            return self
        if (library := _glibc()) is not None:
            library.malloc_trim(0)  # what was kept would hide as much of the peak
        self._process = psutil.Process()
        self.peak = self.before = int(self._process.memory_info().rss)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = int(torch.cuda.max_memory_allocated(self.device))
            return
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, int(self._process.memory_info().rss))
