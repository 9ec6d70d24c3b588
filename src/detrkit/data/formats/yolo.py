"""YOLO: one text file per image (``yolo_rows``), and a file that says where images and names are (``yolo_layout``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detrkit.data.clean_rows import outline_area
from detrkit.data.coco_json import Row
from detrkit.data.findings import finding
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.formats.yolo_layout import Layout, as_written, find_entry, find_layout, layout_file
from detrkit.data.formats.yolo_rows import LabelRow, parse_row
from detrkit.data.images import image_size
from detrkit.data.listing import files_in, find_by_name, images_in, posix_name, read_lines
from detrkit.data.records import Table, without_images
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]


def recognises(root: Path) -> bool:
    """Whether there is a ``data.yaml``, or ``classes.txt`` and label files."""
    return layout_file(root) is not None


def locate(root: Path, split: str) -> Source | None:
    """The source of a split that the layout names."""
    path = layout_file(root)
    folder = root if root.is_dir() else root.parent
    if path is None or not find_layout(path, folder).entries.get(split):
        return None
    return Source(format="yolo", root=folder, split=split, annotations=path)


def absent(root: Path) -> dict[str, str]:
    """Splits that are named without any existing files: Roboflow names a test split even if it was not exported.

    A missing train split is always an error and therefore not listed.
    """
    path = layout_file(root)
    if path is None:
        return {}
    layout = find_layout(path, root)
    named = {split: layout.entries.get(split, []) for split in SPLIT_WORDS if split != "train"}
    return {
        split: ", ".join(entries)
        for split, entries in named.items()
        if entries and not any(find_entry(item, layout.bases) for item in entries)
    }


@dataclass
class _Reading:
    """What was met while reading."""

    label_files: list[Path] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    confidences: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)


def read(source: Source) -> Table:
    """Read one split. Class k of the files gets category id k; an image without a label file has no objects.

    Polygons become boxes and, for tasks with masks, segmentations.

    Raises:
        DataError: a file cannot be read, a path does not exist, or there are no images.
    """
    path = source.annotations
    layout, met = find_layout(path, source.root), _Reading()
    if source.images is not None:
        raise DataError(f"{path}: names the image folders itself; images '{source.images}' cannot change them")
    categories = [{"id": number, "name": name} for number, name in layout.names.items()]
    entries = layout.entries[source.split]
    files = sorted(dict.fromkeys(_images(entries, layout, source.root, met)))
    if not files:
        raise DataError(f"{path}: {source.split}: {', '.join(entries)} holds no images")
    images: list[Row] = []
    annotations: list[Row] = []
    for number, file in enumerate(files, start=1):
        row: Row = {"id": number, "file_name": Path(os.path.relpath(file, source.root)).as_posix()}
        images.append(row)
        labels = list(_labels(file, row["file_name"], layout, met))
        try:
            size = image_size(file)
        except DataError:  # build_records opens images without a size again and applies on_error
            continue
        row["width"], row["height"] = size
        for where, label in labels:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, **_annotation(label, size), "where": where}
            )
    remarks = (
        finding(
            "warning",
            "missing labels",
            source.split,
            met.unlabelled,
            "images without a label file: taken as background",
        ),
        finding(
            "warning",
            "confidences",
            source.split,
            met.confidences,
            "rows with a confidence after the box, which is left out",
        ),
        finding(
            "warning", "image paths", source.split, met.moved, "paths that do not exist as written: their end is taken"
        ),
    )
    return Table(
        origin=path,
        image_root=source.root,
        images=images,
        annotations=[source.slim(row) for row in annotations],
        categories=categories,
        faults=tuple(met.faults),
        remarks=remarks,
        label_files=tuple(met.label_files),
    )


def _images(entries: list[str], layout: Layout, root: Path, met: _Reading) -> Iterator[Path]:
    """The images of the folders and lists of a split; those of lists need not exist."""
    for item in entries:
        found = find_entry(item, layout.bases)
        if found is None:
            looked = ", ".join(dict.fromkeys(str(base / item) for base in layout.bases))
            lost = _lost(as_written(item, layout.bases))
            raise DataError(f"{layout.file}: '{item}' does not exist (looked for {looked}){lost}")
        if not os.path.exists(as_written(item, layout.bases)) and not item.startswith("../"):
            met.moved.append(f"{item} -> {found}")
        if found.is_dir():
            yield from images_in(found, recursive=True)
            continue
        bases = (*layout.bases, found.parent)
        names = [posix_name(line) for line in read_lines(found) if line]
        paths = {name: as_written(name, bases) for name in names}
        present = {name for name, path in paths.items() if os.path.exists(path)}
        taken = [paths[name] for name in present]
        moved = find_by_name((name for name in names if name not in present), root, taken=taken)
        met.moved += [f"{name} -> {path}" for name, path in moved.items()]
        yield from (moved.get(name, paths[name]) for name in names)


def _lost(folder: Path) -> str:
    """What to do where an image folder is missing and the folder of its label files is not."""
    for place in _label_folders(folder):
        if labels := files_in(place, {".txt"}):
            return f". {place} has {len(labels)} label files: {without_images(folder)}"
    return ""


def _label_folders(folder: Path) -> list[Path]:
    """``…/images/a`` → ``…/labels/a``, and the folder itself."""
    parts = folder.parts
    place = next((k for k in range(len(parts) - 1, -1, -1) if parts[k].lower() in ("images", "jpegimages")), None)
    if place is None:
        return [folder]
    return [*(Path(*parts[:place], word, *parts[place + 1 :]) for word in ("labels", "Labels")), folder]


def _label_file(image: Path) -> Path | None:
    """The label file in the folder for labels, or the file beside the image."""
    folders = _label_folders(image.parent)
    names = (image.with_suffix(".txt").name, image.name + ".txt", image.with_suffix(".TXT").name)
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def _labels(image: Path, name: str, layout: Layout, met: _Reading) -> Iterator[tuple[str, LabelRow]]:
    """The objects of an image, each with its place in the file."""
    path = _label_file(image)
    if path is None:
        met.unlabelled += [name] if os.path.exists(image) else []
        return
    met.label_files.append(path)
    try:
        lines = read_lines(path)
    except DataError as error:
        met.faults.append(str(error))
        return
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f"{path}: line {number}"
        try:
            row = parse_row(line.split(), layout.keypoints)
        except DataError as error:
            met.faults.append(f"{where}: {error}")
            continue
        if row.confidence is not None:
            met.confidences.append(where)
        yield where, row


def _annotation(row: LabelRow, size: tuple[int, int]) -> Row:
    """The category, the box and, of polygons, the segmentation in pixels."""
    x, y, w, h = row.box
    width, height = size
    found: Row = {"category_id": row.label, "bbox": [x * width, y * height, w * width, h * height]}
    if row.polygon is not None:
        polygons = [[value * size[place % 2] for place, value in enumerate(row.polygon)]]
        found |= {"segmentation": polygons, "area": outline_area(polygons)}
    return found


FORMAT = Format(
    name="yolo",
    looked_for="YOLO: data.yaml, or classes.txt beside images and labels",
    recognises=recognises,
    locate=locate,
    read=read,
    absent=absent,
)
