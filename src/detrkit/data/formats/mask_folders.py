"""Folders of PNG masks: ``images/``, ``masks/`` with the same names, and ``classes.json``.

A mask is one PNG whose values (gray, palette) or colours are classes, or a folder with one binary PNG per object:
``masks/a.png`` or ``masks/a/*.png`` for ``images/a.jpg``. Splits are sub-folders (``images/train``, ``masks/train``) or
lists of images (``train.txt``, also in ``splits/``); without either, everything is train.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from detrkit.data.class_lists import ClassList, read_class_list
from detrkit.data.class_maps import IGNORE, channels, class_map_rows, class_remarks
from detrkit.data.coco_json import Row
from detrkit.data.findings import finding
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.images import image_size
from detrkit.data.instance_files import DoubtfulFiles, instance_rows
from detrkit.data.label_maps import is_rgb_png, not_png
from detrkit.data.listing import IMAGE_SUFFIXES, files_in, images_in, posix_name, read_lines
from detrkit.data.map_files import read_values, values_in
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read", "read_class_maps"]

_IMAGES, _MASKS, _CLASSES = "images", "masks", "classes.json"
_EXAMPLES = 20  # masks to look at for the values in a message


def recognises(root: Path) -> bool:
    """Whether there are the folders ``images`` and ``masks``."""
    return (root / _IMAGES).is_dir() and (root / _MASKS).is_dir()


def locate(root: Path, split: str) -> Source | None:
    """The sub-folder of ``images`` or the list of the split, or ``images`` itself for train."""
    source = Source(format=FORMAT.name, root=root, split=split, annotations=root / _MASKS)
    if not recognises(root) or not _stems(source):
        return None
    return source


def _stems(source: Source) -> dict[str, Path]:
    """The images of a split by their path in ``images`` without ending."""
    images, words = source.root / _IMAGES, SPLIT_WORDS[source.split]
    folders = {word: images / word for names in SPLIT_WORDS.values() for word in names if (images / word).is_dir()}
    lists = [folder / f"{word}.txt" for folder in (source.root, source.root / "splits") for word in words]
    if folders:
        return _images_in(images, (folders[word] for word in words if word in folders))
    found = _images_in(images, [images])
    for path in lists:
        if path.is_file():
            return _listed(path, found)
    others = [*files_in(source.root, {".txt"}), *files_in(source.root / "splits", {".txt"})]
    if any(path.stem in names for path in others for names in SPLIT_WORDS.values()):
        return {}  # other splits have lists
    return found if source.split == "train" else {}


def _images_in(root: Path, folders: Iterable[Path]) -> dict[str, Path]:
    files = (file for folder in folders for file in images_in(folder, recursive=True))
    return {_stem(root, file): file for file in files}


def _stem(root: Path, file: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def _listed(path: Path, found: dict[str, Path]) -> dict[str, Path]:
    lines = [posix_name(line) for line in read_lines(path) if line]
    names = {line: line if line in found else Path(line).with_suffix("").as_posix() for line in lines}
    missing = [line for line, name in names.items() if name not in found]
    if missing:
        raise DataError(f"{path}: names {missing[0]}, which is not in the folder {_IMAGES}")
    return {name: found[name] for name in names.values()}


def read(source: Source) -> Table:
    """Read all masks of a split, to know their segments. Class k of ``classes.json`` gets category id k.

    Raises:
        DataError: ``classes.json`` is missing or unusable.
    """
    masks, stems = source.root / _MASKS, _stems(source)
    table = read_class_maps(
        stems, masks, image_root=source.root, classes=_classes(source.root, masks), split=source.split
    )
    message = "images that have the mask of another, which alone is used: give each a name and a mask of its own"
    twins = finding("warning", "images of one mask", source.split, _twins(source.root / _IMAGES, stems), message)
    return replace(table, remarks=(*table.remarks, twins))


def _twins(images: Path, stems: dict[str, Path]) -> list[str]:
    """Images that differ from another one of the split in their endings alone."""
    used = set(stems.values())
    others = ((file, _stem(images, file)) for file in images_in(images, recursive=True) if file not in used)
    return [f"{file.name} ({stems[stem].name} is used)" for file, stem in others if stem in stems]


def read_class_maps(stems: dict[str, Path], masks: Path, *, image_root: Path, classes: ClassList, split: str) -> Table:
    """Read the masks of images, to know their segments.

    Args:
        stems: the images by the path of their mask in ``masks``, without ending.
        masks: the folder of the masks.
        image_root: the folder to which file names are relative.
        classes: what the values of masks stand for.
        split: the name of the split, for remarks.
    """
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(partial(_read_mask, classes=classes, masks=masks), stems.items()))
    images: list[Row] = []
    annotations: list[Row] = []
    doubtful = DoubtfulFiles()
    for number, (file, (image, rows, found)) in enumerate(zip(stems.values(), outcomes, strict=True), start=1):
        doubtful.several.extend(found.several)
        doubtful.inverted.extend(found.inverted)
        images.append({"id": number, "file_name": file.relative_to(image_root).as_posix(), **image})
        for row in rows:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **row})
    # objects have masks of their own, while a class map has regions of a class
    things = any((masks / stem).is_dir() for stem in stems)
    categories = [
        {**row, "isthing": int(classes.marked.get(row["id"], things))} for row in classes.categories.to_json()
    ]
    table = Table(origin=masks, image_root=image_root, images=images, annotations=annotations, categories=categories)
    message = "files of one object with several values: all but 0 is the object. Ids of several objects? One file each"
    several = finding("warning", "object files", split, doubtful.several, message)
    message = "objects that have all four corners of their image: white is the object. If black is, invert these files"
    inverted = finding("warning", "inverted masks", split, doubtful.inverted, message)
    both = [
        str(masks / f"{stem}.png") for stem in stems if (masks / stem).is_dir() and (masks / f"{stem}.png").is_file()
    ]
    message = "masks beside a folder of objects with their name, which alone is used"
    unused = finding("warning", "unused masks", split, both, message)
    remarks = (several, inverted, unused, *class_remarks(table, classes, split))
    return replace(table, remarks=remarks)


def _read_mask(item: tuple[str, Path], *, classes: ClassList, masks: Path) -> tuple[Row, list[Row], DoubtfulFiles]:
    """What the rows of an image and of its segments have of its mask, a problem instead if it cannot be used; and
    doubtful files."""
    stem, image = item
    try:
        size = image_size(image)
        folder = masks / stem
        if folder.is_dir():
            return instance_rows(folder, image, size, classes)
        return *class_map_rows(_mask_file(masks, stem, image), image, size, classes), DoubtfulFiles()
    except DataError as error:
        return {"problem": str(error)}, [], DoubtfulFiles()


def _mask_file(masks: Path, stem: str, image: Path) -> Path:
    path = masks / f"{stem}.png"
    for usual in (path, path.with_suffix(".PNG")):
        if usual.is_file():
            return usual
    others = [other for other in files_in(path.parent, IMAGE_SUFFIXES) if other.stem == path.stem]
    if others and others[0].suffix.lower() == ".png":
        return others[0]
    if others:
        raise not_png(others[0])
    raise DataError(f"{image}: has no mask; looked for {path} and the folder {path.with_suffix('')}")


def _classes(root: Path, masks: Path) -> ClassList:
    path = root / _CLASSES
    if path.is_file():
        return read_class_list(path)
    values: set[int] = set()
    rgb = False
    for file in files_in(masks, {".png"}, recursive=True)[:_EXAMPLES]:
        try:
            rgb = is_rgb_png(file)
            values |= values_in(read_values(file, rgb=rgb))
        except DataError:
            continue
    found = sorted(values - {IGNORE})
    if rgb:
        colors = enumerate(map(channels, found[:8]))
        example = ", ".join(f'{{"id": {k}, "name": "class {k}", "color": {color}}}' for k, color in colors)
    else:
        example = ", ".join(f'{{"id": {value}, "name": "class {value}"}}' for value in found[:8])
    more = ", …" if len(found) > 8 else ""
    raise DataError(
        f"{path}: no such file; it names the classes of the masks. Write one with your own names: "
        f'{{"classes": [{example}{more}], "ignore_index": {IGNORE}}}'
    )


FORMAT = Format(
    name="masks",
    looked_for=f"masks: {_IMAGES}/, {_MASKS}/ and {_CLASSES}",
    tasks=("sem", "inst", "pan"),
    recognises=recognises,
    locate=locate,
    read=read,
)
