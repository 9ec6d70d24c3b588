"""Tables that the benchmarks print themselves: ablation and cost of DAPE, and the data-efficient family."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator.headers import ROOT

__all__ = ["SECTIONS"]


def printed(module: str, act: Callable[[Any], None]) -> str:
    """What a function of a benchmark prints; benchmarks import each other by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            act(importlib.import_module(module))
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return text.getvalue().strip()


def ablation() -> str:
    """AP of DAPE's parts (``benchmarks/dape_ablation.py report``)."""
    grid = ROOT / "docs/results/dape_ablation_grid.jsonl"
    return printed("dape_ablation", lambda module: module.ablation(module.read(grid)))


def costs() -> str:
    """Memory and time of a training step (``benchmarks/dape_ablation.py cost``)."""
    results = ROOT / "docs/results/dape_ablation.jsonl"
    return printed("dape_ablation", lambda module: module.cost_tables(module.Results(results).rows("cost")))


def family() -> str:
    """AP against the number of training images (``benchmarks/data_efficiency.py report``)."""
    results = ROOT / "docs/results/data_efficiency.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        return printed("data_efficiency", lambda module: module.report(Namespace(results=results, images=Path(folder))))


SECTIONS = {"ablation of DAPE": ablation, "cost of DAPE": costs, "data-efficient family": family}
