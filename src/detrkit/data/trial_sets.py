"""Cutting a trial set: a few images of each split of a data folder, with their annotations, in the same layout.

Annotation files of many images lose the rows of the others and keep all else; files of one image are copied or not.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from detrkit.data.coco_json import Row, image_file, read_json
from detrkit.data.formats import FORMATS, Source, find_sources, fitting_formats, read_source
from detrkit.data.listing import IMAGE_SUFFIXES, files_in, images_in, posix_name, read_text
from detrkit.data.records import Table, missing_files
from detrkit.data.subsets import choose
from detrkit.data.write_folders import place_file
from detrkit.errors import DataError, RunError
from detrkit.files import file_content, write_bytes, write_json

__all__ = ["cut_trial_set"]

# Files that belong to no single image, by their endings: those of lists are cut, the others copied.
_LISTS = frozenset({".txt"})
_SHARED = frozenset({".yaml", ".yml", ".names", ".data", ".md"})
# Text files whose lines are no images.
_CLASSES = frozenset({"classes", "labels", "labelmap", "predefined_classes", "objectinfo150", "readme", "license"})
# What Cityscapes adds to the name of an image.
_ADDED = re.compile(r"_(leftImg8bit|gtFine|gtCoarse)(_.*)?$")


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What a trial set has of one split. images: the positions in the table of those that it keeps."""

    source: Source
    table: Table
    images: list[int]

    @property
    def boxes(self) -> int:
        kept = {self.table.images[index]["id"] for index in self.images}
        return sum(row["image_id"] in kept for row in self.table.annotations)


@dataclass(kw_only=True)
class _Images:
    """The images of a data set, and whether the trial set keeps them, by their path in it."""

    root: Path
    kept: dict[str, bool] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    by_key: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: Path, name: str, kept: bool) -> None:
        inside = _inside(path, self.root) or _safe(name)
        if inside not in self.kept:
            self.by_key[_key(inside)].append(inside)
        self.kept[inside] = self.kept.get(inside, False) or kept
        self.sources[inside] = path

    def keeps(self, name: str) -> bool | None:
        """Whether the image is kept that a file or a line is about; None: it is about none.

        Of several images of the same name, that is the one whose folders are most like those of the file.
        """
        parts = PurePosixPath(posix_name(name)).parts
        options: list[str] = []
        for part in reversed(parts):
            options = options or self.by_key.get(_key(part), [])
            if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
                break  # a folder of masks has the name of its image, other files have it themselves
        if not options:
            return None
        alike = {one: len({*parts[:-1]} & {*PurePosixPath(one).parts[:-1]}) for one in options}
        return any(self.kept[one] for one in options if alike[one] == max(alike.values()))


def cut_trial_set(
    root: Path,
    out: Path,
    *,
    images: int = 50,
    seed: int = 0,
    format: str = "auto",
    links: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, dict[str, int]]:
    """Copy some images of each split and their annotations, in the layout of the data folder.

    The images are random: those whose hash with the seed is the smallest, so that a larger trial set with the same
    seed contains a smaller one, and all annotation files of a folder keep the same images.

    Args:
        root: the data folder.
        out: the new folder.
        images: how many of each split; of a split that has fewer, all.
        seed: for the choice of images.
        format: auto (all formats that the folder has), or a key of ``FORMATS``.
        links: make links to the images instead of copies.
        progress: called as progress(done, total) after every image.

    Returns:
        The number of images of each split, by format.

    Raises:
        DataError: the data cannot be read, or the new folder lies in the old one.
        RunError: a file cannot be written, or the layout is one that cannot be cut.
    """
    if images < 1:
        raise DataError(f"a trial set has at least 1 image of each split, not {images}")
    if root.is_file():
        raise DataError(f"{root}: a trial set is cut from a folder; give the folder of this file")
    if root.is_dir() and (_inside(out, root) is not None or _inside(root, out) is not None):
        raise DataError(f"{out}: lies in {root} or around it; choose a folder beside it")
    names = [form.name for form in fitting_formats(root, format)]
    pieces = {name: _pieces(root, name, images, seed) for name in names}
    every = [piece for of_format in pieces.values() for piece in of_format.values()]
    known = _Images(root=root)
    for piece in every:
        kept = {*piece.images}
        for index, image in enumerate(piece.table.images):
            known.add(piece.table.path(image), str(image["file_name"]), index in kept)
    cut = {os.path.abspath(piece.source.annotations): piece for piece in every if piece.source.annotations.is_file()}
    chosen = [name for name, kept in known.kept.items() if kept]
    for done, name in enumerate(chosen, start=1):
        _copy(known.sources[name], out / name, links=links)
        progress(done, len(chosen))
    for path in {path: None for path in [*files_in(root, recursive=True), *map(Path, cut)]}:
        place = _inside(path, root) or f"{path.parent.name}/{path.name}"
        if place not in known.kept:
            _cut_file(path, out / place, place, known, cut.get(os.path.abspath(path)), links=links)
    for name in names:
        _compare(out, name, pieces[name])
    return {name: {split: len(piece.images) for split, piece in pieces[name].items()} for name in names}


def _pieces(root: Path, format: str, count: int, seed: int) -> dict[str, _Piece]:
    """The chosen images of each split, as one format has them."""
    found = {}
    sources = find_sources(root, format=format)
    test = FORMATS[format].locate(root, "test")
    if test is not None and test.images is not None:  # photos of a test split without annotations
        sources["test"] = test
    for split, source in sources.items():
        table = _read(source)
        lost = {*missing_files([table.path(image) for image in table.images])}
        usable = [index for index, image in enumerate(table.images) if index not in lost and "problem" not in image]
        if not usable:
            raise DataError(f"{table.origin}: the {split} split has no image that can be used")
        names = [str(table.images[index]["file_name"]) for index in usable]
        images = [usable[place] for place in choose(names, min(count, len(usable)), seed)]
        found[split] = _Piece(source=source, table=table, images=images)
    return found


def _read(source: Source) -> Table:
    """The annotations of a split, or the images alone of a test split, whose annotations are often not published."""
    try:
        return read_source(replace(source, segmentations="none"), announce=False)
    except DataError:
        if source.split != "test" or source.images is None:
            raise
    names = [file.relative_to(source.images).as_posix() for file in images_in(source.images, recursive=True)]
    rows: list[Row] = [{"id": number, "file_name": name} for number, name in enumerate(names, start=1)]
    return Table(origin=source.images, image_root=source.images, images=rows, annotations=[], categories=[])


def _cut_file(path: Path, target: Path, place: str, known: _Images, piece: _Piece | None, *, links: bool) -> None:
    """Write what the trial set has of a file that is no image of it."""
    suffix = path.suffix.lower()
    keeps = None if piece is not None else known.keeps(place)
    if keeps is not None:
        if keeps:
            _copy(path, target, links=links and suffix in IMAGE_SUFFIXES)
    elif suffix == ".json":
        data, _ = read_json(path)
        left = _cut_json(data, known, piece)
        if left is data:
            write_bytes(target, file_content(path))
        elif left is not None:
            write_json(target, left, force=True)
    elif suffix in _LISTS and path.stem.lower() not in _CLASSES:
        lines = read_text(path).splitlines()
        kept = [line for line in lines if known.keeps(line.strip()) is not False and _first_word_kept(line, known)]
        write_bytes(target, "".join(f"{_here(line, known.root)}\n" for line in kept).encode())
    elif suffix in _SHARED | _LISTS:
        lines = [re.sub(r"^path\s*:.*", "path: .", line) for line in read_text(path).splitlines()]
        write_bytes(target, "".join(f"{_here(line, known.root)}\n" for line in lines).encode())


def _first_word_kept(line: str, known: _Images) -> bool:
    """Whether a line such as ``2008_000001 -1``, of lists of one class, is kept."""
    words = line.split()
    return len(words) != 2 or known.keeps(line.strip()) is not None or known.keeps(words[0]) is not False


def _here(line: str, root: Path) -> str:
    """A line with paths relative to the folder instead of its absolute ones."""
    return line.replace(f"{root.resolve().as_posix()}/", "./")


def _cut_json(data: object, known: _Images, piece: _Piece | None) -> object:
    """What a trial set has of a JSON file: the same object if it is about no images, None if all of them are cut."""
    if isinstance(data, list):
        return None if any(isinstance(row, dict) and "image_id" in row for row in data[:1]) else data
    if not isinstance(data, dict):
        return data
    if isinstance(data.get("images"), list):
        return _cut_coco(data, known, piece)
    for key in ("_via_img_metadata", "assets"):
        if isinstance(data.get(key), dict):
            left = {name: row for name, row in data[key].items() if known.keeps(_named(row)) is not False}
            lists = {"_via_image_id_list": [*left]} if "_via_image_id_list" in data else {}
            return {**data, key: left, **lists} if left else None
    if data and all(isinstance(row, dict) and "filename" in row for row in data.values()):
        return {name: row for name, row in data.items() if known.keeps(_named(row)) is not False} or None
    return data


def _cut_coco(data: Row, known: _Images, piece: _Piece | None) -> Row | None:
    if piece is not None:  # its rows are in the order of the file
        images = [data["images"][index] for index in piece.images]
    else:
        images = [row for row in data["images"] if known.keeps(image_file(row))]
    if not images:
        return None
    ids = {str(row.get("id")) for row in images}
    left = {**data, "images": images}
    if isinstance(data.get("annotations"), list):
        left["annotations"] = [row for row in data["annotations"] if str(row.get("image_id")) in ids]
    return left


def _named(row: object) -> str:
    """The image that an entry of VIA or VoTT is about."""
    content = row.get("asset", row) if isinstance(row, dict) else {}
    return unquote(str(content.get("filename", content.get("name", ""))))


def _compare(out: Path, format: str, pieces: dict[str, _Piece]) -> None:
    """Read the trial set, and compare it with what it should have.

    Raises:
        RunError: it has something else.
    """
    sources = find_sources(out, format=format)
    for split, piece in pieces.items():
        if split == "test" and split not in sources:
            continue  # images alone
        table = _read(sources[split]) if split in sources else replace(piece.table, images=[], annotations=[])
        there = [table.path(image) for image in table.images]
        found, wanted = (len(there), len(table.annotations)), (len(piece.images), piece.boxes)
        outside = [path for path in there if _inside(path, out) is None]
        where = f", some of them elsewhere, such as {outside[0]}" if outside else ""
        if found != wanted or outside or missing_files(there):
            raise RunError(
                f"{out}: the {split} split ({format}) has {found[0]} images with {found[1]} annotations{where}, but "
                f"{wanted[0]} with {wanted[1]} were chosen; this layout cannot be cut. 'detrkit data convert' makes a "
                "COCO data set of it, which can"
            )


def _copy(source: Path, target: Path, *, links: bool) -> None:
    try:
        place_file(source, target, copy=not links)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from error


def _key(name: str) -> str:
    """What the files of an image share: the name without endings."""
    stem = PurePosixPath(posix_name(name)).name
    while os.path.splitext(stem)[1].lower() in IMAGE_SUFFIXES | {".json", ".xml", ".txt"}:
        stem = os.path.splitext(stem)[0]
    return _ADDED.sub("", stem).lower()


def _inside(path: Path, root: Path) -> str | None:
    """The path relative to a folder, or None where it lies elsewhere."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    return None if inside.startswith("..") or os.path.isabs(inside) else Path(inside).as_posix()


def _safe(name: str) -> str:
    """A file name of annotations as a path inside a folder."""
    parts: Iterable[str] = PurePosixPath(posix_name(name)).parts
    return "/".join(part for part in parts if part not in ("/", "..", "."))
