"""Shared fixtures: the folder of fixtures and images beside the checkout, and the count of golden comparisons."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

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
