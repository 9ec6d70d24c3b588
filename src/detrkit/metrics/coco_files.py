"""Reading COCO ground truth and results from real files into the strict form that evaluators need.

Files differ in missing keys (annotation ids, ``iscrowd``, ``area``) and in their numbering. Values that follow without
guessing are filled in; everything else is an error that names the file and the row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import hotcoco.mask

from detrkit.data.clean_rows import (
    IdReader,
    clean_annotation,
    clean_category,
    clean_image,
    clean_owner,
    id_reader,
    is_crowd,
    row_area,
    row_problem,
)
from detrkit.data.coco_json import Json, Row, annotation_lists, read_json
from detrkit.data.listing import posix_name
from detrkit.data.packed_masks import Rle, pack, text_rle, unpack
from detrkit.data.values import read_value
from detrkit.errors import DataError
from detrkit.metrics.result_columns import Columns, columns_of_file, columns_of_rows

__all__ = ["GroundTruth", "Results", "read_ground_truth", "read_results", "rows_by_id", "unique_names"]


Results = list[Row] | Columns
"""Results in the numbers of a ground truth; those of boxes as columns where that is quicker."""

_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


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

    images: Mapping[Hashable, Row]
    """The images of the file by their original id."""

    categories: Mapping[Hashable, Row]
    """The categories of the file by their original id."""

    read_image_id: IdReader = read_value
    read_category_id: IdReader = read_value
    """How results refer to images and categories."""

    @cached_property
    def images_named(self) -> tuple[dict[str, list[Hashable]], dict[str, list[Hashable]]]:
        """Original ids of the images with a file name, and with a name in any folder."""
        whole: dict[str, list[Hashable]] = {}
        base: dict[str, list[Hashable]] = {}
        for key, row in self.images.items():
            path = PurePosixPath(posix_name(str(row["file_name"])))
            whole.setdefault(str(path), []).append(key)
            base.setdefault(path.name, []).append(key)
        return whole, base

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
    read_image_id, read_category_id = id_reader(image_rows), id_reader(category_rows)
    images_by_id = _by_id(image_rows, f"{name}: images", partial(clean_image, read_id=read_image_id))
    categories_by_id = _by_id(category_rows, f"{name}: categories", partial(clean_category, read_id=read_category_id))
    image_numbers = {key: number for number, key in enumerate(_in_order(images_by_id), start=1)}
    category_numbers = {key: number for number, key in enumerate(_in_order(categories_by_id))}
    kept = ("file_name", "height", "width")
    truth = GroundTruth(
        dataset={
            "images": [
                {"id": number, **{word: images_by_id[key][word] for word in kept if word in images_by_id[key]}}
                for key, number in image_numbers.items()
            ]
        },
        image_numbers=image_numbers,
        category_numbers=category_numbers,
        class_names=unique_names([(key, categories_by_id[key]["name"]) for key in category_numbers]),
        source=name,
        images=images_by_id,
        categories=categories_by_id,
        read_image_id=read_image_id,
        read_category_id=read_category_id,
    )
    numbered = zip(category_numbers.values(), truth.class_names, strict=True)
    truth.dataset["categories"] = [{"id": number, "name": class_name} for number, class_name in numbered]
    annotations = truth.dataset["annotations"] = []
    orphans = 0
    for index, row in enumerate(annotation_rows):
        where = f"{name}: annotations[{index}]"
        row = clean_annotation(row, where, read_image_id=read_image_id, read_category_id=read_category_id)
        image, category = image_numbers.get(row["image_id"]), category_numbers.get(row["category_id"])
        if category is None:
            raise DataError(f"{where}: category_id {row['category_id']!r} is not among the categories of the file")
        if image is None:
            orphans += 1
            continue
        problem = row_problem(row, flat=True)
        if problem is not None:
            raise DataError(f"{where}: {problem}")
        # Annotations get new ids: pycocotools and its successors take an object with id 0 for "no match".
        clean: Row = {"id": index + 1, "image_id": image, "category_id": category, "iscrowd": int(is_crowd(row))}
        clean["bbox"] = [float(value) for value in row["bbox"]]
        if iou_type == "segm":
            clean["segmentation"] = _segmentation(row, truth.image(image), where)
        if row.get("area") is not None or iou_type == "bbox":
            clean["area"] = row_area(row)
        annotations.append(clean)
    if orphans:
        warnings.warn(f"{name}: {orphans} annotations of images that it does not list are ignored", stacklevel=3)
    return truth


def read_results(source: object, truth: GroundTruth, *, iou_type: str) -> Results:
    """Read result rows in the numbering of ``truth``; rows of classes it does not list are ignored with a warning.

    Raises:
        DataError: no such file, not COCO results, or an invalid row (unknown image, score not a number, …).
    """
    columns = _columns(source, truth) if iou_type == "bbox" else None
    return _rows(source, truth, iou_type=iou_type) if columns is None else columns


def _columns(source: object, truth: GroundTruth) -> Columns | None:
    """Results of boxes that need no second look, neither at a value nor at a name."""
    if not truth.read_image_id is truth.read_category_id is read_value:
        return None
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file() or _predictions_beside(path) is not None:
            return None
        return columns_of_file(path, truth.image_numbers, truth.category_numbers)
    return columns_of_rows(source, truth.image_numbers, truth.category_numbers) if isinstance(source, list) else None


def _rows(source: object, truth: GroundTruth, *, iou_type: str) -> list[Row]:
    """Results row by row."""
    data, name = read_json(source, "results")
    if isinstance(data, list) and isinstance(source, str | Path):
        data = _named_results(Path(source), data) or data
    if isinstance(data, Mapping):
        data = _rows_of_predictions(data, truth, name)
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise DataError(f"{name}: COCO results are a JSON list of {{image_id, category_id, bbox, score}}")
    clean_row = clean_owner if iou_type == "segm" else clean_annotation  # masks are scored without boxes
    rows = []
    unknown: dict[Hashable, int] = {}
    for index, row in enumerate(data):
        where = f"{name}: row {index}"
        row = clean_row(row, where, read_image_id=truth.read_image_id, read_category_id=truth.read_category_id)
        image, category = truth.image_numbers.get(row["image_id"]), truth.category_numbers.get(row["category_id"])
        if image is None:
            count = len(truth.image_numbers)
            raise DataError(f"{where}: image_id {row['image_id']!r} is not among the {count} images of {truth.source}")
        if "score" not in row:
            raise DataError(f"{where}: no score; is this a ground-truth file?")
        clean: Row = {"image_id": image, "category_id": category}
        clean["score"] = read_value(row, "score", where)
        # Only the key that the IoU needs: with both in a row, pycocotools takes the area of the box instead of the mask
        # and sorts objects into other size ranges.
        if iou_type == "segm":
            clean["segmentation"] = _segmentation(row, truth.image(image), where)
        else:
            problem = row_problem(row, flat=True)
            if problem is not None:
                raise DataError(f"{where}: {problem}")
            clean["bbox"] = [float(value) for value in row["bbox"]]
        if category is None:
            unknown[row["category_id"]] = unknown.get(row["category_id"], 0) + 1
            continue
        rows.append(clean)
    if unknown:
        listed = ", ".join(str(key) for key in _in_order(unknown))
        message = f"{name}: category ids {listed} ({sum(unknown.values())} rows) are not in {truth.source}"
        if not rows:
            raise DataError(f"{message}; no row is left. Its ids: {', '.join(map(str, truth.category_numbers))}")
        warnings.warn(f"{message}; left out", stacklevel=4)
    return rows


def _rows_of_predictions(predictions: Json, truth: GroundTruth, name: str) -> list[Row]:
    """Rows of a ``predictions.json``; images are matched by file name and classes by name, since ids may differ."""
    for key in ("images", "annotations"):
        if not isinstance(predictions.get(key), Sequence):
            raise DataError(f"{name}: results are a list, or an object with images and annotations; no '{key}' here")
    images = rows_by_id(predictions["images"], f"{name}: images")
    image_ids = {key: _image_named(row["file_name"], truth, name) for key, row in images.items()}
    listed = predictions.get("categories", [])
    categories = _by_id(listed, f"{name}: categories", partial(clean_category, read_id=id_reader(listed)))
    ids_by_name = dict(zip(truth.class_names, truth.category_numbers, strict=True))
    category_ids = {key: ids_by_name.get(row["name"], key) for key, row in categories.items()}
    read_image_id, read_category_id = id_reader(predictions["images"]), id_reader(listed)
    rows = []
    for index, row in enumerate(predictions["annotations"]):
        where = f"{name}: annotations[{index}]"
        clean = clean_owner(row, where, read_image_id=read_image_id, read_category_id=read_category_id)
        if clean["image_id"] not in image_ids:
            raise DataError(f"{where} names no image of the file: image_id {clean['image_id']!r}")
        category_id = category_ids.get(clean["category_id"], clean["category_id"])
        rows.append({**clean, "image_id": image_ids[clean["image_id"]], "category_id": category_id})
    return rows


def _predictions_beside(path: Path) -> Path | None:
    beside = path.with_name("predictions.json")
    return beside if path.name == "results.json" and beside.is_file() else None


def _named_results(path: Path, rows: list[object]) -> Row | None:
    """The ``predictions.json`` beside the ``results.json`` of ``detrkit predict``: the same rows, and names of images.

    The ids of images that lie in no data set are 1, 2, …, which may be those of other images in the ground truth.
    """
    beside = _predictions_beside(path)
    if beside is None:
        return None
    try:
        predictions, _ = read_json(beside, "results")
    except DataError:
        return None
    if not isinstance(predictions, dict) or not isinstance(predictions.get("annotations"), list):
        return None
    known = [{key: row.get(key) for key in _RESULT_KEYS} for row in predictions["annotations"] if isinstance(row, dict)]
    same = known == [{key: row.get(key) for key in _RESULT_KEYS} for row in rows if isinstance(row, dict)]
    return predictions if same and len(known) == len(rows) else None


def _image_named(file_name: str, truth: GroundTruth, name: str) -> Hashable:
    """The id of the image of the ground truth with this name, else with this name in any folder."""
    whole, base = truth.images_named
    found = whole.get(file_name) or base.get(PurePosixPath(file_name).name, [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{name}: image '{file_name}' is not among the images of {truth.source}; score results of its images "
            "alone ('detrkit eval --data DIR' predicts just those of a split)"
        )
    ids = f"ids {', '.join(map(str, found[:-1]))} and {found[-1]}"
    raise DataError(
        f"{name}: image '{file_name}' occurs more than once among the images of {truth.source} ({ids}); results cannot "
        "be assigned by name"
    )


def rows_by_id(rows: Sequence[object], where: str) -> dict[Hashable, Row]:
    """Rows of images by id, with their sides as numbers.

    Raises:
        DataError: a row without id, or two unlike rows with the same.
    """
    return _by_id(rows, where, partial(clean_image, read_id=id_reader(rows)))


def _by_id(rows: Sequence[object], where: str, clean: Callable[[object, str], Row]) -> dict[Hashable, Row]:
    result: dict[Hashable, Row] = {}
    for index, raw in enumerate(rows):
        row = clean(raw, f"{where}[{index}]")
        if result.setdefault(row["id"], row) != row:
            raise DataError(f"{where}[{index}]: id {row['id']} is used twice")
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


def _segmentation(row: Json, image: Json, where: str) -> object:
    """Polygons, or a run-length encoding with the size of the image."""
    value = row.get("segmentation")
    if not value:
        raise DataError(f"{where}: no segmentation, which masks are scored on (boxes: iou type bbox)")
    try:
        content = _fast_rle(value) or unpack(pack(value))
    except DataError as error:
        raise DataError(f"{where}: segmentation {error}") from None
    if isinstance(content, dict):
        height, width = content["size"]
        expected = image.get("height", height), image.get("width", width)
        if (height, width) != expected:
            raise DataError(
                f"{where}: segmentation is an RLE for {width}x{height} pixels, but the image is "
                f"{expected[1]}x{expected[0]}"
            )
        return text_rle(content)
    if "height" not in image or "width" not in image:
        raise DataError(f"{where}: polygons need the image's height and width, which the ground truth does not give")
    assert isinstance(content, list)
    return [polygon.ravel().tolist() for polygon in content]


def _fast_rle(value: object) -> Rle | None:
    """A compressed RLE as it is, where hotcoco can read it: results have many, and ``pack`` takes 100 times as long."""
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
        return None
    try:
        pixels = hotcoco.mask.area({"size": value["size"], "counts": value["counts"]})
    except (ValueError, TypeError, KeyError, OverflowError):
        return None  # pack says what is wrong
    return {"size": value["size"], "counts": value["counts"]} if pixels else None
