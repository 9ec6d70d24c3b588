"""What the C library keeps of freed tensors during a training, and returns after it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import psutil, torch
from detrkit.training.memory import PeakMemory, freed_memory_kept

torch.set_num_threads(1)
MIB = 1 << 20

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # of large pages a tensor has only twenty: few beside those of the interpreter
        torch.empty(40 * MIB, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages()
cleared = pages()
with freed_memory_kept(torch.device("cpu")):
    pages()
    print(pages() < cleared / 4)
    with PeakMemory(torch.device("cpu")) as memory:
        pages()
    print(memory.peak - memory.before > 30 * MIB)
    kept = psutil.Process().memory_info().rss
print(kept - psutil.Process().memory_info().rss > 30 * MIB)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("own", "seen"), [({}, "True True True"), ({"MALLOC_ARENA_MAX": "2"}, "False True False")])
def test_freed_memory(own: dict[str, str], seen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
    environment.pop("GLIBC_TUNABLES", None)
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == seen.split()
