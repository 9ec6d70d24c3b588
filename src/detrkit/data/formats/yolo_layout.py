"""Where images and class names of a YOLO data set are: ``data.yaml``, ``obj.data``, or ``classes.txt`` alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from detrkit.data.coco_json import Row
from detrkit.data.formats.base import SPLIT_WORDS, split_of
from detrkit.data.listing import child, files_in, images_in, posix_name, read_lines, read_text
from detrkit.errors import DataError

__all__ = ["Layout", "as_written", "find_entry", "find_layout", "layout_file"]

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SUFFIXES = frozenset({".yaml", ".yml"})
_NAMES = ("classes.txt", "obj.names")
# Folders of label files, in which LabelImg writes classes.txt.
_LABEL_FOLDERS = ("labels", "labels/{}", "{}/labels", "{}", "images/{}", "images")
_NOTHING = ("", "~", "null", "none")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a YOLO data set has what.

    Attributes:
        file: the file that says so.
        names: the class of each number.
        entries: image folders or image lists of each split, as written.
        bases: the folders to which they may be relative.
        keypoints: number of key points of an object and of values of each (``kpt_shape``), or None.
    """

    file: Path
    names: dict[int, str]
    entries: dict[str, list[str]]
    bases: tuple[Path, ...]
    keypoints: tuple[int, int] | None = None


def layout_file(root: Path) -> Path | None:
    """The file from which the layout is read: root itself, ``data.yaml``, the only YAML file with ``names`` and
    ``train``, ``obj.data``, or ``classes.txt`` where label files are; None if there is none."""
    if root.is_file():
        return root if root.suffix.lower() in _SUFFIXES and _says_data(root) else None
    usual = child(root, *_YAML)
    if usual is not None:
        return usual
    others = [path for path in files_in(root, _SUFFIXES) if _says_data(path)]
    if len(others) == 1:
        return others[0]
    darknet = child(root, "obj.data")
    if darknet is not None:
        return darknet
    names = _names_files(root)
    return names[0] if names and _folders_without_yaml(root) else None


def _names_files(root: Path) -> list[Path]:
    """The files of class names, in the folder and where label files are."""
    words = [word for words in SPLIT_WORDS.values() for word in words]
    folders = [pattern.format(word) for pattern in _LABEL_FOLDERS for word in words]
    places = [*_NAMES, *(f"{folder}/{_NAMES[0]}" for folder in dict.fromkeys(folders))]
    return [path for place in places if (path := _below(root, place)) is not None]


def _below(root: Path, name: str) -> Path | None:
    found: Path | None = root
    for part in name.split("/"):
        found = None if found is None else child(found, part)
    return found if found is not None and found.is_file() else None


def _says_data(path: Path) -> bool:
    try:
        text = read_text(path)
    except DataError:
        return False
    return all(re.search(rf"^({key})\s*:", text, re.MULTILINE) for key in ("names|nc", "train|val"))


def find_layout(path: Path, root: Path) -> Layout:
    """Read the layout of a folder from the file that ``layout_file`` found.

    Raises:
        DataError: the file cannot be read, or has no usable class names.
    """
    if path.suffix.lower() in _SUFFIXES:
        return _from_yaml(path)
    if path.name.lower() == "obj.data":
        return _from_darknet(path)
    names = _read_names(path)
    for other in _names_files(root):
        if _read_names(other) != names:
            raise DataError(f"{other}: has other class names than {path}; write a data.yaml with the right ones")
    return Layout(file=path, names=names, entries=_folders_without_yaml(root), bases=(root,))


def _from_yaml(path: Path) -> Layout:
    try:
        config = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # texts as written: on, 007 and 1_0 are class names
    except yaml.YAMLError as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: is not a table of keys such as names, train, val")
    base = posix_name(str(config.get("path") or "."))
    return Layout(
        file=path,
        names=_names(config, path),
        entries={split: _entries(config, split) for split in SPLIT_WORDS},
        bases=tuple(dict.fromkeys((path.parent / base, path.parent))),
        keypoints=_keypoints(config, path),
    )


def _entries(config: Row, split: str) -> list[str]:
    """The image folders or image lists of a split."""
    for word in SPLIT_WORDS[split]:
        entry = config.get(word)
        items = [posix_name(str(item)) for item in (entry if isinstance(entry, list) else [entry or ""])]
        items = [item for item in items if item.lower() not in _NOTHING]
        if items:
            return items
    return []


def _names(config: Row, path: Path) -> dict[int, str]:
    names, count = config.get("names"), str(config.get("nc", ""))
    if not names and count.isdecimal():
        names = [str(number) for number in range(int(count))]
    if isinstance(names, str) and os.path.isfile(path.parent / posix_name(names)):
        return _read_names(path.parent / posix_name(names))
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not names or not all(str(number).isdecimal() for number in names):
        raise DataError(f"{path}: names must be a list of class names or a table from number to name")
    if not all(isinstance(name, str) and name for name in names.values()):
        raise DataError(f"{path}: every entry of names must be a text, the name of a class")
    if count.isdecimal() and int(count) != len(names):
        raise DataError(f"{path}: nc is {count} but there are {len(names)} names")
    return {int(number): name for number, name in names.items()}


def _keypoints(config: Row, path: Path) -> tuple[int, int] | None:
    shape = config.get("kpt_shape")
    if shape is None or (isinstance(shape, str) and shape.lower() in _NOTHING):
        return None
    texts = list(map(str, shape)) if isinstance(shape, list) else []
    if len(texts) != 2 or not texts[0].isdecimal() or texts[1] not in ("2", "3"):
        raise DataError(f"{path}: kpt_shape must be [number of key points, 2 or 3], not {shape!r}")
    return int(texts[0]), int(texts[1])


def _read_names(path: Path) -> dict[int, str]:
    names = {number: line for number, line in enumerate(read_lines(path)) if line}
    if list(names) != list(range(len(names))) or not names:
        raise DataError(f"{path}: must have one class name a line, without empty lines between them")
    return names


def _from_darknet(path: Path) -> Layout:
    """``obj.data`` of darknet, as CVAT writes it: ``train = data/train.txt``; data/ is the folder itself."""
    pairs = (line.split("=", 1) for line in read_lines(path) if "=" in line)
    config = {key.strip(): posix_name(value.strip()) for key, value in pairs}
    bases = (path.parent, path.parent.parent)
    names = find_entry(config.get("names", "obj.names"), bases)
    if names is None:
        raise DataError(f"{path}: names '{config.get('names')}' does not exist")
    entries = {split: _entries(config, split) for split in SPLIT_WORDS}
    # CVAT names lists that it does not write
    present = {split: [item for item in items if find_entry(item, bases)] for split, items in entries.items()}
    return Layout(file=path, names=_read_names(names), entries=present, bases=bases)


def _folders_without_yaml(root: Path) -> dict[str, list[str]]:
    """Lists or image folders of the splits; empty if there is no label file."""
    lists = {
        split: [f"{word}.txt" for word in words if child(root, f"{word}.txt")] for split, words in SPLIT_WORDS.items()
    }
    if any(lists.values()):
        return lists
    found: dict[str, list[str]] = {}
    for split, words in SPLIT_WORDS.items():
        patterns = (pattern.format(word) for word in words for pattern in ("images/{}", "{}/images", "{}"))
        found[split] = [next((item for item in patterns if _has_labels(root / item)), "")]
    found = {split: items for split, items in found.items() if items[0]}
    whole = next((item for item in ("images", "obj_train_data", ".") if _has_labels(root / item)), None)
    if not found and whole is None and files_in(root / "labels", {".txt"}):
        whole = "images"  # exported without the images, as reading it says
    return found or ({} if whole is None else {"train": [whole]})


def _has_labels(folder: Path) -> bool:
    """Whether an image of the folder has a label file."""
    images = {path.stem for path in images_in(folder)}
    if not images:
        return False
    parts = ["labels" if part.lower() == "images" else part for part in folder.parts]
    return any(path.stem in images for place in (folder, Path(*parts)) for path in files_in(place, {".txt"}))


def as_written(item: str, bases: tuple[Path, ...]) -> Path:
    """The file or folder of an entry, which need not exist.

    ``data`` is the folder itself for darknet and CVAT, unless there is one of this name.
    """
    paths = [base / name for name in (item, item.removeprefix("data/")) for base in bases]
    likely = paths[0] if os.path.isdir(bases[0] / "data") else paths[len(bases)]
    return next((path for path in paths if os.path.exists(path)), likely)


def find_entry(item: str, bases: tuple[Path, ...]) -> Path | None:
    """The file or folder of an entry: absolute, relative to one of the bases, or else the longest end of it that exists
    there: exports have paths relative to a subfolder of their own, or those of another machine.

    The end of a folder's path has two parts at least, or is the name of a split; ``images`` alone would be too much.
    """
    path = as_written(item, bases)
    if os.path.exists(path):
        return path
    parts = [part for part in item.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for path in (base.joinpath(*parts[start:]) for base in bases):
            if os.path.isfile(path) or (os.path.isdir(path) and (start + 1 < len(parts) or split_of(parts[-1]))):
                return path
    return None
