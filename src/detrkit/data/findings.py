"""What a check of a data set found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detrkit.data.coco_json import Row

__all__ = ["Finding", "Level", "finding", "row_name"]

Level = Literal["ok", "info", "warning", "error"]

_MAX_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check on one split. count: how many cases were found · examples: the first of them."""

    level: Level
    check: str
    split: str
    count: int = 0
    message: str = ""
    examples: tuple[str, ...] = ()


def finding(level: Level, name: str, split: str, found: Sequence[str], message: str) -> Finding:
    """A finding of the level, or "ok" when nothing was found."""
    if not found:
        return Finding(level="ok", check=name, split=split)
    return Finding(
        level=level, check=name, split=split, count=len(found), message=message, examples=tuple(found[:_MAX_EXAMPLES])
    )


def row_name(row: Row) -> str:
    """The annotation as messages call it."""
    return str(row.get("where") or f"annotation {row.get('id')}")
