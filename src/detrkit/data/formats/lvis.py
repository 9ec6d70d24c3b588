"""LVIS: ``annotations/lvis_v1_{train,val}.json`` with the images of COCO in ``train2017`` and ``val2017``.

Both splits use images of both folders, so file names begin with the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, only
from detrkit.data.listing import files_in
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "MINIVAL", "read"]

MINIVAL = "minival"
"""The LVIS val images in COCO val2017: the evaluation set for models that were trained on COCO train2017."""


def locate(root: Path, split: str) -> Source | None:
    """``lvis_v1_train.json`` or the only ``lvis*train*``, in ``annotations`` or in ``root``.

    Raises:
        DataError: several files fit equally well.
    """
    for folder in (root / "annotations", root):
        found = [path for path in files_in(folder, {".json"}) if _fits(path.stem.lower(), split)]
        usual = [path for path in found if path.stem.lower() == f"lvis_v1_{split}"]
        whole = [path for path in found if MINIVAL not in path.stem.lower()]
        path = only(usual or whole or found, split)
        if path is not None:
            return Source(format="lvis", root=root, split=split, annotations=path)
    return None


def _fits(stem: str, split: str) -> bool:
    return stem.startswith("lvis") and "image_info" not in stem and any(word in stem for word in SPLIT_WORDS[split])


def recognises(root: Path) -> bool:
    """Whether there is an ``lvis*.json`` file of any split."""
    stems = [path.stem.lower() for folder in (root / "annotations", root) for path in files_in(folder, {".json"})]
    return any(_fits(stem, split) for stem in stems for split in SPLIT_WORDS)


def read(source: Source) -> Table:
    """Read the annotation file of a source.

    If the requested ``lvis_v1_minival*.json`` does not exist, minival is selected from ``lvis_v1_val.json``.

    Raises:
        DataError: the file is missing or has no LVIS annotations.
    """
    annotations = source.annotations if source.annotations.is_file() else source.root / source.annotations
    whole = annotations.with_name("lvis_v1_val.json")
    from_val = MINIVAL in annotations.stem and not annotations.is_file() and whole.is_file()
    file = whole if from_val else annotations
    table = coco.read(replace(source, annotations=file), folders=_image_folders(source.root))
    if table.protocol != "lvis":
        raise DataError(
            f"{table.origin}: is not an LVIS file: its images have no 'neg_category_ids'; format coco reads it"
        )
    return _minival(table) if from_val else table


def _image_folders(root: Path) -> Iterator[Path]:
    yield from (root, root / "images", root.parent / "coco")


def _minival(table: Table) -> Table:
    images = [image for image in table.images if "val2017" in str(image.get("coco_url", image["file_name"]))]
    ids = {image["id"] for image in images}
    return replace(table, images=images, annotations=[row for row in table.annotations if row["image_id"] in ids])


FORMAT = Format(
    name="lvis",
    looked_for="LVIS: annotations/lvis*train*.json or lvis*val*.json",
    recognises=recognises,
    locate=locate,
    read=read,
)
