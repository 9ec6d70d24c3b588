"""COCO JSON: ``annotations/*train*.json`` next to image folders, in all the usual layouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from detrkit.data.coco_json import Row, annotation_lists, image_file, is_federated, read_json
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, find_image_root, only
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "image_folders", "parse_coco", "read"]

# Files next to instances_*.json that are not its annotations.
_OTHER_TASKS = ("panoptic", "captions", "keypoints", "stuff", "semantic", "image_info", "_sample", "lvis")


def locate(root: Path, split: str) -> Source | None:
    """``annotations/instances_train2017.json``, ``instances_train.json``, ``train.json``, … or the only ``*train*``.

    Raises:
        DataError: several files fit equally well.
    """
    folder = root / "annotations"
    words = SPLIT_WORDS[split]
    found = [path for path in sorted(folder.glob("*.json")) if _fits(path.stem.lower(), split)]
    for pattern in ("instances_{}2017", "instances_{}", "{}", "{}2017", "instances_{}2014"):
        for path in found:
            if path.stem.lower() in {pattern.format(word) for word in words}:
                return Source(format="coco", root=root, split=split, annotations=path)
    single = only(found, split)
    return None if single is None else Source(format="coco", root=root, split=split, annotations=single)


def _fits(stem: str, split: str) -> bool:
    if any(task in stem for task in _OTHER_TASKS):
        return False
    if split == "val" and "train" in stem:  # instances_trainval.json
        return False
    return any(word in stem for word in SPLIT_WORDS[split])


def recognises(root: Path) -> bool:
    """Whether ``annotations/`` has a JSON file of any split."""
    files = [path.stem.lower() for path in (root / "annotations").glob("*.json")]
    return any(_fits(stem, split) for stem in files for split in SPLIT_WORDS)


def read(source: Source, *, folders: Iterable[Path] = ()) -> Table:
    """Read the annotation file of a source and find its image folder; ``folders`` are searched first.

    Raises:
        DataError: the file is not COCO annotations, or the image folder is not found.
    """
    data, _ = read_json(source.annotations, change=source.slim)
    table = parse_coco(data, source.annotations, source.images or source.root)
    if source.images is None and table.images:
        candidates = [*folders, *image_folders(source.root, source.split), source.annotations.parent]
        root = find_image_root(candidates, table.images, source.annotations)
        table = Table(**{**vars(table), "image_root": root})
    elif source.images is not None and not source.images.is_dir():
        raise DataError(f"{source.images}: no such image folder")
    return table


def image_folders(root: Path, split: str) -> Iterator[Path]:
    """Where the images of a split may be, the most likely place first."""
    splits = [split, *(other for other in SPLIT_WORDS if other != split)]
    for word in (word for name in splits for word in SPLIT_WORDS[name]):
        for pattern in ("images/{}", "{}2017", "images/{}2017", "{}/images", "{}", "{}2014", "leftImg8bit/{}"):
            yield root / pattern.format(word)
    yield from (root / "images", root, root / "JPEGImages")


def parse_coco(data: object, origin: Path, image_root: Path) -> Table:
    """A table from parsed COCO JSON.

    Raises:
        DataError: not COCO annotations, or a row lacks a required key.
    """
    images, annotations, categories = annotation_lists(data, origin)
    for key, rows, needed in (
        ("images", images, ("id",)),
        ("categories", categories, ("id",)),
        ("annotations", annotations, ("image_id", "category_id")),
    ):
        for number, row in enumerate(rows):
            if key == "annotations" and isinstance(row, dict) and "segments_info" in row:
                raise DataError(
                    f"{origin}: holds panoptic segments; read it as format 'coco_panoptic', or use the instances file"
                )
            for name in needed:
                if not isinstance(row, dict) or type(row.get(name)) is not int:
                    raise DataError(f"{origin}: {key}[{number}] has no whole number '{name}'")
            if key == "images" and not image_file(row):
                raise DataError(f"{origin}: images[{number}] (id {row['id']}) has no 'file_name'")
    info = data.get("info") if isinstance(data, dict) else None
    return Table(
        origin=origin,
        image_root=image_root,
        images=[_normalised_image(row) for row in images],
        annotations=list(annotations),
        categories=list(categories),
        info=info if isinstance(info, dict) else {},
        protocol="lvis" if is_federated(images) else "coco",
    )


def _normalised_image(row: Row) -> Row:
    """The image row with a file name, and with its size as whole numbers (some tools write 640.0)."""
    changes: Row = {
        key: int(row[key]) for key in ("width", "height") if isinstance(row.get(key), float) and row[key] == row[key]
    }
    if not isinstance(row.get("file_name"), str):
        changes["file_name"] = image_file(row)
    return {**row, **changes} if changes else row


FORMAT = Format(
    name="coco",
    looked_for="COCO: annotations/*train*.json or *val*.json",
    recognises=recognises,
    locate=locate,
    read=read,
)
