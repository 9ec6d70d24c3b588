"""The COCO export of Roboflow: ``train/_annotations.coco.json`` next to its images, likewise ``valid`` and ``test``."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.coco import read_coco
from detrkit.data.listing import child
from detrkit.data.once import annotation_cache
from detrkit.data.records import Table

__all__ = ["FORMAT", "read"]

_FILE = "_annotations.coco.json"


def locate(root: Path, split: str) -> Source | None:
    """The source of a split whose folder has an annotation file."""
    for word in SPLIT_WORDS[split]:
        path = (child(root, word) or root / word) / _FILE
        if path.is_file():
            return Source(format="roboflow", root=root, split=split, annotations=path)
    return None


def recognises(root: Path) -> bool:
    """Whether the folder of any split has an annotation file."""
    return any(locate(root, split) is not None for split in SPLIT_WORDS)


def read(source: Source) -> Table:
    """Read one split, without the placeholder class that Roboflow puts first.

    The first category of an export is the ``supercategory`` of others and has no boxes. It is dropped if no split uses
    it, so that all splits have the same labels. A category that is only its own ``supercategory``, as other tools write
    it, stays.

    Raises:
        DataError: the file is missing or is not COCO annotations.
    """
    table = _table(source)
    used = _used_categories(source, table)
    first, *rest = sorted(table.categories, key=lambda row: int(row["id"])) or [{}]
    if not any(row.get("supercategory") == first["name"] for row in rest):
        return table
    splits = (locate(source.root, split) for split in SPLIT_WORDS)
    others = [replace(other, segmentations=source.segmentations) for other in splits if other is not None]
    others = [other for other in others if other.annotations != source.annotations]
    if first["id"] in used.union(*map(_used_categories, others)):
        return table
    return replace(table, categories=[row for row in table.categories if row["id"] != first["id"]])


def _table(source: Source) -> Table:
    """Parse the annotation file, or take the table that ``_used_categories`` has parsed already."""
    path = source.annotations
    table = annotation_cache().pop(_table_key(source), None)
    if not isinstance(table, Table):
        table = read_coco(source, path.parent)
    return table if source.images is None else replace(table, image_root=source.images)


def _used_categories(source: Source, table: Table | None = None) -> frozenset[int]:
    """Ids of the categories that have annotations in a split."""
    cache = annotation_cache()
    key = ("roboflow, used", source.annotations)
    used = cache.get(key)
    if isinstance(used, frozenset):
        return used
    if table is None:
        table = cache[_table_key(source)] = _table(source)  # this split may be read later
    used = cache[key] = frozenset(int(row["category_id"]) for row in table.annotations)
    return used


def _table_key(source: Source) -> Hashable:
    return "roboflow, parsed", source.annotations, source.segmentations


FORMAT = Format(
    name="roboflow",
    looked_for=f"Roboflow: train/{_FILE} or valid/{_FILE}",
    recognises=recognises,
    locate=locate,
    read=read,
)
