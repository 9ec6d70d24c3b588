"""Roboflow's COCO export: ``train/_annotations.coco.json`` beside its images, likewise ``valid`` and ``test``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detrkit.data.coco_json import read_json
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.coco import parse_coco
from detrkit.data.records import Table

__all__ = ["FORMAT", "read"]

_FILE = "_annotations.coco.json"


def locate(root: Path, split: str) -> Source | None:
    """The folder of a split that holds an annotation file."""
    for word in SPLIT_WORDS[split]:
        path = root / word / _FILE
        if path.is_file():
            return Source(format="roboflow", root=root, split=split, annotations=path)
    return None


def recognises(root: Path) -> bool:
    """Does any split's folder hold an annotation file?"""
    return any(locate(root, split) is not None for split in SPLIT_WORDS)


def read(source: Source) -> Table:
    """One split, without the placeholder class that Roboflow puts first.

    Category 0 of an export is the name of the whole group (the ``supercategory`` of the others) and has no boxes. It
    is dropped when no split uses it, so that labels mean the same in all of them.
    """
    table = _table(source)
    first = min(table.categories, key=lambda row: int(row["id"]), default=None)
    if first is None or not any(row.get("supercategory") == first.get("name") for row in table.categories):
        return table
    splits = (locate(source.root, split) for split in SPLIT_WORDS)
    tables = [_table(other) for other in splits if other is not None and other.annotations != source.annotations]
    if any(row["category_id"] == first["id"] for each in (table, *tables) for row in each.annotations):
        return table
    return replace(table, categories=[row for row in table.categories if row["id"] != first["id"]])


def _table(source: Source) -> Table:
    path = source.annotations
    return parse_coco(read_json(path)[0], path, source.images or path.parent)


FORMAT = Format(
    name="roboflow",
    looked_for=f"Roboflow: train/{_FILE} or valid/{_FILE}",
    recognises=recognises,
    locate=locate,
    read=read,
)
