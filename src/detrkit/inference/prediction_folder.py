"""A folder of predictions: COCO JSON, maps, pictures, and the list of skipped files."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from detrkit.data.images import Picture
from detrkit.drawing.marks import Captions
from detrkit.drawing.palette import category_color
from detrkit.errors import DataError
from detrkit.files import refuse_links, write_bytes, write_json, write_picture
from detrkit.inference.cityscapes_submission import SUBMISSION, CityscapesSubmission
from detrkit.inference.earlier_run import MAP_FOLDERS, TASK_FILES, earlier_files
from detrkit.inference.object_files import ObjectFiles
from detrkit.inference.picture_names import picture_names, whole_name
from detrkit.inference.tasks import Answer, in_full_size
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

    - ``predictions.json``: images (id, file_name, width, height), categories, annotations (COCO with score, and
      with ``segmentation`` where there are masks); of panoptic maps the things, of semantic maps no annotations
    - ``results.json``: the plain COCO results list
    - ``panoptic.json`` and ``panoptic/<name>.png``: COCO panoptic, for the task ``"pan"``
    - ``classes.json`` and ``semantic/<name>.png``: names of the classes, and their numbers as pixels, 255 = none
      (16 bits and 65535 beyond 255 classes), for the task ``"sem"``
    - ``images/<name>.png``: the image with what was found
    - of the further formats: ``predictions.csv``; ``labels/<name>.txt`` and ``labels/classes.txt``, as YOLO has them,
      with scores; ``crops/<class>/<name>_<number>.png``
    - ``skipped.json``: file_name and error of every file that could not be used; an empty list if there was none

    Pictures and maps have ``.png`` in place of the ending of the image; where two images would meet, both keep theirs
    before it. Nothing is written through links inside the folder.
    Files of an earlier run in this folder are replaced, and removed if this task does not write them; other files are
    kept.

    Args:
        folder: the output folder, created if necessary.
        categories: the classes of the model.
        pictures: whether to write the images with detections.
        task: ``"det"``, ``"inst"``, ``"pan"`` or ``"sem"``.
        labels: captions in the pictures: ``"auto"``, ``"all"`` or ``"none"``, see ``draw_detections``.
        file_names: of all images to come, as far as known: decides which pictures would meet.
        image_ids: the id of every image by its file name; None: 1, 2, …
        submission: makes the files of a benchmark, which are written too, below ``cityscapes/``.
        formats: files of objects that are written too: ``"csv"``, ``"yolo"``, ``"crops"``.

    Raises:
        DataError: the folder is a file or cannot be made, a folder in it that would be written to is a link, or it has
            a JSON file with one of these names, or a file among those of a submission, that is not from detrkit.
    """

    def __init__(
        self,
        folder: str | Path,
        categories: Categories,
        *,
        pictures: bool = True,
        task: str = "det",
        labels: Captions = "auto",
        file_names: Iterable[str] = (),
        image_ids: Mapping[str, int] | None = None,
        submission: CityscapesSubmission | None = None,
        formats: Collection[str] = (),
    ) -> None:
        self._objects = ObjectFiles(formats, categories, task=task)
        self.folder = Path(folder)
        self.submission = submission
        self.pictures = pictures
        self.task = task
        self.labels = labels
        self.image_folder = self.folder / "images"
        self.skipped: list[dict[str, str]] = []
        self._images: list[_ImageRow] = []
        self._annotations: list[_AnnotationRow] = []
        self._results: list[ResultRow] = []
        self._panoptic: list[_PanopticRow] = []
        self._categories = categories
        self._counts: Counter[int] = Counter()
        self._image_ids = image_ids
        self._names = picture_names(file_names)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: the output must be a folder, but this is a file")
        self._earlier = earlier_files(
            self.folder, task, submission=submission is not None, formats=self._objects.formats
        )
        for path in self._to_write():
            refuse_links(self.folder, path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: the output folder cannot be made: {error.strerror}") from error

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from writing predictions into this folder.

        Raises:
            DataError: another one does so.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".predicting.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(
                f"{self.folder}: another prediction is being written here; wait for it, or choose another output folder"
            ) from error
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def add(self, file_name: str, found: Answer, picture: Picture | Image.Image) -> None:
        """Add the answer for one image and write its map and its picture.

        A picture that was decoded smaller is drawn so; its answer, in the pixels that were decoded, is written in
        those of the full size.

        Raises:
            RunError: a file cannot be written.
        """
        if not isinstance(picture, Picture):
            picture = Picture(image=picture, full_size=picture.size)
        image, (width, height) = picture.image, picture.full_size
        image_id = len(self._images) + 1 if self._image_ids is None else self._image_ids[file_name]
        row: _ImageRow = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        if isinstance(found, PanopticMap):
            segments = found.segments_info()
            name = self._name(file_name)
            self._panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
            self._save(self.folder / MAP_FOLDERS["pan"] / name, found.to_image())
            self._counts.update(segment.label for segment in found.segments)
            objects = found.things()
        elif isinstance(found, SemanticMap):
            self._save(self.folder / MAP_FOLDERS["sem"] / self._name(file_name), found.to_image())
            pixels = np.bincount(found.labels.reshape(-1), minlength=len(self._categories))
            self._counts.update(dict(enumerate(pixels[: len(self._categories)].tolist())))
            objects = None
        else:
            self._counts.update(found.labels.tolist())
            full = in_full_size(found, picture)
            objects = full if isinstance(full, Detections) else None
        self._images.append(row)
        if objects is not None:
            self._add_objects(objects, image_id)
            for path, content in self._objects.files(file_name, self._name(file_name), objects, image):
                self._save(self.folder / path, content)
        if self.pictures:
            drawn = found.draw(image, labels=self.labels) if isinstance(found, Detections) else found.draw(image)
            self._save(self.picture(file_name), drawn)
        if self.submission is not None:
            for path, content in self.submission.files(file_name, found):
                self._save(self.folder / SUBMISSION / path, content)

    def _add_objects(self, objects: Detections, image_id: int) -> None:
        rows = objects.to_coco(image_id)
        self._results += rows
        if objects.masks is None:
            areas = [row["bbox"][2] * row["bbox"][3] for row in rows]
        else:
            areas = objects.masks.areas.tolist()
        for row, area in zip(rows, areas, strict=True):
            self._annotations.append({"id": len(self._annotations) + 1, **row, "area": area, "iscrowd": 0})

    def _to_write(self) -> Iterator[Path]:
        """The pictures and maps of the announced images."""
        folders = [self.image_folder] if self.pictures else []
        if self.task in MAP_FOLDERS:
            folders.append(self.folder / MAP_FOLDERS[self.task])
        if self.submission is not None:
            folders.append(self.folder / SUBMISSION)
        for folder in folders:
            yield folder / "any"
            yield from (folder / name for name in self._names.values())

    def _save(self, path: Path, content: Image.Image | bytes) -> None:
        refuse_links(self.folder, path)
        if isinstance(content, bytes):
            write_bytes(path, content)
        else:
            write_picture(path, content)
        self._earlier.discard(path)

    def skip(self, file_name: str, error: str) -> None:
        """Add a file that could not be used, and the reason."""
        self.skipped.append({"file_name": file_name, "error": error})

    def picture(self, file_name: str) -> Path:
        """The path of the picture of an image."""
        return self.image_folder / self._name(file_name)

    def _name(self, file_name: str) -> str:
        if file_name not in self._names:  # it was not announced
            self._names |= picture_names([file_name])
            if list(self._names.values()).count(self._names[file_name]) > 1:
                self._names[file_name] = whole_name(file_name)
        return self._names[file_name]

    @property
    def object_paths(self) -> list[Path]:
        """Files and folders of the further formats."""
        return [self.folder / path for path in self._objects.paths]

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
        if self.submission is not None:
            for name, value in self.submission.summary().items():
                self._write(f"{SUBMISSION}/{name}", value)
        for name, content in self._objects.summary().items():
            self._save(self.folder / name, content)
        for path in self._earlier:
            refuse_links(self.folder, path)
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
