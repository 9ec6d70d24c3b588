"""Files about the objects of predicted images besides COCO's: a CSV table, YOLO label files, a picture of each object.

A list of what was written lies beside them, so that a later run replaces these files and no others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from detrkit.errors import DataError
from detrkit.files import safe_name
from detrkit.structures import Categories, Detections
from detrkit.structures.detection_texts import COLUMNS

__all__ = ["CROPS", "OBJECT_FORMATS", "ObjectFiles", "earlier_object_files"]

OBJECT_FORMATS = ("csv", "yolo", "crops")
"""The kinds of files."""

CROPS = "crops"
"""The folder of the pictures of objects, with a folder for each class."""

_PLACES = {"csv": "predictions.csv", "yolo": "labels", "crops": CROPS}
_LIST = "object_files.json"


class ObjectFiles:
    """Makes the files of the chosen formats.

    Args:
        formats: some of :data:`OBJECT_FORMATS`.
        categories: the classes of the model.
        task: what is predicted.

    Raises:
        DataError: the task has no objects.
    """

    def __init__(self, formats: Collection[str], categories: Categories, *, task: str) -> None:
        self.formats = [name for name in OBJECT_FORMATS if name in formats]
        if self.formats and task == "sem":
            raise DataError(f"--format {self.formats[0]}: the task sem has classes of pixels and no objects")
        self._categories = categories
        self._table = [",".join(COLUMNS) + "\n"]
        self._written: list[str] = []

    @property
    def paths(self) -> list[str]:
        """Where the files are, in the folder of predictions."""
        return [_PLACES[name] for name in self.formats]

    def files(
        self, file_name: str, picture_name: str, found: Detections, image: Image.Image
    ) -> Iterator[tuple[str, Image.Image | bytes]]:
        """The files of an image, by their paths in the folder of predictions.

        Args:
            file_name: of the image.
            picture_name: of its picture, which is its alone.
            found: its objects, in pixels of the full size.
            image: as it was decoded.
        """
        if "csv" in self.formats:
            lines = replace(found, path=Path(file_name)).to_csv().splitlines(keepends=True)
            self._table += lines[1:]
        for path, content in self._of_image(picture_name, found, image):
            self._written.append(path)
            yield path, content

    def _of_image(
        self, picture_name: str, found: Detections, image: Image.Image
    ) -> Iterator[tuple[str, Image.Image | bytes]]:
        stem = PurePosixPath(picture_name).with_suffix("")
        if "yolo" in self.formats:
            yield f"{_PLACES['yolo']}/{stem}.txt", found.to_yolo(scores=True).encode()
        if "crops" in self.formats:
            flat = str(stem).replace("/", "_")  # the sub-folders of the image become a part of its name
            for number, (name, crop) in enumerate(
                zip(found.names, found.resized((image.height, image.width)).crops(image), strict=True), start=1
            ):
                end = f"_{number:03}.png"
                yield f"{CROPS}/{safe_name(name) or 'class'}/{safe_name(flat, longest=255 - len(end))}{end}", crop

    def summary(self) -> dict[str, bytes]:
        """Files of all images, by their paths; the last one is the list of all."""
        if not self.formats:
            return {}
        found = {}
        if "csv" in self.formats:
            found[_PLACES["csv"]] = "".join(self._table).encode()
        if "yolo" in self.formats:
            names = (category.name or f"unused {label}" for label, category in enumerate(self._categories))
            found[f"{_PLACES['yolo']}/classes.txt"] = "".join(f"{name}\n" for name in names).encode()
        return found | {_LIST: json.dumps([*self._written, *found]).encode()}


def earlier_object_files(folder: Path, formats: Collection[str] = ()) -> set[str]:
    """Paths of the files that earlier runs have written into a folder of predictions.

    Args:
        folder: the folder.
        formats: those of a new run.

    Raises:
        DataError: where the new run would write there are other files.
    """
    found: set[str] = set()
    try:
        listed = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError):  # none, or not ours
        listed = []
    if isinstance(listed, list):
        found = {str(path) for path in listed if str(path).split("/")[0] in _PLACES.values()} | {_LIST}
    for name in formats:
        place = folder / _PLACES[name]
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in found:
                raise DataError(
                    f"{path}: is not from an earlier run; --format {name} writes there, choose another output folder"
                )
    return found
