"""Work in a copy of the process: its result, or nothing, and never a process that stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detrkit.side_by_side import in_a_copy

SCRIPT = """
import os, sys, threading
from detrkit.side_by_side import in_a_copy

def fails():
    raise KeyboardInterrupt

def waits():
    threading.Event().wait()

with in_a_copy(lambda: b"x" * 500_000 + str(os.getpid()).encode()) as result:
    content = result()
assert content[:500_000] == b"x" * 500_000
assert int(content[500_000:]) != os.getpid()
with in_a_copy(fails) as result:
    assert result() is None
with in_a_copy(waits):
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
    with in_a_copy(lambda: b"never") as result:
        assert result() is None
