"""COCO panoptic: ``annotations/panoptic_*.json`` and, beside each, a folder of the same name with one PNG per image.

The value of a pixel, R + 256 G + 65536 B of its colour, is the id of its segment, and 0 stands for no segment.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.data.clean_rows import Tell, clean_annotation
from detrkit.data.coco_json import Row, annotation_lists, read_json
from detrkit.data.findings import finding
from detrkit.data.formats import coco
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, find_image_root, only
from detrkit.data.listing import files_in, posix_name
from detrkit.data.map_files import MapFile, stated_size
from detrkit.data.records import Table
from detrkit.data.values import is_absent, read_value
from detrkit.errors import DataError, MissingFilesError
from detrkit.structures.segment_maps import MAX_ID, segment_shapes

__all__ = ["FORMAT", "read"]


def locate(root: Path, split: str) -> Source | None:
    """``annotations/panoptic_train2017.json``, ``panoptic_train.json`` or the only ``panoptic*train*``.

    Raises:
        DataError: several files fit equally well.
    """
    found = [path for path in files_in(root / "annotations", {".json"}) if _fits(path.stem.lower(), split)]
    usual = {f"panoptic_{word}{year}" for word in SPLIT_WORDS[split] for year in ("", "2017")}
    path = only([path for path in found if path.stem.lower() in usual] or found, split)
    return None if path is None else Source(format=FORMAT.name, root=root, split=split, annotations=path)


def _fits(stem: str, split: str) -> bool:
    return stem.startswith("panoptic") and any(word in stem for word in SPLIT_WORDS[split])


def recognises(root: Path) -> bool:
    """Whether there is a ``panoptic*.json`` file of any split."""
    stems = [path.stem.lower() for path in files_in(root / "annotations", {".json"})]
    return any(_fits(stem, split) for stem in stems for split in SPLIT_WORDS)


def read(source: Source) -> Table:
    """Read the segments of a split. The PNG files are read with the images, one at a time.

    Raises:
        DataError: the file is not COCO panoptic annotations, or a folder is missing.
    """
    path = source.annotations
    data, _ = read_json(path)
    images, annotations, categories = annotation_lists(data, path)
    if annotations and not any(isinstance(row, dict) and "segments_info" in row for row in annotations):
        raise DataError(f"{path}: its annotations have no 'segments_info'; it is not a COCO panoptic file")
    with_masks = source.segmentations != "none"
    folder = path.with_suffix("")
    if with_masks and not folder.is_dir():
        raise MissingFilesError(
            f"{folder}: no such folder with the PNG files of {path.name}; unpack {path.stem}.zip there, or use task "
            "'det', which needs the boxes alone"
        )
    instances = {"images": images, "annotations": [], "categories": categories}
    table = coco.parse_coco(instances, path, source.images or source.root)
    readings: defaultdict[str, list[str]] = defaultdict(list, {kind: [*told] for kind, told in table.readings.items()})
    segments = _segments(annotations, path, lambda kind, line: readings[kind].append(line))
    for image in table.images:
        image.update(_map(image, segments.get(image["id"]), folder, path))
    rows = [row for _, info in segments.values() for row in info]
    if with_masks:
        rows = list(_with_boxes(rows, {image["id"]: image for image in table.images}))
    unmarked = [str(row["name"]) for row, given in zip(table.categories, categories, strict=True) if _unmarked(given)]
    message = (
        "classes without isthing count as things, each segment an object; stuff such as sky or road needs isthing 0"
    )
    remark = finding("warning", "things and stuff", source.split, unmarked, message)
    root = source.images
    if root is None and table.images:
        candidates = [*coco.image_folders(source.root, source.split), path.parent]
        root = find_image_root(candidates, table.images, path, search=source.root)
    return replace(table, annotations=rows, image_root=root or source.root, readings=readings, remarks=(remark,))


def _unmarked(category: object) -> bool:
    """Whether a category does not say that it is a thing, or stuff."""
    return isinstance(category, Mapping) and is_absent(category.get("isthing"))


def _segments(annotations: Sequence[object], path: Path, tell: Tell) -> dict[int, tuple[str, list[Row]]]:
    """The PNG file and the rows of the segments of each image, by image id."""
    found: dict[int, tuple[str, list[Row]]] = {}
    for number, row in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object but {type(row).__name__}")
        image_id = read_value(row, "image_id", where)
        if not isinstance(row.get("file_name"), str) or not isinstance(row.get("segments_info"), list):
            raise DataError(f"{where} has no 'file_name' or no list 'segments_info'")
        if image_id in found:
            raise DataError(f"{where}: image_id {image_id} has two annotations; COCO panoptic has one per image")
        rows = []
        for place, info in enumerate(row["segments_info"]):
            said = f"{where} ({row['file_name']}): segments_info[{place}]"
            if not isinstance(info, dict):
                raise DataError(f"{said} is not an object but {type(info).__name__}")
            value = read_value(info, "id", said)
            said = f"{path}: segment {value} of {row['file_name']}"
            rest = {key: value for key, value in info.items() if key != "id"}  # which is unique within its image only
            rest = clean_annotation({**rest, "image_id": image_id}, said, tell=tell)
            rows.append({**rest, "value": value, "where": said})
        found[image_id] = posix_name(row["file_name"]), rows
    return found


def _map(image: Row, segments: tuple[str, list[Row]] | None, folder: Path, path: Path) -> Row:
    """The map of an image, or the problem with its segments."""
    if segments is None:
        return {"problem": f"{path}: image '{image['file_name']}' (id {image['id']}) has no annotation"}
    file_name, rows = segments
    ids = [row["value"] for row in rows]
    twice = [number for number, count in Counter(ids).items() if count > 1]
    if twice:
        return {"problem": f"{path}: {file_name}: two segments have the id {twice[0]}; segments must not overlap"}
    wrong = next((number for number in ids if not 1 <= number <= MAX_ID), None)
    if wrong is not None:
        return {"problem": f"{path}: {file_name}: segment id {wrong} is not between 1 and {MAX_ID}"}
    file = MapFile(path=folder / file_name, values=tuple(ids), void=(0,), rgb=True, listed_in=path.name)
    return {"map": file}


def _with_boxes(rows: list[Row], images: dict[int, Row]) -> Iterator[Row]:
    """The rows, with boxes and areas from the PNG file where the JSON has none, as some tools write it."""
    shapes: dict[int, tuple[int, list[int]]] = {}
    current = None
    for row in rows:
        image = images.get(row["image_id"], {})
        if "map" in image and (row.get("bbox") is None or row.get("area") is None):
            if current != row["image_id"]:
                current = row["image_id"]
                shapes = _shapes(image)
            area, bbox = shapes.get(row["value"], (0, [0, 0, 0, 0]))
            row = {**row, "bbox": bbox, "area": area}
        yield row


def _shapes(image: Row) -> dict[int, tuple[int, list[int]]]:
    """Area and box of the segments in the PNG file of an image, by their id."""
    try:
        found = segment_shapes(image["map"].read(stated_size(image)))
    except DataError as error:
        image["problem"] = str(error)
        return {}
    sizes = zip(found.areas.tolist(), found.boxes.tolist(), strict=True)
    return dict(zip(found.ids.tolist(), sizes, strict=True))


FORMAT = Format(
    name="coco_panoptic",
    looked_for="COCO panoptic: annotations/panoptic*train*.json or panoptic*val*.json",
    tasks=("pan", "sem"),
    recognises=recognises,
    locate=locate,
    read=read,
)
