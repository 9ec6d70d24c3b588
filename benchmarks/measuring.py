"""Shared measurements of the benchmarks: time, memory saved by autograd, peak memory, and the output file."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import platform
import resource
import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MIB = 2**20


def timed(
    step: Callable[[], object],
    device: str,
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of a step; warm-up steps are not counted."""
    times = []
    for repeat in range(repeats + warmup):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = clock()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if repeat >= warmup:
            times.append(clock() - start)
    return statistics.median(times)


class _Saved:
    """A tensor saved by autograd."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def with_saved_bytes(function: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of a function, and the bytes that autograd saves for its backward pass."""
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()  # tensors of discarded parts of the graph disappear

    def pack(tensor: Tensor) -> Tensor | _Saved:
        if tensor.is_leaf and tensor.requires_grad:
            return tensor
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    def unpack(saved: Tensor | _Saved) -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = function()
    storages = (saved.tensor.untyped_storage() for saved in alive)
    return result, sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_mib(device: str) -> float:
    """Peak memory of the GPU; on a CPU the largest resident set of this process so far, PyTorch included."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def resident_mib() -> float:
    """Resident set of this process now, on Linux, without freed memory that the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def in_fresh_processes(measure: Callable[[str], dict[str, Any]], tasks: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of tasks that are measured one after another, each in a process that did nothing before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return list(pool.map(measure, tasks))


def save_rows(path: str | None, rows: list[dict[str, Any]], device: str) -> None:
    """Write the figures and the hardware as JSON; without a path write nothing."""
    if path is None:
        return
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    result = {"device": name, "machine": platform.machine(), "torch": torch.__version__, "rows": rows}
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
