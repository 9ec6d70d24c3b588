"""Converting annotations of any format to COCO files, and splitting one set into train and val."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.build_records import build_records, mask_problem
from detrkit.data.clean_rows import row_problem
from detrkit.data.coco_json import Row
from detrkit.data.ground_truth import shared_pixels
from detrkit.data.map_files import stated_size
from detrkit.data.packed_masks import mask_rle
from detrkit.data.records import OnError, Table, coco_rows
from detrkit.data.subsets import choose, subset_size
from detrkit.data.write_folders import rounded
from detrkit.errors import DataError
from detrkit.files import write_json, write_picture
from detrkit.structures.segment_maps import ids_to_rgb

__all__ = ["split_table", "to_coco", "usable_part", "with_segmentations", "write_panoptic"]


def usable_part(table: Table, *, on_error: OnError = "raise") -> tuple[Table, list[str]]:
    """The table with image sizes filled in and without unusable rows, and one note per row that was left out.

    Masks in PNG files become segmentations. A malformed segmentation is left out of its row, whose box stays, with a
    note.

    on_error: with "skip" unusable boxes and images are left out, with "raise" they are errors.

    Raises:
        DataError: as ``build_records`` raises it, or a file with masks cannot be used.
    """
    stuff = any(row.get("isthing", 1) == 0 for row in table.categories)  # which only tasks with masks keep
    records, _, notes = build_records(table, task="pan" if stuff else "det", on_error=on_error)
    table, unread = with_segmentations(table, on_error=on_error)
    notes += unread
    sizes = {record.image_id: {"width": record.width, "height": record.height} for record in records}
    images = {image["id"]: {**image, **sizes[image["id"]]} for image in table.images if image["id"] in sizes}
    annotations = []
    for row in table.annotations:
        if row["image_id"] not in images or row_problem(row) is not None:
            continue
        problem = mask_problem(table, row, images[row["image_id"]])
        if problem and stuff:  # left out and noted above, as tasks with masks leave it out
            continue
        if problem:
            notes.append(f"{problem}; its box alone is kept")
            row = {key: value for key, value in row.items() if key != "segmentation"}
        annotations.append(row)
    whole = replace(table, images=list(images.values()), annotations=annotations, faults=())
    return whole, list(dict.fromkeys(notes))


def with_segmentations(table: Table, *, on_error: OnError = "raise") -> tuple[Table, list[str]]:
    """The table with segmentations (compressed RLE) instead of values in PNG files, and notes on images left out.

    Raises:
        DataError: a PNG file cannot be used, with ``on_error="raise"``.
    """
    notes: list[str] = []
    if not any("map" in image or "problem" in image for image in table.images):
        return table, notes
    rows = defaultdict(list)
    for row in table.annotations:
        rows[row["image_id"]].append(row)
    images, annotations = [], []
    for image in table.images:
        try:
            if "problem" in image:
                raise DataError(image["problem"])
            values = image["map"].read(stated_size(image)) if "map" in image else None
        except DataError as error:
            if on_error == "raise":
                raise
            notes.append(str(error))
            continue
        images.append({key: value for key, value in image.items() if key != "map"})
        for row in rows[image["id"]]:
            if values is not None:
                segmentation = mask_rle(values == row["value"])
                row = {**{key: value for key, value in row.items() if key != "value"}, "segmentation": segmentation}
            annotations.append(row)
    return replace(table, images=images, annotations=annotations), notes


def to_coco(table: Table, *, relative_to: Path | None = None) -> Row:
    """A table as COCO JSON, with segmentations instead of masks in PNG files.

    Coordinates are rounded to 1/100 pixel.

    relative_to: make file names relative to this folder; None keeps them.

    Raises:
        DataError: a PNG file with masks cannot be used.
    """
    if table.faults:
        warnings.warn(f"{table.origin}: {len(table.faults)} rows are left out ({table.faults[0]})", stacklevel=2)
    table, _ = with_segmentations(table)
    images = table.images
    if relative_to is not None:
        images = [{**image, "file_name": _relative(table.path(image), relative_to)} for image in images]
    return {
        "info": table.info,
        "images": images,
        "annotations": [_rounded(row) for row in coco_rows(table.annotations)],
        "categories": table.categories,
    }


def _rounded(row: Row) -> Row:
    """The row with rounded coordinates; boxes thinner than that stay as they are."""
    changes: Row = {}
    if row_problem(row) is None:
        bbox = [rounded(value) for value in row["bbox"]]
        changes["bbox"] = bbox if min(bbox[2:]) > 0 else row["bbox"]
    segmentation = row.get("segmentation")
    if isinstance(segmentation, list) and all(isinstance(part, list) for part in segmentation):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # a malformed outline is kept as it is
            changes["segmentation"] = [[rounded(value) for value in part] for part in segmentation]
    return {**row, **changes}


def write_panoptic(
    dataset: AnnotatedImages,
    path: Path,
    *,
    relative_to: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> Row:
    """Write a data set with masks as COCO panoptic: PNG files into a folder, then the JSON file beside it.

    Where objects overlap, the later one has the pixels, which is noted. Returns what the JSON file has.

    Args:
        dataset: loaded for the task "pan".
        path: of the JSON file; the folder has its name without the ending.
        relative_to: make file names of images relative to this folder; None keeps them.
        progress: called as progress(done, total) after every image.
        note: called with a line about what the files do not have.

    Raises:
        DataError: the masks of an image cannot be read.
        RunError: a file cannot be written.
    """
    content, read = dataset.panoptic_ground_truth()
    if relative_to is not None:
        paths = {record.image_id: record.path for record in dataset.records}
        for image in content["images"]:
            image["file_name"] = _relative(paths[image["id"]], relative_to)
    rows = content["annotations"]
    for done, row in enumerate(rows, start=1):
        picture = Image.fromarray(ids_to_rgb(read(row["file_name"])))
        write_picture(path.with_suffix("") / row["file_name"], picture)
        if progress is not None:
            progress(done, len(rows))
    write_json(path, content, force=True)
    shared = {record.file_name: pixels for record in dataset.records if (pixels := shared_pixels(record))}
    if shared:
        first, pixels = next(iter(shared.items()))
        note(f"segments overlap in {len(shared)} images ({first}: {pixels} pixels): the later one has the pixels")
    return content


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(base))).as_posix()


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
