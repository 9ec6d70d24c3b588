"""Results that were recorded as JSON in ``docs/results``."""

from __future__ import annotations

import json
from typing import Any

from generator.headers import ROOT

__all__ = ["recorded"]


def recorded(name: str) -> dict[str, Any]:
    """The content of a file, without its ending."""
    found: dict[str, Any] = json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))
    return found
