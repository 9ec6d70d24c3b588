"""A folder of predictions: COCO JSON, maps, pictures, and the list of skipped files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TypedDict

import numpy as np
from PIL import Image

from detrkit.data.images import IMAGE_SUFFIXES
from detrkit.drawing.palette import category_color
from detrkit.errors import DataError
from detrkit.files import write_json, write_picture
from detrkit.inference.answers import Answer
from detrkit.inference.earlier_run import MAP_FOLDERS, TASK_FILES, earlier_files
from detrkit.structures import Categories, Detections, PanopticMap, SemanticMap
from detrkit.structures.detections import ResultRow
from detrkit.structures.segment_maps import SegmentRow

__all__ = ["PredictionFolder"]


class _ImageRow(TypedDict):
    id: int
    file_name: str
    width: int
    height: int


class _AnnotationRow(ResultRow):
    id: int
    area: float
    iscrowd: int


class _PanopticRow(TypedDict):
    image_id: int
    file_name: str
    segments_info: list[SegmentRow]


class PredictionFolder:
    """Collects the answers of a task and writes these files:

    - ``predictions.json``: images (id 1.., file_name, width, height), categories, annotations (COCO with score, and
      with ``segmentation`` where there are masks); of panoptic maps the things, of semantic maps no annotations
    - ``results.json``: the plain COCO results list
    - ``panoptic.json`` and ``panoptic/<file name>.png``: COCO panoptic, for the task ``"pan"``
    - ``classes.json`` and ``semantic/<file name>.png``: names of the classes, and their numbers as pixels, 255 = none
      (16 bits and 65535 beyond 255 classes), for the task ``"sem"``
    - ``images/<file name>.png``: the image with what was found
    - ``skipped.json``: file_name and error of every file that could not be read; an empty list if there was none

    Maps have ``.png`` in place of the ending of the image; where two images would meet, both keep theirs before it.
    Files of an earlier run in this folder are replaced, and removed if this task does not write them; other files are
    kept.

    Args:
        folder: the output folder, created if necessary.
        categories: the classes of the model.
        pictures: whether to write the images with detections.
        task: ``"det"``, ``"inst"``, ``"pan"`` or ``"sem"``.
        file_names: of all images to come, as far as known: decides which maps would meet.

    Raises:
        DataError: the folder is a file or cannot be made, or it has a JSON file with one of these names that is not
            from detrkit.
    """

    def __init__(
        self,
        folder: str | Path,
        categories: Categories,
        *,
        pictures: bool = True,
        task: str = "det",
        file_names: Iterable[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self.pictures = pictures
        self.task = task
        self.image_folder = self.folder / "images"
        self.skipped: list[dict[str, str]] = []
        self._images: list[_ImageRow] = []
        self._annotations: list[_AnnotationRow] = []
        self._results: list[ResultRow] = []
        self._panoptic: list[_PanopticRow] = []
        self._categories = categories
        self._counts: Counter[int] = Counter()
        self._names = _map_names(file_names)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: the output must be a folder, but this is a file")
        self._earlier = earlier_files(self.folder, task)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: the output folder cannot be made: {error.strerror}") from error

    def add(self, file_name: str, found: Answer, image: Image.Image) -> None:
        """Add the answer for one image and write its map and its picture.

        Raises:
            RunError: a file cannot be written.
        """
        image_id = len(self._images) + 1
        row: _ImageRow = {"id": image_id, "file_name": file_name, "width": image.width, "height": image.height}
        if isinstance(found, PanopticMap):
            segments = found.segments_info()
            name = self._map_name(file_name)
            self._panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
            self._save(self.folder / MAP_FOLDERS["pan"] / name, found.to_image())
            self._counts.update(segment.label for segment in found.segments)
            objects = found.things()
        elif isinstance(found, SemanticMap):
            self._save(self.folder / MAP_FOLDERS["sem"] / self._map_name(file_name), found.to_image())
            pixels = np.bincount(found.labels.reshape(-1), minlength=len(self._categories))
            self._counts.update(dict(enumerate(pixels[: len(self._categories)].tolist())))
            objects = None
        else:
            self._counts.update(found.labels.tolist())
            objects = found
        self._images.append(row)
        if objects is not None:
            self._add_objects(objects, image_id)
        if self.pictures:
            self._save(self.picture(file_name), found.draw(image))

    def _add_objects(self, objects: Detections, image_id: int) -> None:
        rows = objects.to_coco(image_id)
        self._results += rows
        if objects.masks is None:
            areas = [row["bbox"][2] * row["bbox"][3] for row in rows]
        else:
            areas = objects.masks.areas.tolist()
        for row, area in zip(rows, areas, strict=True):
            self._annotations.append({"id": len(self._annotations) + 1, **row, "area": area, "iscrowd": 0})

    def _save(self, path: Path, picture: Image.Image) -> None:
        write_picture(path, picture)
        self._earlier.discard(path)

    def skip(self, file_name: str, error: str) -> None:
        """Add a file that could not be read."""
        self.skipped.append({"file_name": file_name, "error": error})

    def picture(self, file_name: str) -> Path:
        """The path of the picture of an image."""
        return self.image_folder / f"{file_name}.png"

    def _map_name(self, file_name: str) -> str:
        if file_name not in self._names:  # it was not announced
            short = _short_name(file_name)
            self._names[file_name] = f"{file_name}.png" if short in self._names.values() else short
        return self._names[file_name]

    @property
    def count(self) -> int:
        """The number of images added."""
        return len(self._images)

    def counts(self) -> dict[str, int]:
        """Objects, segments or pixels of every class name in label order, without classes that have none."""
        totals: dict[str, int] = {}
        for label, category in enumerate(self._categories):
            if self._counts[label]:
                name = str(category.name)
                totals[name] = totals.get(name, 0) + self._counts[label]
        return totals

    def write(self) -> None:
        """Write the JSON files, each of them atomically, and delete what is left of an earlier run.

        Raises:
            RunError: a file cannot be written, for example because the disk is full.
        """
        named = self._categories.named
        categories = [{"id": category.id, "name": category.name} for category in named]
        predictions = {"images": self._images, "categories": categories, "annotations": self._annotations}
        self._write("predictions.json", predictions)
        self._write("results.json", self._results)
        self._write("skipped.json", self.skipped)
        if self.task == "pan":
            panoptic = {
                "images": self._images,
                "categories": self._panoptic_categories(),
                "annotations": self._panoptic,
            }
            self._write(TASK_FILES["pan"], panoptic)
        elif self.task == "sem":
            names = [category.name or f"unused {label}" for label, category in enumerate(self._categories)]
            self._write(TASK_FILES["sem"], names)
        for path in self._earlier:
            path.unlink(missing_ok=True)
        self._earlier.clear()

    def _write(self, name: str, value: object) -> None:
        write_json(self.folder / name, value, force=True)
        self._earlier.discard(self.folder / name)

    def _panoptic_categories(self) -> list[dict[str, object]]:
        return [
            {
                "id": category.id,
                "name": category.name,
                "isthing": int(category.is_thing),
                "color": list(category_color(category, label)),
            }
            for label, category in enumerate(self._categories)
            if category.name is not None
        ]


def _map_names(file_names: Iterable[str]) -> dict[str, str]:
    """The name of the map of every image: ``.png`` in place of its ending, or after it where names would meet."""
    listed = list(file_names)
    names = {name: _short_name(name) for name in listed}
    while True:
        used = Counter(names.values())
        meeting = [name for name in listed if used[names[name]] > 1 and names[name] != f"{name}.png"]
        if not meeting:
            return names
        names |= {name: f"{name}.png" for name in meeting}


def _short_name(file_name: str) -> str:
    path = PurePosixPath(file_name)
    return str(path.with_suffix(".png")) if path.suffix.lower() in IMAGE_SUFFIXES else f"{file_name}.png"
