"""ADE20K, as its benchmark is downloaded: ``images/training``, ``annotations/training`` and a list of classes.

An annotation is a gray PNG with the number of the class in each pixel; 0 stands for none ("other"). The classes are
those of ``objectInfo150.txt``, or of ``classes.json`` or ``classes.txt``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detrkit.data.class_lists import ClassList, read_class_list
from detrkit.data.formats.base import Format, Source
from detrkit.data.formats.mask_folders import read_class_maps
from detrkit.data.listing import child, files_in, images_in
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_IMAGES, _MAPS = "images", "annotations"
_FOLDERS = {"train": ("training", "train"), "val": ("validation", "val"), "test": ("testing", "test")}
_LISTS = ("classes.json", "objectInfo150.txt", "classes.txt")
_VOID = 0


def recognises(root: Path) -> bool:
    """Whether a split has a folder in ``images`` and one with PNG files in ``annotations``."""
    return any(locate(root, split) is not None for split in ("train", "val"))


def locate(root: Path, split: str) -> Source | None:
    """The folders of a split. The test split has images alone, and is none."""
    images, maps = (child(root / folder, *_FOLDERS[split]) for folder in (_IMAGES, _MAPS))
    if images is None or maps is None or not images.is_dir() or not files_in(maps, {".png"}):
        return None
    return Source(format=FORMAT.name, root=root, split=split, annotations=maps, images=images)


def read(source: Source) -> Table:
    """Read all annotations of a split, to know their classes. Class k of the list gets category id k.

    Raises:
        DataError: the list of classes is missing or unusable.
    """
    images = source.images or source.root / _IMAGES
    stems = {file.relative_to(images).with_suffix("").as_posix(): file for file in images_in(images, recursive=True)}
    return read_class_maps(
        stems, source.annotations, image_root=images, classes=_classes(source.root), split=source.split
    )


def _classes(root: Path) -> ClassList:
    path = child(root, *_LISTS)
    if path is None:
        raise DataError(
            f"{root / _LISTS[1]}: no such file; it names the classes of the annotations and is part of "
            "ADEChallengeData2016.zip. For other classes write classes.txt, one name per line, the first of value 1"
        )
    classes = read_class_list(path)
    if classes.ignore is None and _VOID not in classes.categories.ids:
        classes = replace(classes, ignore=_VOID)
    return classes


FORMAT = Format(
    name="ade20k",
    looked_for=f"ADE20K: {_IMAGES}/training/ and {_MAPS}/training/*.png",
    tasks=("sem", "pan"),
    recognises=recognises,
    locate=locate,
    read=read,
)
