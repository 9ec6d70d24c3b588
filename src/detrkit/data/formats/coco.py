"""COCO JSON: ``annotations/*train*.json`` next to image folders, in all the usual layouts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.collection import without_collection
from detrkit.data.clean_rows import Tell, clean_annotation, clean_category, clean_image, id_reader, is_plain
from detrkit.data.coco_json import Row, annotation_lists, is_federated, read_json
from detrkit.data.file_rows import FileRows
from detrkit.data.findings import Finding, finding
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, find_image_root, only
from detrkit.data.listing import child, files_in
from detrkit.data.records import Table
from detrkit.data.row_cache import ColumnRows, cache_key, recall, remember
from detrkit.data.row_slices import Chunk, RowFile
from detrkit.errors import DataError
from detrkit.files import beginning

__all__ = ["FORMAT", "image_folders", "parse_coco", "read", "read_coco"]

# Files next to instances_*.json that are not its annotations.
_OTHER_TASKS = ("panoptic", "captions", "keypoints", "stuff", "semantic", "image_info", "_sample", "lvis")

# How COCO files begin, as far as can be told without reading all of a large file.
_COCO_BEGINNING = re.compile(r'\s*\{\s*"(images|annotations|categories|info|licenses)"\s*:')
_HEAD = 4096
_LARGE = 50_000_000
"""Bytes of a file whose annotations are not kept in memory."""
_YEAR = re.compile(r"20\d\d$")


def locate(root: Path, split: str) -> Source | None:
    """``annotations/instances_train2017.json``, ``instances_train.json``, ``train.json``, … or the only ``*train*``.

    Without such a file also those beside the image folders; the only file, whatever its name, is train.

    Raises:
        DataError: several files fit equally well.
    """
    words = SPLIT_WORDS[split]
    files = _files(root) if recognises(root) else _other_files(root)
    found = [path for path in files if _fits(path.stem.lower(), split)]
    if not found and split == "train" and len(files) == 1 and not _split_files(files):
        found = files
    chosen = None
    for pattern in ("instances_{}2017", "instances_{}", "{}", "{}2017", "instances_{}2014"):
        usual = (path for path in found if path.stem.lower() in {pattern.format(word) for word in words})
        chosen = chosen or next(usual, None)
    chosen = chosen or only(found, split)
    folder = root if root.is_dir() else root.parent
    folder = folder.parent if root.is_file() and folder.name.lower() == "annotations" else folder
    return None if chosen is None else Source(format="coco", root=folder, split=split, annotations=chosen)


def _fits(stem: str, split: str) -> bool:
    if any(task in stem for task in _OTHER_TASKS):
        return False
    if split == "val" and "train" in stem:  # instances_trainval.json
        return False
    return any(word in stem for word in SPLIT_WORDS[split])


def recognises(root: Path) -> bool:
    """Whether ``annotations/`` has a JSON file of any split, or root is a COCO file itself."""
    return _is_coco(root) if root.is_file() else bool(_split_files(_files(root)))


def may_be(root: Path) -> bool:
    """Whether there are other COCO files: of a split, or only one.

    CVAT writes ``annotations/instances_default.json``, Label Studio ``result.json``.
    """
    files = _other_files(root)
    return len(files) == 1 or bool(_split_files(files))


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    folder = child(root, "annotations")
    return [] if folder is None else files_in(folder, {".json"})


def _split_files(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if any(_fits(path.stem.lower(), split) for split in SPLIT_WORDS)]


def _other_files(root: Path) -> list[Path]:
    files = [*_files(root), *files_in(root, {".json"})]
    return [path for path in files if not any(task in path.stem.lower() for task in _OTHER_TASKS) and _is_coco(path)]


def _is_coco(path: Path) -> bool:
    """Whether a JSON file begins like COCO annotations."""
    if path.suffix.lower() != ".json":
        return False
    head = beginning(path, _HEAD)
    return _COCO_BEGINNING.match(head.decode("utf-8-sig", "replace")) is not None


def read(source: Source, *, folders: Iterable[Path] = ()) -> Table:
    """Read the annotation file of a source and find its image folder; ``folders`` are searched first.

    Raises:
        DataError: the file is not COCO annotations, or the image folder is not found.
    """
    table = read_coco(source, source.images or source.root)
    if source.images is not None and not source.images.is_dir():
        raise DataError(f"{source.images}: no such image folder")
    if table.images:
        own = source.root / "images" / source.annotations.stem.removeprefix("instances_")  # CVAT: images/default
        candidates = [*folders, *image_folders(source.root, source.split), own, source.annotations.parent]
        if source.images is not None:
            candidates = [source.images]
        search = source.images or source.root
        root = find_image_root(candidates, table.images, source.annotations, search=search)
        table = replace(table, image_root=root, remarks=(*table.remarks, *_years(source, root)))
    return table


def _years(source: Source, images: Path) -> Iterator[Finding]:
    """A remark on COCO's annotations of one year with the images of another, whose splits have other images."""
    of_file, of_folder = _YEAR.search(source.annotations.stem), _YEAR.search(images.name)
    if of_file and of_folder and of_file[0] != of_folder[0]:
        pair = f"{source.annotations.name} with {images.name}/"
        message = "annotations of another year than the images: the splits of COCO differ from year to year"
        yield finding("warning", "year", source.split, [pair], message)


def image_folders(root: Path, split: str) -> Iterator[Path]:
    """Where the images of a split may be, the most likely place first."""
    splits = [split, *(other for other in SPLIT_WORDS if other != split)]
    for word in (word for name in splits for word in SPLIT_WORDS[name]):
        for pattern in ("images/{}", "{}2017", "images/{}2017", "{}/images", "{}", "{}2014", "leftImg8bit/{}"):
            yield root / pattern.format(word)
    yield from (root / "images", root, root / "JPEGImages")


def read_coco(source: Source, image_root: Path) -> Table:
    """The table of a COCO file. The annotations of a large one are read anew in each pass over them.

    Raises:
        DataError: as :func:`parse_coco` raises it, or the file cannot be read.
    """
    path = source.annotations
    # what is neither converted nor checked needs the standard values of rows alone
    key = None if source.segmentations == "as in the file" else cache_key(path, source.segmentations)
    known = None if key is None else recall(key)
    if known is not None:
        return parse_coco({**known[0], "annotations": []}, path, image_root, rows=known[1])
    table, rest = _parsed(source, image_root)
    if key is not None and not _named(rest):
        remember(key, rest, table.annotations)
    return table


def _parsed(source: Source, image_root: Path) -> tuple[Table, Row]:
    """The table, and the file without its annotations."""
    path = source.annotations
    if source.segmentations != "packed" and path.is_file() and path.stat().st_size >= _LARGE:
        file = RowFile.read(path, "annotations")
        if file is not None and not _named(file.rest):
            table = parse_coco({**file.rest, "annotations": []}, path, image_root, rows=file, slim=source.slim)
            return table, file.rest
    data, _ = read_json(path, change=source.slim)  # packed masks are made once
    table = parse_coco(data, path, image_root)
    return table, {key: value for key, value in data.items() if key != "annotations"} if isinstance(data, dict) else {}


def _named(rest: Row) -> bool:
    """Whether images or categories have names in place of ids."""
    lists = [rest.get(key) for key in ("images", "categories")]
    return any(isinstance(row, dict) and isinstance(row.get("id"), str) for rows in lists for row in rows or ())


def parse_coco(
    data: object,
    origin: Path,
    image_root: Path,
    *,
    rows: RowFile | ColumnRows | None = None,
    slim: Callable[[Row], Row] = lambda row: row,
) -> Table:
    """A table from parsed COCO JSON.

    Args:
        data: the parsed JSON.
        origin: its file, for messages.
        image_root: the folder of the images.
        rows: the annotations, if they are not among ``data``: in their file, or as they were read before.
        slim: reduces each of them that is in the file.

    Raises:
        DataError: not COCO annotations, or a row whose ids, name or file name cannot be read.
    """
    images, annotations, categories = annotation_lists(data, origin)
    readings: defaultdict[str, list[str]] = defaultdict(list)

    def tell(kind: str, line: str) -> None:
        readings[kind].append(line)

    image_ids, category_ids = id_reader(images), id_reader(categories)
    clean_images = [clean_image(row, f"{origin}: images[{k}]", image_ids, tell) for k, row in enumerate(images)]
    for number, row in enumerate(clean_images):
        if not row["file_name"]:
            raise DataError(f"{origin}: images[{number}] (id {row['id']}) has no 'file_name'")
    clean_categories = [
        clean_category(row, f"{origin}: categories[{k}]", category_ids) for k, row in enumerate(categories)
    ]

    def clean(row: object, number: int, tell: Tell = lambda *_: None) -> Row:
        if isinstance(row, dict) and "segments_info" in row:
            raise DataError(
                f"{origin}: holds panoptic segments; read it as format 'coco_panoptic', or use the instances file"
            )
        where = f"{origin}: annotations[{number}]"
        return clean_annotation(row, where, read_image_id=image_ids, read_category_id=category_ids, tell=tell)

    found: Sequence[Row]
    if rows is None:
        found = [clean(row, number, tell) for number, row in enumerate(annotations)]
        _number_names(clean_images, found, "image_id")
        _number_names(clean_categories, found, "category_id")
    else:
        found = rows if isinstance(rows, ColumnRows) else _rows_of(rows, slim, clean, tell)
    info = data.get("info") if isinstance(data, dict) else None
    return Table(
        origin=origin,
        image_root=image_root,
        images=clean_images,
        annotations=found,
        categories=clean_categories,
        info=info if isinstance(info, dict) else {},
        protocol="lvis" if is_federated(clean_images) else "coco",
        readings=readings,
    )


def _rows_of(file: RowFile, slim: Callable[[Row], Row], clean: Callable[..., Row], tell: Tell) -> FileRows:
    """The cleaned rows of a file; values that are read otherwise than they are written are told once."""
    plain: set[int] = set()

    def raw(chunk: Chunk) -> list[object]:
        return [slim(row) if isinstance(row, dict) else row for row in chunk.exact()]

    with without_collection():
        for chunk in file:
            if all(is_plain(row) and "segments_info" not in row for row in chunk.rows):
                plain.add(chunk.first)
            else:
                for number, row in enumerate(raw(chunk), start=chunk.first):
                    clean(row, number, tell)

    def read(chunk: Chunk) -> list[Row]:
        if chunk.first in plain:
            return [slim(row) for row in chunk.rows]
        return [clean(row, number) for number, row in enumerate(raw(chunk), start=chunk.first)]

    return FileRows(file, read)


def _number_names(owners: list[Row], rows: list[Row], key: str) -> None:
    """Number owners whose ids are names, in the order of the names, and follow in the rows that refer to them.

    References to names that the file does not list become 0, which no owner has.
    """
    if not any(isinstance(owner["id"], str) for owner in owners):
        return
    numbers = {name: number for number, name in enumerate(sorted({owner["id"] for owner in owners}), start=1)}
    owners[:] = [{**owner, "id": numbers[owner["id"]]} for owner in owners]
    rows[:] = [{**row, key: numbers.get(row[key], 0)} for row in rows]


FORMAT = Format(
    name="coco",
    looked_for="COCO: annotations/*train*.json or *val*.json",
    recognises=recognises,
    may_be=may_be,
    locate=locate,
    read=read,
)
