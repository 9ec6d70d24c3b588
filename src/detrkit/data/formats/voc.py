"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages`` and the lists ``ImageSets/Main/train.txt`` and ``val.txt``.

Without lists (LabelImg writes none) every XML file belongs to train. XML files may also be next to the images, in
``train``, ``valid`` and ``test`` (Roboflow's export) or directly in the folder.

VOC counts pixels from 1 and includes the last one, so ``xmin … xmax`` becomes ``[xmin - 1, xmax]``. Boxes of tools
that count from 0 are shifted by one pixel at the left and top; boxes at the border are clipped.
Objects marked ``difficult`` are treated as crowd: left out of training, ignored in evaluation.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from detrkit.data.coco_json import Row
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.images import IMAGE_SUFFIXES
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]

# Possible names of the list of a split.
_LISTS = {**SPLIT_WORDS, "train": (*SPLIT_WORDS["train"], "trainval")}


def recognises(root: Path) -> bool:
    """Whether there are XML files in ``Annotations`` or next to the images."""
    return bool(_folders(root))


def locate(root: Path, split: str) -> Source | None:
    """The list of the split in ``ImageSets/Main``, or the folder with the XML files of the split."""
    path = _folders(root).get(split)
    if path == root / "Annotations":
        lists = {file.stem: file for file in (root / "ImageSets" / "Main").glob("*.txt")}
        if lists or split != "train":
            path = next((lists[word] for word in _LISTS[split] if word in lists), None)
    return None if path is None else Source(format="voc", root=root, split=split, annotations=path)


def read(source: Source) -> Table:
    """Read one split.

    Classes are the names in the XML files of all splits, in alphabetical order from id 1.

    Raises:
        DataError: an XML file is missing or cannot be read.
    """
    root, whole = source.root, source.root / "Annotations"
    folder = source.annotations if source.annotations.is_dir() else whole
    all_files = (path for parent in set(_folders(root).values()) for path in parent.glob("*.xml"))
    names = sorted({name for path in all_files for name in _class_names(path)})
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    image_root = source.images or (root / "JPEGImages" if folder == whole else folder)
    files = {path.stem: path.name for path in sorted(image_root.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    images: list[Row] = []
    annotations: list[Row] = []
    for number, stem in enumerate(_stems(source), start=1):
        path = folder / f"{stem}.xml"
        tree = _parse(path)
        images.append({"id": number, "file_name": files.get(stem) or tree.findtext("filename") or f"{stem}.jpg"})
        size = {key: tree.findtext(f"size/{key}") or "" for key in ("width", "height")}
        if all(value.isdigit() and int(value) > 0 for value in size.values()):
            images[-1] |= {key: int(value) for key, value in size.items()}
        for position, element in enumerate(tree.findall("object"), start=1):
            where = f"{path}: object {position}"
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_ids[_class_name(element)],
                    "bbox": _bbox(element),
                    "iscrowd": int((element.findtext("difficult") or "0").strip() == "1"),
                    "where": where,
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return Table(
        origin=source.annotations, image_root=image_root, images=images, annotations=annotations, categories=categories
    )


def _folders(root: Path) -> dict[str, Path]:
    """The folder with the XML files of each split: ``Annotations`` for all, else the image folders."""
    whole = root / "Annotations"
    if any(whole.glob("*.xml")):
        return dict.fromkeys(SPLIT_WORDS, whole)
    folders = ((split, root / word) for split, words in SPLIT_WORDS.items() for word in words)
    found = {split: folder for split, folder in folders if _beside_images(folder)}
    return found or ({"train": root} if _beside_images(root) else {})


def _beside_images(folder: Path) -> bool:
    """Whether an image and an XML file share their name. Others, such as CVAT's ``annotations.xml``, are not VOC."""
    stems = {path.stem for path in folder.glob("*.xml")}
    images = (path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return bool(stems) and any(path.stem in stems for path in images)


def _stems(source: Source) -> list[str]:
    """The image names of the split: from its list, or from all XML files of its folder."""
    path = source.annotations
    if path.is_dir():
        return sorted(file.stem for file in path.glob("*.xml"))
    stems = _read_list(path)
    val = locate(source.root, "val")
    if path.stem == "trainval" and val is not None:  # trainval contains val
        stems -= _read_list(val.annotations)
    return sorted(stems)


def _read_list(path: Path) -> set[str]:
    """The image names in a list; in lists of a single class, 1, 0 or -1 follows each name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()}


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: is not readable XML ({error})") from error


def _class_name(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "unnamed").strip()


def _class_names(path: Path) -> set[str]:
    return {_class_name(element) for element in _parse(path).findall("object")}


def _bbox(element: ElementTree.Element) -> list[float] | list[str | None]:
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
