"""Programs of the repository that are not in the package, as modules."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["imported_script"]

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def imported_script(name: str, *, folder: str = "benchmarks") -> Iterator[ModuleType]:
    """The module; inside the block it can import those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / folder)
        yield importlib.import_module(name)
