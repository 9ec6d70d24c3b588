"""Writing a data set as a folder of YOLO or Pascal VOC, and putting its images there.

Coordinates are rounded to 1/100 pixel and end at the border of the image.
"""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

import numpy as np
import yaml
from numpy.typing import NDArray

from detrkit.data.clean_rows import is_crowd
from detrkit.data.coco_json import Row
from detrkit.data.listing import posix_name
from detrkit.data.packed_masks import pack, unpack
from detrkit.data.records import Table
from detrkit.errors import DataError, RunError
from detrkit.files import check_regular, refuse_links, replacing, safe_name, write_bytes

if TYPE_CHECKING:
    from detrkit.data.packed_masks import Polygons

__all__ = ["flat_names", "place_file", "place_images", "rounded", "write_voc", "write_yolo"]

Progress = Callable[[int, int], None]
Corners = tuple[float, float, float, float]


def rounded(value: float) -> float:
    """A coordinate to 1/100 pixel; a whole number where it is one."""
    value = round(value, 2)
    return int(value) if value == int(value) else value


def flat_names(names: Iterable[str]) -> dict[str, str]:
    """File names without folders for paths of images, with stems that differ, since label files share them."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        parts = [part for part in PurePosixPath(posix_name(name)).parts if part not in ("/", ".", "..")]
        path = PurePosixPath(safe_name(parts[-1] if parts else "") or "image")
        options = [path.name, safe_name("_".join(parts)) or path.name]
        options += [f"{path.stem}_{number}{path.suffix}" for number in range(2, len(taken) + 3)]
        chosen = next(option for option in options if PurePosixPath(option).stem.lower() not in taken)
        taken.add(PurePosixPath(chosen).stem.lower())
        found[name] = chosen
    return found


def place_images(
    table: Table, folder: Path, names: dict[str, str], *, copy: bool, progress: Progress = lambda *_: None
) -> Table:
    """The table with its images in a folder, as copies or as links to where they are.

    names: the new name of each ``file_name``.

    Raises:
        DataError: an image is not a regular file.
        RunError: a file cannot be written.
    """
    images = []
    for done, image in enumerate(table.images, start=1):
        source, name = table.path(image), names[str(image["file_name"])]
        check_regular(source)
        try:
            place_file(source, folder / name, copy=copy)
        except OSError as error:
            raise RunError(f"{folder / name}: cannot be written ({error.strerror or error})") from error
        images.append({**image, "file_name": name})
        progress(done, len(table.images))
    return replace(table, images=images, image_root=folder)


def place_file(source: Path, target: Path, *, copy: bool) -> None:
    """Put a file at another place, as a copy or as a link to where it is.

    Raises:
        OSError: it cannot be written.
    """
    if os.path.abspath(source) == os.path.abspath(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        with replacing(target) as draft:
            shutil.copyfile(source, draft)
        return
    target.unlink(missing_ok=True)
    os.symlink(os.path.relpath(source.resolve(), target.parent.resolve()), target)


def write_yolo(tables: dict[str, Table], out: Path, *, copy: bool, progress: Progress = lambda *_: None) -> list[str]:
    """Write ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``; returns what YOLO has no place for.

    If all objects have polygons of one part, rows are polygons, otherwise boxes.

    Raises:
        DataError: the classes of the splits differ.
        RunError: a file cannot be written.
    """
    names = _classes(tables)
    numbers = {category: number for number, category in enumerate(names)}
    objects = [row for table in tables.values() for row in table.annotations if not is_crowd(row)]
    polygons = bool(objects) and all(_single_polygon(row) for row in objects)
    crowds = sum(len(table.annotations) for table in tables.values()) - len(objects)
    notes = [f"{crowds} crowd regions, which YOLO does not have"] if crowds else []
    if not polygons and any(row.get("segmentation") for row in objects):
        notes.append("masks: YOLO has polygons of one part, which not all objects have; boxes are written")
    for split, table in tables.items():
        images = _by_image(table)
        table = place_images(table, out / "images" / split, flat_names(images), copy=copy, progress=progress)
        for image, rows in zip(table.images, images.values(), strict=True):
            lines = []
            for row in rows:
                values = None if is_crowd(row) else _fractions(row, image, polygons)
                if values is None:
                    what = "an outline without area in" if polygons else "a box outside"
                    notes += [] if is_crowd(row) else [f"{image['file_name']}: {what} the image"]
                    continue
                lines.append(" ".join([str(numbers[row["category_id"]]), *(f"{value:.6f}" for value in values)]))
            stem = PurePosixPath(image["file_name"]).stem
            _write_text(out / "labels" / split / f"{stem}.txt", "".join(f"{line}\n" for line in lines), out)
    entries = {split: f"images/{split}" for split in tables}
    content = {**entries, "nc": len(names), "names": dict(enumerate(names.values()))}
    _write_text(out / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False), out)
    return notes


def write_voc(tables: dict[str, Table], out: Path, *, copy: bool, progress: Progress = lambda *_: None) -> list[str]:
    """Write ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``; returns what VOC has no place for.

    Crowd regions become objects marked ``difficult``.

    Raises:
        DataError: the classes of the splits differ.
        RunError: a file cannot be written.
    """
    classes = _classes(tables)
    notes = []
    if any(row.get("segmentation") for table in tables.values() for row in table.annotations):
        notes.append("masks: boxes alone are written")
    keys = {split: [f"{split}/{image['file_name']}" for image in table.images] for split, table in tables.items()}
    unique = flat_names(key for split in keys for key in keys[split])
    for split, table in tables.items():
        images = _by_image(table)
        names = {name: unique[f"{split}/{name}"] for name in images}
        table = place_images(table, out / "JPEGImages", names, copy=copy, progress=progress)
        stems = []
        for image, rows in zip(table.images, images.values(), strict=True):
            root = ElementTree.Element("annotation")
            _add(root, {"folder": "JPEGImages", "filename": image["file_name"]})
            _add(ElementTree.SubElement(root, "size"), {"width": image["width"], "height": image["height"], "depth": 3})
            _add(root, {"segmented": 0})
            for row in rows:
                corners = _corners(row, image)
                if corners is None:
                    notes.append(f"{image['file_name']}: a box outside the image")
                    continue
                element = ElementTree.SubElement(root, "object")
                name = "".join(sign if sign.isprintable() else "_" for sign in classes[row["category_id"]])
                _add(element, {"name": name, "truncated": 0, "difficult": int(is_crowd(row))})
                x1, y1, x2, y2 = corners
                box = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # VOC counts from 1
                _add(ElementTree.SubElement(element, "bndbox"), {key: rounded(value) for key, value in box.items()})
            ElementTree.indent(root)
            stems.append(PurePosixPath(image["file_name"]).stem)
            _write_text(out / "Annotations" / f"{stems[-1]}.xml", ElementTree.tostring(root, encoding="unicode"), out)
        _write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems), out)
    return notes


def _add(parent: ElementTree.Element, texts: dict[str, object]) -> None:
    for key, value in texts.items():
        ElementTree.SubElement(parent, key).text = str(value)


def _classes(tables: dict[str, Table]) -> dict[int, str]:
    """Class names by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for split, table in tables.items():
        for row in table.categories:
            if names.setdefault(row["id"], str(row["name"])) != str(row["name"]):
                raise DataError(
                    f"{table.origin}: class {row['id']} is '{row['name']}' in {split}, but not in the others"
                )
    return {number: names[number] for number in sorted(names)}


def _by_image(table: Table) -> dict[str, list[Row]]:
    """The rows of each image by its file name."""
    rows = defaultdict(list)
    for row in table.annotations:
        rows[row["image_id"]].append(row)
    found = {str(image["file_name"]): rows[image["id"]] for image in table.images}
    if len(found) < len(table.images):
        raise DataError(f"{table.origin}: lists the same image twice; 'detrkit data check' names it")
    return found


def _corners(row: Row, image: Row) -> Corners | None:
    """x1, y1, x2, y2 within the image, or None if nothing is there."""
    x, y, width, height = row["bbox"]
    x1, x2 = (min(max(rounded(value), 0), image["width"]) for value in (x, x + width))
    y1, y2 = (min(max(rounded(value), 0), image["height"]) for value in (y, y + height))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _single_polygon(row: Row) -> bool:
    try:
        content = unpack(pack(row.get("segmentation")))
    except DataError:
        return False
    return isinstance(content, list) and len(content) == 1


def _fractions(row: Row, image: Row, polygons: bool) -> Sequence[float] | None:
    """The numbers of a YOLO row after the class, or None if nothing lies in the image."""
    sides = (image["width"], image["height"])
    if polygons:
        (polygon,) = cast("Polygons", unpack(pack(row["segmentation"])))
        points = np.round(_cut(polygon, sides), 2)
        if len(points) < 3 or not np.ptp(points, axis=0).all():
            return None
        fractions: list[float] = (points / sides).ravel().tolist()
        return fractions
    corners = _corners(row, image)
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    return [(x1 + x2) / 2 / sides[0], (y1 + y2) / 2 / sides[1], (x2 - x1) / sides[0], (y2 - y1) / sides[1]]


def _cut(polygon: NDArray[np.float64], sides: tuple[int, int]) -> NDArray[np.float64]:
    """The part of a polygon (V, 2) in an image of these sides: what lies beyond each border in turn is cut off."""
    for axis, side in enumerate(sides):
        polygon = _above(polygon, polygon[:, axis])
        polygon = _above(polygon, side - polygon[:, axis])
    return polygon


def _above(polygon: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a polygon (V, 2) where heights (V,) are not negative, with a point where an edge crosses 0."""
    kept = []
    for point, other, height, ahead in zip(
        polygon, np.roll(polygon, -1, axis=0), heights, np.roll(heights, -1), strict=True
    ):
        if height >= 0:
            kept.append(point)
        if height * ahead < 0:
            kept.append(point + (other - point) * height / (height - ahead))
    return np.array(kept).reshape(-1, 2)


def _write_text(path: Path, text: str, out: Path) -> None:
    refuse_links(out, path)
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
