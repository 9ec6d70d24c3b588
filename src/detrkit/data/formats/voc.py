"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages`` and the lists ``ImageSets/Main/train.txt`` and ``val.txt``.

Without lists (LabelImg writes none) every XML file belongs to train, or to the split whose name its sub-folder has. The
only list, whatever its name, is train. XML files may also be next to the images, in ``train``, ``valid`` and ``test``
(Roboflow's export) or directly in the folder, or in ``annotations`` beside ``images`` (Kaggle). Letter case is free.

VOC counts pixels from 1 and includes the last one, so ``xmin … xmax`` becomes ``[xmin - 1, xmax]``. Boxes of tools
that count from 0 are shifted by one pixel at the left and top; boxes at the border are clipped.
Objects marked ``difficult`` are treated as crowd: left out of training, ignored in evaluation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from detrkit.data.coco_json import Row
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, split_folders, split_of
from detrkit.data.listing import child, files_in, images_in, posix_name, read_lines
from detrkit.data.once import remembered
from detrkit.data.records import Table
from detrkit.data.values import size
from detrkit.data.xml_files import read_xml
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

# Possible names of the list of a split.
_LISTS = {**SPLIT_WORDS, "train": (*SPLIT_WORDS["train"], "trainval")}
_IMAGES = ("JPEGImages", "images", "image", "imgs", "img")


@dataclass(frozen=True)
class _File:
    """What an XML file says: file name and size of its image, and (class, box, difficult) of each object; or why it
    cannot be read."""

    image: str = ""
    size: dict[str, int] = field(default_factory=dict)
    objects: list[tuple[str, list[float] | list[str | None], int]] = field(default_factory=list)
    problem: str | None = None


def recognises(root: Path) -> bool:
    """Whether there are XML files in ``Annotations`` or next to the images."""
    return bool(_folders(root))


def locate(root: Path, split: str) -> Source | None:
    """The list of the split in ``ImageSets/Main``, or the folder with the XML files of the split."""
    path = _folders(root).get(split)
    if path is not None and path == _whole(root):
        lists = _lists(root)
        own = {split: folder for split, words in SPLIT_WORDS.items() if (folder := child(path, *words)) is not None}
        if lists:
            path = lists.get(split)
        elif own:
            path = own.get(split)
        elif split != "train":
            path = None
    return None if path is None else Source(format="voc", root=root, split=split, annotations=path)


def read(source: Source) -> Table:
    """Read one split.

    Classes are the names in the XML files of all splits, in alphabetical order from id 1.

    An image whose XML file is missing or cannot be read has the reason as its ``problem``.

    Raises:
        DataError: the list of the split cannot be read.
    """
    root, whole = source.root, _whole(source.root)
    in_whole = whole is not None and (source.annotations.is_file() or source.annotations.is_relative_to(whole))
    folder = whole if in_whole and whole is not None else source.annotations
    everything = {path for parent in set(_folders(root).values()) for path in _xml_below(parent).values()}
    names = sorted({name for path in everything for name, _, _ in _read_file(path).objects})
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    present = _xml_below(folder)
    image_root = source.images or (_image_folder(root) if in_whole else folder)
    found = [*images_in(folder, recursive=True), *images_in(image_root, recursive=True)]
    files = {path.stem.lower(): path for path in found} | _by_key(found, folder) | _by_key(found, image_root)
    paths = set(found)
    stems = _stems(source, present, folder)
    images: list[Row] = []
    annotations: list[Row] = []
    for number, stem in enumerate(stems, start=1):
        xml = _lookup(present, stem) or folder / f"{stem}.xml"
        file = _read_file(xml)
        image = _lookup(files, stem) or _lookup(files, xml.stem)
        if image is not None and file.image:  # of several images with the name of the XML file the one that it names
            named = image.with_suffix(PurePosixPath(file.image).suffix)
            image = named if named in paths else image
        name = file.image or f"{stem}.jpg" if image is None else Path(os.path.relpath(image, image_root)).as_posix()
        images.append({"id": number, "file_name": name, **file.size})
        if file.problem is not None:
            images[-1]["problem"] = file.problem
        for position, (name, bbox, difficult) in enumerate(file.objects, start=1):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_ids[name],
                    "bbox": bbox,
                    "iscrowd": difficult,
                    "where": f"{xml}: object {position}",
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return Table(
        origin=source.annotations,
        image_root=image_root,
        images=images,
        annotations=annotations,
        categories=categories,
        label_files=tuple(path for stem in stems if (path := _lookup(present, stem)) is not None),
    )


def _whole(root: Path) -> Path | None:
    """The folder ``Annotations`` with XML files, in it or in its sub-folders."""
    folder = child(root, "Annotations", "annotation", "xmls")
    return folder if folder is not None and files_in(folder, {".xml"}, recursive=True) else None


def _image_folder(root: Path) -> Path:
    return child(root, *_IMAGES) or root


def _folders(root: Path) -> dict[str, Path]:
    """The folder with the XML files of each split: ``Annotations`` for all, else the image folders."""
    whole = _whole(root) if root.is_dir() else None
    if whole is not None:
        return dict.fromkeys(SPLIT_WORDS, whole)
    return split_folders(root, _beside_images)


def _beside_images(folder: Path) -> bool:
    """Whether an image and an XML file share their name. Others, such as CVAT's ``annotations.xml``, are not VOC."""
    stems = {path.stem for path in files_in(folder, {".xml"})}
    return bool(stems) and any(path.stem in stems for path in images_in(folder))


def _lists(root: Path) -> dict[str, Path]:
    """The list of each split in ``ImageSets/Main``: of the usual name, else the only one whose name says the split; the
    only list of all, such as CVAT's ``default.txt``, is train."""
    sets = child(root, "ImageSets")
    folder = None if sets is None else child(sets, "Main") or sets
    lists = {path.stem.lower(): path for path in ([] if folder is None else files_in(folder, {".txt"}))}
    found = {split: next((lists[word] for word in words if word in lists), None) for split, words in _LISTS.items()}
    if not any(found.values()):
        for split in SPLIT_WORDS:
            named = [path for name, path in lists.items() if split_of(name) == split]
            found[split] = named[0] if len(named) == 1 else None
    if not any(found.values()) and len(lists) == 1:
        found["train"] = next(iter(lists.values()))
    return {split: path for split, path in found.items() if path is not None}


def _xml_below(folder: Path) -> dict[str, Path]:
    return _by_key(files_in(folder, {".xml"}, recursive=True), folder)


def _by_key(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their path in the folder without ending, as it is and in lower case."""
    exact = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths if path.is_relative_to(folder)}
    return {key.lower(): path for key, path in exact.items()} | exact


def _lookup(files: dict[str, Path], key: str) -> Path | None:
    return files.get(key) or files.get(key.lower())


def _stems(source: Source, present: dict[str, Path], folder: Path) -> list[str]:
    """The image names of the split: from its list, or from all XML files of its folder."""
    path = source.annotations
    if path.is_dir():
        files = {file for file in present.values() if file.is_relative_to(path)}
        return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)
    stems = _read_list(path, present)
    val = locate(source.root, "val")
    if path.stem.lower() == "trainval" and val is not None:  # trainval contains val
        stems -= _read_list(val.annotations, present)
    return sorted(stems)


def _read_list(path: Path, present: dict[str, Path]) -> set[str]:
    """The image names in a list. In lists of a single class 1, 0 or -1 follows each name: it is no part of the name if
    there is an XML file without it and none with it. Lines may also be paths of images or XML files."""
    names = set()
    for line in filter(None, read_lines(path)):
        name = posix_name(line)
        bare = re.sub(r"\s+(-1|0|1)$", "", name)
        ends = [PurePosixPath(form) for form in (name, bare)]
        forms = [name, bare, *(form for end in ends for form in (str(end.with_suffix("")), end.name, end.stem))]
        names.add(next((form for form in forms if _lookup(present, form)), bare))
    return names


def _read_file(path: Path) -> _File:
    """Read an XML file; classes need all files, so each is read once for all splits."""
    return remembered(("voc", path), lambda: _content(path))


def _content(path: Path) -> _File:
    try:
        tree = read_xml(path)
    except DataError as error:
        return _File(problem=str(error))
    sides = {name: size(tree.findtext(f"size/{name}") or "") for name in ("width", "height")}
    return _File(
        image=posix_name((tree.findtext("filename") or "").strip()),
        size={name: value for name, value in sides.items() if value is not None},
        objects=[(_class_name(element), _bbox(element), _difficult(element)) for element in tree.findall("object")],
    )


def _class_name(element: Element) -> str:
    return (element.findtext("name") or "unnamed").strip()


def _difficult(element: Element) -> int:
    return int((element.findtext("difficult") or "0").strip() == "1")


def _bbox(element: Element) -> list[float] | list[str | None]:
    """[x, y, w, h]; anything but four numbers is returned unchanged, and later checks report it."""
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        return texts
    return [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


FORMAT = Format(
    name="voc",
    looked_for="Pascal VOC: Annotations/*.xml (of ImageSets/Main/train.txt, if there are lists) or *.xml beside images",
    recognises=recognises,
    locate=locate,
    read=read,
)
