"""Cityscapes as the DE-DETR paper has it: ``leftImg8bit/{train,val}`` and COCO files in ``../CocoFormatAnnos``."""

from __future__ import annotations

from pathlib import Path

from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_IMAGES = "leftImg8bit"


def recognises(root: Path) -> bool:
    """Is there a ``leftImg8bit``, and no ``annotations`` folder that makes it plain COCO?"""
    return (root / _IMAGES).is_dir() and not coco.recognises(root)


def locate(root: Path, split: str) -> Source | None:
    """A split whose images are there; its file of boxes is looked for when it is read."""
    images = root / _IMAGES / split
    if not images.is_dir():
        return None
    name = f"cityscapes_{split}_cocostyle.json"
    outside = root.resolve().parent / "CocoFormatAnnos" / name
    inside = root / "CocoFormatAnnos" / name
    annotations = inside if inside.is_file() else outside
    return Source(format="cityscapes", root=root, split=split, annotations=annotations, images=images)


def read(source: Source) -> Table:
    """One split; file names carry the city's folder.

    Raises:
        DataError: the boxes have not been made yet; the message says how.
    """
    if not source.annotations.is_file():
        raise DataError(
            f"{source.annotations}: no such file; make it from gtFine: detrkit data convert {source.root} "
            f"--from cityscapes-gtfine --out {source.annotations.parent}"
        )
    return coco.read(source)


FORMAT = Format(
    name="cityscapes",
    looked_for=f"Cityscapes: {_IMAGES}/{{{','.join(SPLIT_WORDS)}}}",
    recognises=recognises,
    locate=locate,
    read=read,
)
