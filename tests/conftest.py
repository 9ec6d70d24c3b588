"""Shared fixtures: the folder of fixtures and images beside the checkout, and the count of golden comparisons."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Kernels run in Triton's interpreter, on any machine. Triton looks at the variable once, when it is imported, which any
# test may cause, so it is set here for the whole process of a worker; nothing else in it uses Triton. On a GPU,
# `TRITON_INTERPRET=0 pytest tests/ops tests/nn` tests the compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Nothing is fetched by itself in a test, but from the server that a test has started. Like the user's HF_HUB_OFFLINE,
# it leaves addresses that are given alone.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Another instruction set for torch is one for the libraries it computes with: where bfloat16 attention finds AMX in one
# and AVX2 in the other, it stops ("pack_vnni2 is only supported when avx512 is supported").
_SAME_FOR_ONEDNN = {"avx2": "AVX2", "default": "SSE41"}
if (_asked := os.environ.get("ATEN_CPU_CAPABILITY")) in _SAME_FOR_ONEDNN:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", _SAME_FOR_ONEDNN[_asked])

# No test fails for being slow: the machine may be, or busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_REPOSITORY = Path(__file__).resolve().parent.parent
_counts = {"cases": set(), "tensors": 0}


def _shared_folder() -> Path | None:
    folder = Path(os.environ.get("DETRKIT_SHARED", _REPOSITORY.parent / "shared"))
    return folder if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden/, data/ and spec/; tests that need it skip in a plain clone."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("no shared fixtures: set DETRKIT_SHARED or place them in ../shared")
    return folder


@pytest.fixture(scope="session")
def golden_count() -> dict[str, Any]:
    """Where golden tests record the cases and tensors they compared."""
    return _counts


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop where a worker of pytest-xdist does not see the groups of tests, which would set up every model twice."""
    if session.config.getoption("loadgroup", False):
        marked = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group")]
        if marked and not marked[0].rpartition("@")[0]:
            raise pytest.UsageError("this pytest-xdist does not know the node ids of this pytest: groups are ignored")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["golden"] = (sorted(_counts["cases"]), _counts["tensors"])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    cases, tensors = getattr(node, "workeroutput", {}).get("golden", ([], 0))
    _counts["cases"].update(cases)
    _counts["tensors"] += tensors


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _shared_folder() is None:
        terminalreporter.write_line("golden: fixtures absent, nothing compared")
    elif _counts["cases"]:
        terminalreporter.write_line(f"golden: {len(_counts['cases'])} cases, {_counts['tensors']} tensors compared")
