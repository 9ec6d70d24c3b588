"""Cityscapes: photos in ``leftImg8bit/{train,val}``, and their label images in ``gtFine``.

For detection the COCO files of DE-DETR in ``../CocoFormatAnnos`` come first, where they are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.gtfine import gtfine_table
from detrkit.data.gtfine_files import INSTANCE_SUFFIX, instance_images
from detrkit.data.listing import files_in
from detrkit.data.records import Table
from detrkit.errors import MissingFilesError

__all__ = ["FORMAT", "read"]

_IMAGES, _LABELS = "leftImg8bit", "gtFine"
_PHOTO_SUFFIX = "_leftImg8bit.png"


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


def absent(root: Path) -> dict[str, str]:
    """The test split where its photos have no labels, of which the published ones say nothing."""
    source = locate(root, "test")
    if source is None or source.annotations.is_file() or instance_images(root / _LABELS / "test"):
        return {}
    return {"test": f"{_LABELS}/test"}


def read(source: Source) -> Table:
    """Read one split; file names include the folder of the city. Masks are those of the label images.

    Raises:
        MissingFilesError: there are no annotations.
    """
    labels = source.root / _LABELS / source.split
    if source.annotations.is_file() and source.segmentations != "packed":
        return coco.read(source)
    if files := instance_images(labels):
        return _with_unlabelled(gtfine_table(files, source.images or source.root / _IMAGES / source.split), labels)
    if source.annotations.is_file():
        return coco.read(source)
    raise MissingFilesError(f"{labels}: no label images <city>/*{INSTANCE_SUFFIX}")


def _with_unlabelled(table: Table, labels: Path) -> Table:
    """The table with a problem for each photo without a label image: the archive is half unpacked."""
    files = files_in(table.image_root, {".png"}, recursive=True)
    photos = [file.relative_to(table.image_root) for file in files if file.name.endswith(_PHOTO_SUFFIX)]
    labelled = {str(image["file_name"]) for image in table.images}
    lacking = [photo.as_posix() for photo in photos if photo.as_posix() not in labelled]
    why = (
        f"({len(lacking)} of {len(photos)} photos have none); unpack gtFine_trainvaltest.zip (241 MB, "
        "cityscapes-dataset.com) again"
    )
    images = list(table.images)
    for name in lacking:
        file = labels / f"{name.removesuffix(_PHOTO_SUFFIX)}{INSTANCE_SUFFIX}"
        problem = f"{table.image_root / name}: has no label image {file} {why}"
        images.append({"id": len(images) + 1, "file_name": name, "problem": problem})
    return replace(table, images=images)


FORMAT = Format(
    name="cityscapes",
    looked_for=f"Cityscapes: {_IMAGES}/{{{','.join(SPLIT_WORDS)}}}",
    tasks=("det", "inst", "pan", "sem"),
    recognises=recognises,
    locate=locate,
    absent=absent,
    read=read,
)
