"""Memory of a training: what is in use, the peak of a part of the program, and what is free."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil
import torch

from detrkit.data.pixel_limit import free_memory

__all__ = ["PeakMemory", "memory_in_use", "memory_left"]

INTERVAL = 0.004  # seconds between two looks at the memory of the process


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
