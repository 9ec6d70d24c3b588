"""Converting annotations of any format to COCO JSON, and splitting one set into train and val."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from detrkit.data.build_records import build_records
from detrkit.data.coco_json import Row, box_problem
from detrkit.data.records import OnError, Table, coco_rows
from detrkit.data.subsets import choose, subset_size
from detrkit.errors import DataError

__all__ = ["split_table", "to_coco", "usable_part"]


def usable_part(table: Table, *, on_error: OnError = "raise") -> tuple[Table, list[str]]:
    """The table with image sizes filled in and without unusable rows, and one note per row that was left out.

    on_error: with "skip" unusable boxes and images are left out, with "raise" they are errors.

    Raises:
        DataError: as ``build_records`` raises it.
    """
    records, _, notes = build_records(table, on_error=on_error)
    sizes = {record.image_id: {"width": record.width, "height": record.height} for record in records}
    return replace(
        table,
        images=[{**image, **sizes[image["id"]]} for image in table.images if image["id"] in sizes],
        annotations=[
            row for row in table.annotations if row["image_id"] in sizes and box_problem(row.get("bbox")) is None
        ],
    ), notes


def to_coco(table: Table, *, relative_to: Path | None = None) -> Row:
    """A table as COCO JSON. relative_to: make file names relative to this folder; None keeps them."""
    images = table.images
    if relative_to is not None:
        base = os.path.abspath(relative_to)
        names = [os.path.relpath(os.path.abspath(table.path(image)), base) for image in images]
        images = [{**image, "file_name": Path(name).as_posix()} for image, name in zip(images, names, strict=True)]
    return {
        "info": table.info,
        "images": images,
        "annotations": coco_rows(table.annotations),
        "categories": table.categories,
    }


def split_table(table: Table, *, val: float, seed: int) -> dict[str, Table]:
    """Split a table into train and val. val: the fraction of the images for val, chosen by the seed.

    Raises:
        DataError: ``val`` is out of range, or there are fewer than two images.
    """
    if not 0 < val < 1:
        raise DataError(f"the val fraction {val} is not between 0 and 1")
    images = sorted(table.images, key=lambda image: int(image["id"]))
    if len(images) < 2:
        raise DataError(f"{table.origin}: {len(images)} images cannot be split in two")
    names = [str(image["file_name"]) for image in images]
    held_out = {images[index]["id"] for index in choose(names, subset_size(len(images), rate=val), seed)}
    note = {"split_seed": seed, "split_val": val}
    return {
        name: replace(
            table,
            images=[image for image in images if (image["id"] in held_out) is inside],
            annotations=[row for row in table.annotations if (row["image_id"] in held_out) is inside],
            info={**table.info, **note},
        )
        for name, inside in (("train", False), ("val", True))
    }
