"""Work in a copy of the process: its result, or nothing, and never a process that stays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from detrkit.side_by_side import in_a_copy

SCRIPT = """
import os, sys, threading
import numpy as np
from detrkit.side_by_side import in_a_copy

def fails():
    raise KeyboardInterrupt

def waits():
    threading.Event().wait()

with in_a_copy(lambda: np.array([*range(500_000), os.getpid()], np.float64), most=500_001) as result:
    found = result()
assert found[:-1].tolist() == list(range(500_000))
assert found[-1] != os.getpid()
with in_a_copy(lambda: np.zeros(0), most=0) as result:
    assert len(result()) == 0
for unusable in (fails, lambda: np.zeros(6)):
    with in_a_copy(unusable, most=5) as result:
        assert result() is None
with in_a_copy(waits, most=1):
    pass
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no process stays")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_the_result_of_a_copy() -> None:
    # in a process of its own: copies of this one, which has other threads, are not made
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "no process stays"
    assert run.stderr == ""


def test_where_no_copy_is_made_there_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with in_a_copy(lambda: np.zeros(1), most=1) as result:
        assert result() is None
