"""COCO panoptic JSON of ground truth and results, checked and brought to one numbering.

The pixels are in PNG files, which are read one image at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import IdReader, clean_category, id_reader
from detrkit.data.coco_json import Json, annotation_lists, read_json
from detrkit.data.label_maps import read_panoptic_png
from detrkit.data.listing import posix_name
from detrkit.data.values import read_value
from detrkit.errors import DataError
from detrkit.metrics.coco_files import rows_by_id, unique_names
from detrkit.structures import Categories, Category
from detrkit.structures.segment_maps import MAX_ID

__all__ = ["PanopticTruth", "ReadIds", "SegmentFile", "read_panoptic_results", "read_panoptic_truth"]

ReadIds = Callable[[str], NDArray[np.integer]]
"""Gives the segment ids (H, W) of a file that the JSON names."""


class ListedSegment(NamedTuple):
    """One row of ``segments_info``; the area is None where the row has none."""

    id: int
    label: int
    area: float | None
    is_crowd: bool


@dataclass(frozen=True)
class SegmentFile:
    """The segments of one image: a PNG file and what the JSON lists for it.

    Attributes:
        where: what messages call it: the file as the JSON names it, with the name of the JSON.
        file_name: of the PNG.
        size: (height, width) that the JSON says of the image, if it does.
        segments: as listed.
        read: gives the pixels of ``file_name``.
    """

    where: str
    file_name: str
    size: tuple[int, int] | None
    segments: tuple[ListedSegment, ...]
    read: ReadIds

    def ids(self) -> NDArray[np.integer]:
        """Segment ids (H, W).

        Raises:
            DataError: the file cannot be read, or its size is not that of the image.
        """
        ids = self.read(self.file_name)
        if self.size is not None and ids.shape != self.size:
            raise DataError(
                f"{self.where}: the PNG is {ids.shape[1]}x{ids.shape[0]} pixels, but the JSON says "
                f"{self.size[1]}x{self.size[0]}; maps must have the size of their image"
            )
        return ids


@dataclass(frozen=True)
class PanopticTruth:
    """Panoptic ground truth.

    Attributes:
        categories: in the order of their ids.
        class_names: one for each class, made unique.
        images: the segments of every annotated image by the image's id, in the order of the file.
        image_names: the images' own file names.
        source: what messages call the ground truth.
        read_id: how results refer to images.
    """

    categories: Categories
    class_names: list[str]
    images: dict[Hashable, SegmentFile]
    image_names: dict[Hashable, str]
    source: str
    read_id: IdReader


def read_panoptic_truth(
    source: Mapping[str, object] | str | Path, images: str | Path | ReadIds | None = None
) -> PanopticTruth:
    """Ground truth from a COCO panoptic JSON file or its content.

    images: the folder of the PNG files, or what reads them; None: the folder named like the file without its ending.

    Raises:
        DataError: no such file or folder, or content that is no COCO panoptic ground truth.
    """
    content, name = read_json(source, "ground truth")
    image_rows, annotation_rows, category_rows = annotation_lists(content, name)
    categories, label_of = _categories(category_rows, name)
    by_id = rows_by_id(image_rows, f"{name}: images")
    read_id = id_reader(image_rows)
    read = _reader(source, images, "--gt-images")
    files: dict[Hashable, SegmentFile] = {}
    for where, row in _annotations(annotation_rows, name, read_id):
        key = row["image_id"]
        if key not in by_id:
            raise DataError(f"{where}: image_id {key!r} is not among the {len(by_id)} images of the file")
        if key in files:
            raise DataError(f"{where}: image_id {key!r} has two annotations; COCO panoptic has one for each image")
        files[key] = SegmentFile(
            where=f"{name}: {row['file_name']}",
            file_name=row["file_name"],
            size=_size(by_id[key]),
            segments=_segments(row, label_of, where),
            read=read,
        )
    if not files:
        raise DataError(f"{name}: has no annotations, so there is nothing to score")
    if len(files) < len(by_id):
        unmapped = next(row["file_name"] for key, row in by_id.items() if key not in files)
        warnings.warn(
            f"{name}: {len(by_id) - len(files)} of {len(by_id)} images have no annotation, such as '{unmapped}', and "
            "do not count",
            stacklevel=3,
        )
    unsaid = sum("isthing" not in row for row in category_rows)
    if unsaid:
        warnings.warn(
            f"{name}: {unsaid} of {len(categories)} categories have no 'isthing'; they count as things", stacklevel=3
        )
    names = unique_names([(category.id, category.name) for category in categories])
    return PanopticTruth(categories, names, files, {key: by_id[key]["file_name"] for key in files}, name, read_id)


def read_panoptic_results(
    source: Mapping[str, object] | str | Path, truth: PanopticTruth, images: str | Path | ReadIds | None = None
) -> dict[Hashable, SegmentFile]:
    """Results for every image of the ground truth, by the id that the image has there.

    Images are matched by id; where the results list ``images`` of their own, as ``detrkit predict`` writes them, by
    file name, and classes by name where they list ``categories``. Results for other images are left out with a warning.

    Raises:
        DataError: no such file or folder, no COCO panoptic results, a class that the ground truth does not list, or
            images without a result.
    """
    content, name = read_json(source, "results")
    rows = content.get("annotations") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not isinstance(rows, Sequence) or isinstance(rows, str):
        raise DataError(
            f"{name}: is not COCO panoptic results: an object whose list 'annotations' has a row "
            "{image_id, file_name, segments_info: [{id, category_id}, …]} for each image"
        )
    label_of = _labels_in(content.get("categories"), truth, name)
    image_of = _images_in(content.get("images"), truth, name)
    read_id = truth.read_id if image_of is None else id_reader(content["images"])
    read = _reader(source, images, "--results-images")
    files: dict[Hashable, SegmentFile] = {}
    foreign: list[str] = []
    for where, row in _annotations(rows, name, read_id):
        key = row["image_id"] if image_of is None else image_of.get(row["image_id"])
        if key not in truth.images:
            foreign.append(row["file_name"])
            continue
        if key in files:
            raise DataError(f"{where}: image_id {row['image_id']!r} has two results; give one for each image")
        segments = _segments(row, label_of, where)
        files[key] = SegmentFile(f"{name}: {row['file_name']}", row["file_name"], None, segments, read)
    others = f"{len(foreign)} results are of images that are not there, such as {foreign[0]}" if foreign else ""
    missing = [f"{truth.image_names[key]} (id {key})" for key in truth.images if key not in files]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(truth.images)} images of {truth.source} have no result: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; every image needs a row, with an empty "
            f"segments_info (and a black PNG) where nothing was found{others and '; ' + others}"
        )
    if foreign:
        warnings.warn(f"{name}: {others}; left out", stacklevel=3)
    return files


def _annotations(rows: Sequence[object], name: str, read_id: IdReader) -> Iterator[tuple[str, Json]]:
    """Rows that name an image and a PNG file and list segments, with what to call each in messages."""
    for index, row in enumerate(rows):
        where = f"{name}: annotations[{index}]"
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is not an object but {type(row).__name__}")
        if not isinstance(row.get("segments_info"), Sequence) or isinstance(row["segments_info"], str):
            raise DataError(
                f"{where} has no list 'segments_info'; is this a COCO file of objects, not of panoptic maps?"
            )
        row = {**row, "image_id": read_id(row, "image_id", where)}
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: file_name of the PNG is missing")
        yield where, row


def _segments(row: Json, label_of: Mapping[int, int], where: str) -> tuple[ListedSegment, ...]:
    segments: dict[int, ListedSegment] = {}
    for index, info in enumerate(row["segments_info"]):
        place = f"{where} ({row['file_name']}): segments_info[{index}]"
        if not isinstance(info, Mapping):
            raise DataError(f"{place} is not an object but {type(info).__name__}")
        number = read_value(info, "id", place)
        if not 1 <= number <= MAX_ID:
            raise DataError(
                f"{place}: id {number} is not between 1 and {MAX_ID}; 0 stands for pixels without a segment"
            )
        if number in segments:
            raise DataError(f"{place}: id {number} is used twice")
        category = read_value(info, "category_id", place)
        if category not in label_of:
            raise DataError(f"{place}: category_id {category} is not among the categories of the ground truth")
        area = read_value(info, "area", place)
        segments[number] = ListedSegment(number, label_of[category], area, bool(read_value(info, "iscrowd", place)))
    return tuple(segments.values())


def _size(image: Json) -> tuple[int, int] | None:
    return (image["height"], image["width"]) if "height" in image and "width" in image else None


def _categories(rows: Sequence[object], name: str) -> tuple[Categories, dict[int, int]]:
    """The classes in the order of their ids, and the label of each id."""
    by_id: dict[int, Json] = {}
    for index, row in enumerate(rows):
        row = clean_category(row, f"{name}: categories[{index}]", read_value)
        if row["id"] in by_id:
            raise DataError(f"{name}: categories[{index}]: id {row['id']} is used twice")
        by_id[row["id"]] = row
    if not by_id:
        raise DataError(f"{name}: has no categories")
    categories = Categories(
        Category(number, by_id[number]["name"], bool(by_id[number].get("isthing", 1))) for number in sorted(by_id)
    )
    return categories, {category.id: label for label, category in enumerate(categories)}


def _labels_in(rows: object, truth: PanopticTruth, name: str) -> dict[int, int]:
    """The label of each category id of results: by name where they list a category of that name, else by id.

    A category of another name has no class where that of its id belongs to a further category by name.
    """
    labels = {category.id: label for label, category in enumerate(truth.categories)}
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        return labels
    by_name = dict(zip(truth.class_names, labels.values(), strict=True))
    listed = _categories(rows, name)[0]
    named = {category.id: by_name[category.name] for category in listed if category.name in by_name}
    for category in listed:
        if category.id not in named and labels.get(category.id) in named.values():
            del labels[category.id]
    return labels | named


def _images_in(rows: object, truth: PanopticTruth, name: str) -> dict[Hashable, Hashable] | None:
    """The image of the ground truth for each image id of results; None where they list no file names."""
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        return None
    # A name counts whole, else without its folders, else without its ending too.
    forms: Sequence[Callable[[str], str]] = (
        str,
        lambda path: PurePosixPath(path).name,
        lambda path: PurePosixPath(path).stem,
    )
    tables: list[dict[str, list[Hashable]]] = [{} for _ in forms]
    for key, file_name in truth.image_names.items():
        for table, form in zip(tables, forms, strict=True):
            table.setdefault(form(file_name), []).append(key)
    by_id = rows_by_id(rows, f"{name}: images")
    if not all(row["file_name"] for row in by_id.values()):
        return None
    image_of: dict[Hashable, Hashable] = {}
    for key, row in by_id.items():
        file_name = row["file_name"]
        found = next(
            (hit for table, form in zip(tables, forms, strict=True) if (hit := table.get(form(file_name)))), []
        )
        if len(found) > 1:
            raise DataError(f"{name}: image '{file_name}' occurs more than once in {truth.source}; give its whole path")
        image_of[key] = found[0] if found else None
    return image_of


def _reader(source: object, images: str | Path | ReadIds | None, option: str) -> ReadIds:
    """What reads a PNG file that the JSON names."""
    if images is not None and not isinstance(images, str | Path):
        return images
    if images is None and not isinstance(source, str | Path):
        raise ValueError("where content is given instead of a file, say which folder holds the PNG files")
    folder = Path(images) if images is not None else Path(str(source)).with_suffix("")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder with the PNG files of {source}; say where they are with {option}")
    return partial(_read_in, folder)


def _read_in(folder: Path, file_name: str) -> NDArray[np.int32]:
    return read_panoptic_png(folder / posix_name(file_name))
