"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages`` and the lists ``ImageSets/Main/train.txt`` and ``val.txt``.

VOC counts pixels from 1 and includes the last one, so ``xmin … xmax`` becomes ``[xmin - 1, xmax]`` here. Tools that
write the same XML counting from 0 differ by one pixel at the left and top, which clamping absorbs at the border.
Objects marked ``difficult`` are treated as crowd: left out of training, ignored in evaluation.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from detrkit.data.formats.base import SPLIT_WORDS, Format, Source
from detrkit.data.images import IMAGE_SUFFIXES
from detrkit.data.records import Row, Table
from detrkit.errors import DataError

__all__ = ["FORMAT", "read"]


def recognises(root: Path) -> bool:
    """Are there XML files in ``Annotations``?"""
    return next((root / "Annotations").glob("*.xml"), None) is not None


def locate(root: Path, split: str) -> Source | None:
    """A split that ``ImageSets/Main`` lists."""
    for word in SPLIT_WORDS[split]:
        path = root / "ImageSets" / "Main" / f"{word}.txt"
        if path.is_file():
            return Source(format="voc", root=root, split=split, annotations=path)
    return None


def read(source: Source) -> Table:
    """One split. Classes are the names of all XML files in alphabetical order, from id 1, whatever the split has."""
    root = source.root
    names = sorted({name for path in (root / "Annotations").glob("*.xml") for name in _class_names(path)})
    category_ids = {name: number for number, name in enumerate(names, start=1)}
    image_root = source.images or root / "JPEGImages"
    files = {path.stem: path.name for path in sorted(image_root.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    images: list[Row] = []
    annotations: list[Row] = []
    for number, stem in enumerate(_stems(source), start=1):
        path = root / "Annotations" / f"{stem}.xml"
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


def _stems(source: Source) -> list[str]:
    """The names that the list has; lists of one class carry a 1, 0 or -1 behind them."""
    lines = source.annotations.read_text(encoding="utf-8").splitlines()
    return sorted({re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()})


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


def _bbox(element: ElementTree.Element) -> list[Any]:
    """[x, y, w, h]; what is not four numbers is handed on for the checks to refuse."""
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        return texts
    return [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


FORMAT = Format(
    name="voc",
    looked_for="Pascal VOC: Annotations/*.xml with ImageSets/Main/train.txt",
    recognises=recognises,
    locate=locate,
    read=read,
)
