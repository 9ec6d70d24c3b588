"""Roboflow's COCO export: ``train/_annotations.coco.json`` beside its images, likewise ``valid`` and ``test``."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from detrkit.data.coco_json import read_json
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.coco import parse_coco
from detrkit.data.once import memory
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
    used = _used(source, table)
    first = min(table.categories, key=lambda row: int(row["id"]), default=None)
    if first is None or not any(row.get("supercategory") == first.get("name") for row in table.categories):
        return table
    splits = (locate(source.root, split) for split in SPLIT_WORDS)
    others = [replace(other, outlines=source.outlines) for other in splits if other is not None]
    if first["id"] in used.union(*(_used(other) for other in others if other.annotations != source.annotations)):
        return table
    return replace(table, categories=[row for row in table.categories if row["id"] != first["id"]])


def _table(source: Source) -> Table:
    """The annotation file; a table that was parsed early, to see what it uses, is handed over."""
    path = source.annotations
    table = memory().pop(_waiting(source), None)
    if not isinstance(table, Table):
        content, _ = read_json(path, without=() if source.outlines else ("segmentation",))
        table = parse_coco(content, path, path.parent)
    return table if source.images is None else replace(table, image_root=source.images)


def _used(source: Source, table: Table | None = None) -> frozenset[int]:
    """The categories that a split has annotations of."""
    key = ("roboflow, used", source.annotations)
    used = memory().get(key)
    if isinstance(used, frozenset):
        return used
    if table is None:
        table = memory()[_waiting(source)] = _table(source)  # its own turn to be read may come
    used = memory()[key] = frozenset(int(row["category_id"]) for row in table.annotations)
    return used


def _waiting(source: Source) -> Hashable:
    return "roboflow, parsed", source.annotations, source.outlines


FORMAT = Format(
    name="roboflow",
    looked_for=f"Roboflow: train/{_FILE} or valid/{_FILE}",
    recognises=recognises,
    locate=locate,
    read=read,
)
