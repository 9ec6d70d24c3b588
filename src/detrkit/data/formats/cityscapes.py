"""Cityscapes in the layout of DE-DETR: ``leftImg8bit/{train,val}`` and COCO files in ``../CocoFormatAnnos``."""

from __future__ import annotations

from pathlib import Path

from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_IMAGES = "leftImg8bit"


def recognises(root: Path) -> bool:
    """Whether there is a ``leftImg8bit`` folder and no ``annotations`` folder in COCO format."""
    return (root / _IMAGES).is_dir() and not coco.recognises(root)


def locate(root: Path, split: str) -> Source | None:
    """The source of a split whose image folder exists; ``read`` checks the annotation file."""
    images = root / _IMAGES / split
    if not images.is_dir():
        return None
    name = f"cityscapes_{split}_cocostyle.json"
    outside = root.resolve().parent / "CocoFormatAnnos" / name
    inside = root / "CocoFormatAnnos" / name
    annotations = inside if inside.is_file() else outside
    return Source(format="cityscapes", root=root, split=split, annotations=annotations, images=images)


def read(source: Source) -> Table:
    """Read one split; file names include the folder of the city.

    Raises:
        DataError: the COCO file does not exist yet; the message says how to make it.
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
