"""Reading COCO ground truth and results from real files into the strict form that evaluators need.

Files differ in missing keys (annotation ids, ``iscrowd``, ``area``) and in their numbering. Values that follow without
guessing are filled in; everything else is an error that names the file and the row.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from detrkit.data.coco_json import (
    Json,
    Row,
    annotation_lists,
    box_problem,
    finite_number,
    image_file,
    is_crowd,
    read_json,
)
from detrkit.errors import DataError

__all__ = ["GroundTruth", "read_ground_truth", "read_results", "rows_by_id", "unique_names"]


@dataclass(frozen=True)
class GroundTruth:
    """Cleaned COCO ground truth."""

    dataset: Row
    """COCO JSON with images numbered from 1 and categories from 0, both in the order of their original ids, and
    annotations numbered from 1."""

    image_numbers: dict[Hashable, int]
    """Original image id -> number in ``dataset``."""

    category_numbers: dict[Hashable, int]
    """Original category id -> number in ``dataset``."""

    class_names: list[str]
    """Unique names in category order."""

    source: str
    """Name of the ground truth in messages."""

    def image(self, number: int) -> Row:
        """The image with this number."""
        row: Row = self.dataset["images"][number - 1]
        return row


def read_ground_truth(source: object, *, iou_type: str, name: str | None = None) -> GroundTruth:
    """Read ground truth from a COCO annotation file or from its JSON value; messages call it ``name``.

    Filled in: annotation ids, ``iscrowd`` 0, and for boxes ``area`` = width times height. With ``"segm"`` a missing
    ``area`` stays missing: the evaluator measures it on the mask.

    Raises:
        DataError: no such file, not COCO annotations, or an invalid row.
    """
    data, default_name = read_json(source, "ground truth")
    name = name or default_name
    image_rows, annotation_rows, category_rows = annotation_lists(data, name)
    images_by_id = rows_by_id(image_rows, f"{name}: images")
    categories_by_id = rows_by_id(category_rows, f"{name}: categories")
    image_numbers = {key: number for number, key in enumerate(_in_order(images_by_id), start=1)}
    category_numbers = {key: number for number, key in enumerate(_in_order(categories_by_id))}
    images = []
    for key, number in image_numbers.items():
        row = {"id": number, "file_name": image_file(images_by_id[key])}
        for side in ("height", "width"):
            if images_by_id[key].get(side) is not None:
                row[side] = int(images_by_id[key][side])
        images.append(row)
    class_names = unique_names([(key, categories_by_id[key].get("name")) for key in category_numbers])

    truth = GroundTruth({}, image_numbers, category_numbers, class_names, name)
    truth.dataset["images"] = images
    truth.dataset["categories"] = [{"id": number, "name": class_names[number]} for number in category_numbers.values()]
    annotations = truth.dataset["annotations"] = []
    for index, row in enumerate(annotation_rows):
        where = f"{name}: annotations[{index}]"
        image, category = _image_and_category(row, truth, where)
        if category is None:
            raise DataError(f"{where}: category_id {row.get('category_id')!r} is not among the categories of the file")
        # Annotations get new ids: pycocotools and its successors take an object with id 0 for "no match".
        clean: Row = {"id": index + 1, "image_id": image, "category_id": category}
        clean["iscrowd"] = int(is_crowd(row))
        if iou_type == "segm":
            clean["segmentation"] = _segmentation(row, truth.image(image), where)
            clean["bbox"] = _box(row, where) if row.get("bbox") else [0.0, 0.0, 0.0, 0.0]
        else:
            clean["bbox"] = _box(row, where)
        if row.get("area") is not None:
            clean["area"] = finite_number(row["area"], f"{where}: area")
        elif iou_type == "bbox":
            clean["area"] = clean["bbox"][2] * clean["bbox"][3]
        annotations.append(clean)
    return truth


def read_results(source: object, truth: GroundTruth, *, iou_type: str) -> list[Row]:
    """Read result rows in the numbering of ``truth``; rows of classes it does not list are ignored with a warning.

    Raises:
        DataError: no such file, not COCO results, or an invalid row (unknown image, score not a number, …).
    """
    data, name = read_json(source, "results")
    if isinstance(data, Mapping):
        data = _rows_of_predictions(data, truth, name)
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise DataError(f"{name}: COCO results are a JSON list of {{image_id, category_id, bbox, score}}")
    rows = []
    unknown: dict[Hashable, int] = {}
    for index, row in enumerate(data):
        where = f"{name}: row {index}"
        image, category = _image_and_category(row, truth, where)
        if "score" not in row:
            raise DataError(f"{where}: no score; is this a ground-truth file?")
        clean: Row = {"image_id": image, "category_id": category}
        clean["score"] = finite_number(row["score"], f"{where}: score")
        # Only the key that the IoU needs: with both in a row, pycocotools takes the area of the box instead of the mask
        # and sorts objects into other size ranges.
        if iou_type == "segm":
            clean["segmentation"] = _segmentation(row, truth.image(image), where)
        else:
            clean["bbox"] = _box(row, where)
        if category is None:
            unknown[row["category_id"]] = unknown.get(row["category_id"], 0) + 1
            continue
        rows.append(clean)
    if unknown:
        listed = ", ".join(str(key) for key in _in_order(unknown))
        message = f"{name}: category ids {listed} ({sum(unknown.values())} rows) are not in {truth.source}"
        if not rows:
            raise DataError(f"{message}; no row is left. Its ids: {', '.join(map(str, truth.category_numbers))}")
        warnings.warn(f"{message}; left out", stacklevel=3)
    return rows


def _rows_of_predictions(predictions: Json, truth: GroundTruth, name: str) -> list[Row]:
    """Rows of a ``predictions.json``; images are matched by file name and classes by name, since ids may differ."""
    for key in ("images", "annotations"):
        if not isinstance(predictions.get(key), Sequence):
            raise DataError(f"{name}: results are a list, or an object with images and annotations; no '{key}' here")
    originals = list(truth.image_numbers)
    by_file = {row["file_name"]: originals[row["id"] - 1] for row in truth.dataset["images"]}
    by_base: dict[str, list[Hashable]] = {}
    for file_name, key in by_file.items():
        by_base.setdefault(PurePosixPath(file_name).name, []).append(key)
    image_ids: dict[Hashable, Hashable] = {}
    for row in predictions["images"]:
        file_name = str(row.get("file_name", ""))
        candidates = [by_file[file_name]] if file_name in by_file else by_base.get(PurePosixPath(file_name).name, [])
        if len(candidates) != 1:
            what = "is not" if not candidates else "occurs more than once"
            raise DataError(f"{name}: image '{file_name}' {what} among the images of {truth.source}")
        image_ids[row["id"]] = candidates[0]

    ids_by_name = dict(zip(truth.class_names, truth.category_numbers, strict=True))
    category_ids = {row["id"]: ids_by_name.get(row.get("name"), row["id"]) for row in predictions.get("categories", [])}
    rows = []
    for index, row in enumerate(predictions["annotations"]):
        if not isinstance(row, Mapping) or row.get("image_id") not in image_ids:
            raise DataError(f"{name}: annotations[{index}] names no image of the file")
        category_id = category_ids.get(row.get("category_id"), row.get("category_id"))
        rows.append({**row, "image_id": image_ids[row["image_id"]], "category_id": category_id})
    return rows


def rows_by_id(rows: Sequence[object], where: str) -> dict[Hashable, Json]:
    """Rows by id."""
    result: dict[Hashable, Json] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), int | str | float):
            raise DataError(f"{where}[{index}] has no id")
        if row["id"] in result and dict(result[row["id"]]) != dict(row):
            raise DataError(f"{where}[{index}]: id {row['id']} is used twice")
        result[row["id"]] = row
    return result


def _in_order(ids: Iterable[Hashable]) -> list[Hashable]:
    """Sorted ids; numbers come before strings if a file mixes them."""
    return sorted(ids, key=lambda key: (isinstance(key, str), key))


def unique_names(categories: list[tuple[Hashable, object]]) -> list[str]:
    """One name per class: its name, or its id if it has none; the id is added if two classes share a name."""
    names = [str(key) if name is None else str(name) for key, name in categories]
    return [
        f"{name} (id {key})" if names.count(name) > 1 else name
        for name, (key, _) in zip(names, categories, strict=True)
    ]


def _image_and_category(row: object, truth: GroundTruth, where: str) -> tuple[int, int | None]:
    """Image and category number of a row; the category is None if the ground truth does not list it."""
    if not isinstance(row, dict | Mapping):
        raise DataError(f"{where} is not an object but {type(row).__name__}")
    for key in ("image_id", "category_id"):
        if not isinstance(row.get(key), int | str | float):
            raise DataError(f"{where}: {key} is missing")
    image = truth.image_numbers.get(row["image_id"])
    if image is None:
        count = len(truth.image_numbers)
        raise DataError(f"{where}: image_id {row['image_id']!r} is not among the {count} images of {truth.source}")
    return image, truth.category_numbers.get(row["category_id"])


def _box(row: Json, where: str) -> list[float]:
    """bbox [x, y, width, height] of an annotation or a result; sides of 0 are allowed."""
    box = row.get("bbox")
    problem = box_problem(box, flat=True)
    if box is None or problem is not None:
        raise DataError(f"{where}: bbox {box!r} {problem}")
    return [float(value) for value in box]


def _segmentation(row: Json, image: Json, where: str) -> object:
    """Polygons, or a run-length encoding with the size of the image."""
    value = row.get("segmentation")
    if not value:
        raise DataError(f"{where}: no segmentation, which masks are scored on (boxes: iou type bbox)")
    if isinstance(value, Mapping):
        size, counts = value.get("size"), value.get("counts")
        if size is None or counts is None:
            raise DataError(f"{where}: a run-length segmentation needs size and counts")
        expected = [image.get("height", size[0]), image.get("width", size[1])]
        if list(size) != expected:
            raise DataError(f"{where}: mask size {list(size)} is not the image's [height, width] {expected}")
        return {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts}
    if "height" not in image or "width" not in image:
        raise DataError(f"{where}: polygons need the image's height and width, which the ground truth does not give")
    for polygon in value:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"{where}: a polygon must be a list of three or more x, y pairs")
        for number in polygon:
            finite_number(number, f"{where}: each polygon value")
    return value
