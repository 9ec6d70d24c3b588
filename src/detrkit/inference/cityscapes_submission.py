"""The files that the Cityscapes benchmark takes: masks with labels and scores, label images, panoptic segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data.gtfine_files import CITYSCAPES_CATEGORIES, LABEL_CLASSES, frame_name
from detrkit.errors import DataError
from detrkit.inference.tasks import Answer
from detrkit.structures import Categories, Detections, SemanticMap

__all__ = ["SUBMISSION", "CityscapesSubmission", "submitted_files"]

SUBMISSION = "cityscapes"
"""The folder of the files in that of the predictions."""

_PANOPTIC = "panoptic"
_LABEL_OF = {one.name: one.label for one in LABEL_CLASSES}


class CityscapesSubmission:
    """What the benchmark takes of each image, with its own label ids (a car is 26), named after the frame:

    - instances: ``<frame>_pred.txt`` with lines ``mask label score``, and the masks in ``<frame>_pred/``
    - semantics: ``<frame>_pred.png`` whose pixels are label ids; 0 (unlabeled) where there is no class
    - panoptic: ``panoptic.json`` and ``panoptic/<frame>_pred.png`` in COCO panoptic format; the id of an image is its
      frame

    Args:
        categories: the classes of the model.
        task: ``"inst"``, ``"sem"`` or ``"pan"``.
        file_names: of all images to come.

    Raises:
        DataError: the task has no masks, a class is none of Cityscapes, or an image is not named as Cityscapes' are.
    """

    def __init__(self, categories: Categories, *, task: str, file_names: Iterable[str]) -> None:
        if task == "det":
            raise DataError("the Cityscapes benchmark scores masks, not boxes: choose --task inst, sem or pan")
        known = CITYSCAPES_CATEGORIES if task == "inst" else tuple(_LABEL_OF)
        answered = [one for one in categories.named if one.is_thing or task != "inst"]
        for category in answered:
            if category.name not in known:
                raise DataError(
                    f"the model's class '{category.name}' is none of the {len(known)} that the Cityscapes benchmark "
                    f"scores ({', '.join(known)}): its answers are no submission"
                )
        self._labels = [_LABEL_OF.get(str(category.name), 0) for category in categories]
        self._frames: dict[str, str] = {}
        taken: dict[str, str] = {}
        for file_name in file_names:
            frame = frame_name(file_name)
            if frame is None:
                raise DataError(
                    f"{file_name}: is not named as the images of Cityscapes, <city>_<sequence>_<frame>_leftImg8bit.png"
                )
            if frame in taken:
                raise DataError(f"{file_name}: is the frame {frame}, as {taken[frame]} is; predict one of them")
            taken[frame] = file_name
            self._frames[file_name] = frame
        self._panoptic: list[dict[str, object]] = []
        self._task = task

    def files(self, file_name: str, found: Answer) -> Iterator[tuple[str, Image.Image | bytes]]:
        """The files of an image, by their paths in the folder of the submission."""
        name = f"{self._frames[file_name]}_pred"
        if isinstance(found, Detections):
            assert found.masks is not None
            lines = []
            for number, (mask, score) in enumerate(zip(found.masks, found.scores.tolist(), strict=True)):
                if mask.any():  # the benchmark passes over empty masks
                    path = f"{name}/{number:04}.png"
                    yield path, Image.fromarray(mask.astype(np.uint8) * 255)
                    lines.append(f"{path} {self._labels[found.labels[number]]} {score}\n")
            yield f"{name}.txt", "".join(lines).encode()
        elif isinstance(found, SemanticMap):
            table = np.zeros(found.none + 1, dtype=np.uint8)
            table[: len(self._labels)] = self._labels
            yield f"{name}.png", Image.fromarray(table[found.labels])
        else:
            segments = [
                {**row, "category_id": self._labels[segment.label]}
                for row, segment in zip(found.segments_info(), found.segments, strict=True)
            ]
            self._panoptic.append(
                {"image_id": self._frames[file_name], "file_name": f"{name}.png", "segments_info": segments}
            )
            yield f"{_PANOPTIC}/{name}.png", found.to_image()

    def summary(self) -> dict[str, object]:
        """JSON files of all images by their names."""
        return {f"{_PANOPTIC}.json": {"annotations": self._panoptic}} if self._task == "pan" else {}


def submitted_files(folder: Path, file_names: Iterable[str]) -> Iterator[Path]:
    """Files of a submission in a folder of predictions that an earlier run has written for these images."""
    root = folder / SUBMISSION
    yield root / f"{_PANOPTIC}.json"
    for file_name in file_names:
        if frame := frame_name(file_name):
            name = f"{frame}_pred"
            yield from (root / f"{name}.txt", root / f"{name}.png", root / _PANOPTIC / f"{name}.png")
            yield from (root / name).glob("*.png")
