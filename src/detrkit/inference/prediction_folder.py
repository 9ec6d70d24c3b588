"""A folder of predictions: COCO JSON, images with drawn detections, and the list of skipped files."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TypedDict

from PIL import Image

from detrkit.drawing import draw_detections
from detrkit.errors import DataError
from detrkit.files import write_json, write_picture
from detrkit.structures import Categories, Detections
from detrkit.structures.detections import ResultRow

__all__ = ["PredictionFolder"]

_JSON_FILES = ("predictions.json", "results.json", "skipped.json")


class _ImageRow(TypedDict):
    id: int
    file_name: str
    width: int
    height: int


class _AnnotationRow(ResultRow):
    id: int
    area: float
    iscrowd: int


class PredictionFolder:
    """Collects detections and writes these files:

    - ``predictions.json``: images (id 1.., file_name, width, height), categories, annotations (COCO with score)
    - ``results.json``: the plain COCO results list
    - ``images/<file name>.png``: the image with its detections
    - ``skipped.json``: file_name and error of every file that could not be read; an empty list if there was none

    Predictions and pictures of an earlier run in this folder are replaced; other files are kept.

    Args:
        folder: the output folder, created if necessary.
        categories: the classes of the model.
        pictures: whether to write the images with detections.

    Raises:
        DataError: the folder is a file or cannot be made, or it has a JSON file with one of these names that is not
            from detrkit.
    """

    def __init__(self, folder: str | Path, categories: Categories, *, pictures: bool = True) -> None:
        self.folder = Path(folder)
        self.pictures = pictures
        self.image_folder = self.folder / "images"
        self.skipped: list[dict[str, str]] = []
        self._images: list[_ImageRow] = []
        self._annotations: list[_AnnotationRow] = []
        self._results: list[ResultRow] = []
        self._categories = categories.named
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: the output must be a folder, but this is a file")
        self._earlier = self._earlier_pictures()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: the output folder cannot be made: {error.strerror}") from error

    def add(self, file_name: str, detections: Detections, image: Image.Image) -> None:
        """Add the detections of one image and write its picture.

        Raises:
            RunError: the picture cannot be written.
        """
        image_id = len(self._images) + 1
        height, width = detections.image_size
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        rows = detections.to_coco(image_id)
        self._results += rows
        for row in rows:
            area = row["bbox"][2] * row["bbox"][3]
            self._annotations.append({"id": len(self._annotations) + 1, **row, "area": area, "iscrowd": 0})
        if self.pictures:
            path = self.picture(file_name)
            write_picture(path, draw_detections(detections, image))
            self._earlier.discard(path)

    def skip(self, file_name: str, error: str) -> None:
        """Add a file that could not be read."""
        self.skipped.append({"file_name": file_name, "error": error})

    def picture(self, file_name: str) -> Path:
        """The path of the picture of an image."""
        return self.image_folder / f"{file_name}.png"

    @property
    def count(self) -> int:
        """The number of images added."""
        return len(self._images)

    def counts(self) -> dict[str, int]:
        """The number of objects per class name in label order, without classes that have none."""
        names = {category.id: str(category.name) for category in self._categories}
        totals = dict.fromkeys(names.values(), 0)
        for row in self._annotations:
            totals[names[row["category_id"]]] += 1
        return {name: total for name, total in totals.items() if total}

    def write(self) -> None:
        """Write the JSON files, each of them atomically, and delete pictures of an earlier run.

        Raises:
            RunError: a file cannot be written, for example because the disk is full.
        """
        categories = [{"id": category.id, "name": category.name} for category in self._categories]
        predictions = {"images": self._images, "categories": categories, "annotations": self._annotations}
        write_json(self.folder / "predictions.json", predictions, force=True)
        write_json(self.folder / "results.json", self._results, force=True)
        write_json(self.folder / "skipped.json", self.skipped, force=True)
        for path in self._earlier:
            path.unlink(missing_ok=True)
        self._earlier.clear()

    def _earlier_pictures(self) -> set[Path]:
        """The pictures of an earlier run, from its predictions.json."""
        found: set[Path] = set()
        for name in _JSON_FILES:
            path = self.folder / name
            if not path.exists():
                continue
            try:
                data = json.loads(path.read_bytes())
            except (OSError, ValueError):
                data = None
            is_ours = isinstance(data, list) if name != "predictions.json" else _is_predictions(data)
            if not is_ours:
                raise DataError(f"{path}: is not from detrkit and would be overwritten; choose another output folder")
            if name == "predictions.json":
                for row in data["images"]:
                    relative = PurePosixPath(f"{row['file_name']}.png")
                    if not relative.is_absolute() and ".." not in relative.parts:
                        found.add(self.image_folder / relative)
        return found


def _is_predictions(data: object) -> bool:
    keys = {"images", "categories", "annotations"}
    return (
        isinstance(data, dict)
        and data.keys() == keys
        and all(isinstance(row, dict) and "file_name" in row for row in data["images"])
        and all(isinstance(row, dict) and "score" in row for row in data["annotations"])
    )
