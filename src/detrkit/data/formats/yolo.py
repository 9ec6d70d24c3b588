"""YOLO: ``data.yaml`` and one text file per image, with rows ``class x y width height`` relative to the image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from detrkit.data.coco_json import Row
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.images import IMAGE_SUFFIXES, image_size
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

_FILES = ("data.yaml", "data.yml", "dataset.yaml")


def recognises(root: Path) -> bool:
    """Whether there is a ``data.yaml``."""
    return _file(root) is not None


def locate(root: Path, split: str) -> Source | None:
    """The source of a split that ``data.yaml`` names."""
    path = _file(root)
    if path is None:
        return None
    if not _entries(_config(path), split):
        return None
    return Source(format="yolo", root=root, split=split, annotations=path)


def absent(root: Path) -> dict[str, str]:
    """Splits in ``data.yaml`` without any existing files: Roboflow names a test split even if it was not exported.

    A missing train split is always an error and therefore not listed.
    """
    path = _file(root)
    if path is None:
        return {}
    config = _config(path)
    named = {split: _entries(config, split) for split in SPLIT_WORDS if split != "train"}
    return {
        split: ", ".join(entries)
        for split, entries in named.items()
        if entries and not any(_resolve(item, config, path, must_exist=False).exists() for item in entries)
    }


def read(source: Source) -> Table:
    """Read one split. Class k of the files gets category id k; an image without a label file has no objects.

    Polygon rows (``class x1 y1 x2 y2 …``) become boxes.

    Raises:
        DataError: a file cannot be read, a path does not exist, or there are no images.
    """
    path = source.annotations
    config = _config(path)
    if source.images is not None:
        raise DataError(f"{path}: names the image folders itself; images '{source.images}' cannot change them")
    categories = [{"id": number, "name": name} for number, name in _names(config, path).items()]
    entries = _entries(config, source.split)
    files = sorted(_images(entries, config, path))
    if not files:
        raise DataError(f"{path}: {source.split}: {', '.join(entries)} holds no images")
    images: list[Row] = []
    annotations: list[Row] = []
    for number, file in enumerate(files, start=1):
        row: Row = {"id": number, "file_name": Path(os.path.relpath(file, source.root)).as_posix()}
        images.append(row)
        try:
            row["width"], row["height"] = image_size(file)
        except DataError:  # build_records opens images without a size again and applies on_error
            continue
        for label in _labels(_label_path(file), row):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **label})
    return Table(origin=path, image_root=source.root, images=images, annotations=annotations, categories=categories)


def _file(root: Path) -> Path | None:
    return next((root / name for name in _FILES if (root / name).is_file()), None)


def _config(path: Path) -> Row:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: is not a table of keys such as names, train, val")
    return config


def _entries(config: Row, split: str) -> list[str]:
    """The image folders or image lists of a split."""
    entry: object = next((config[word] for word in SPLIT_WORDS[split] if config.get(word)), [])
    return [str(item) for item in (entry if isinstance(entry, list) else [entry])]


def _names(config: Row, path: Path) -> dict[int, str]:
    names, count = config.get("names"), config.get("nc")
    if names is None and isinstance(count, int):
        names = [str(number) for number in range(count)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(number, int) for number in names):
        raise DataError(f"{path}: names must be a list of class names or a table from number to name")
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{path}: nc is {count} but there are {len(names)} names")
    return {number: str(name) for number, name in names.items()}


def _images(entries: list[str], config: Row, path: Path) -> Iterator[Path]:
    for item in entries:
        found = _resolve(item, config, path)
        if found.is_dir():
            yield from (file for file in found.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            lines = found.read_text(encoding="utf-8").splitlines()
            yield from (_resolve(line.strip(), config, path, must_exist=False) for line in lines if line.strip())


def _resolve(item: str, config: Row, path: Path, *, must_exist: bool = True) -> Path:
    """A path in ``data.yaml``: absolute, relative to its key ``path``, or relative to the file itself."""
    bases = [path.parent / str(config.get("path") or "."), path.parent]
    candidates = [base / item for base in bases]
    if item.startswith("../"):  # some exports have paths relative to a subfolder of their own folder
        candidates += [base / item.removeprefix("../") for base in bases]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None and must_exist:
        searched = ", ".join(dict.fromkeys(map(str, candidates)))
        raise DataError(f"{path}: '{item}' does not exist (looked for {searched})")
    return found or candidates[0]


def _label_path(image: Path) -> Path:
    """``…/images/a/x.jpg`` → ``…/labels/a/x.txt``; next to the image if no parent folder is named images."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _labels(path: Path, image: Row) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}: line {number}"
        try:
            category = int(float(words[0]))
        except (ValueError, OverflowError) as error:
            raise DataError(f"{where}: '{words[0]}' is not a class number") from error
        yield {"category_id": category, "bbox": _bbox(words[1:], image["width"], image["height"]), "where": where}


def _bbox(words: list[str], width: int, height: int) -> list[float] | list[str]:
    """[x, y, w, h] in pixels; rows of another length or not of numbers are returned for later checks to report."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return words
    if len(values) == 4:
        x, y, w, h = values
        return [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        left, top = min(xs), min(ys)
        return [left * width, top * height, (max(xs) - left) * width, (max(ys) - top) * height]
    return values


FORMAT = Format(
    name="yolo", looked_for="YOLO: data.yaml", recognises=recognises, locate=locate, read=read, absent=absent
)
