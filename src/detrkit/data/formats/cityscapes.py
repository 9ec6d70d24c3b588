"""Cityscapes: photos in ``leftImg8bit/{train,val}``, and their label images in ``gtFine``.

For detection the COCO files of DE-DETR in ``../CocoFormatAnnos`` come first, where they are.
"""

from __future__ import annotations

from pathlib import Path

from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.gtfine import gtfine_table
from detrkit.data.gtfine_files import INSTANCE_SUFFIX, instance_images
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_IMAGES, _LABELS = "leftImg8bit", "gtFine"


def recognises(root: Path) -> bool:
    """Whether there is a ``leftImg8bit`` folder and no ``annotations`` folder in COCO format."""
    return (root / _IMAGES).is_dir() and not coco.recognises(root)


def locate(root: Path, split: str) -> Source | None:
    """The source of a split whose image folder exists; ``read`` looks for its annotations."""
    images = root / _IMAGES / split
    if not images.is_dir():
        return None
    name = f"cityscapes_{split}_cocostyle.json"
    outside = root.resolve().parent / "CocoFormatAnnos" / name
    inside = root / "CocoFormatAnnos" / name
    annotations = inside if inside.is_file() else outside
    return Source(format="cityscapes", root=root, split=split, annotations=annotations, images=images)


def read(source: Source) -> Table:
    """Read one split; file names include the folder of the city. Masks are those of the label images.

    Raises:
        DataError: there are no annotations; the message says which download has them.
    """
    labels = source.root / _LABELS / source.split
    if source.annotations.is_file() and source.segmentations != "packed":
        return coco.read(source)
    if files := instance_images(labels):
        return gtfine_table(files, source.images or source.root / _IMAGES / source.split)
    if source.annotations.is_file():
        return coco.read(source)
    coarse = ", and gtCoarse has no labels of instances to train with" if (source.root / "gtCoarse").is_dir() else ""
    raise DataError(
        f"{labels}: no label images <city>/*{INSTANCE_SUFFIX}{coarse}; unpack gtFine_trainvaltest.zip (241 MB) of "
        f"cityscapes-dataset.com in {source.root}"
    )


FORMAT = Format(
    name="cityscapes",
    looked_for=f"Cityscapes: {_IMAGES}/{{{','.join(SPLIT_WORDS)}}}",
    tasks=("det", "inst", "pan", "sem"),
    recognises=recognises,
    locate=locate,
    read=read,
)
