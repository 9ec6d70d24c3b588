"""What an earlier run left in a prediction folder, and what another program did."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from detrkit.errors import DataError
from detrkit.files import has_link
from detrkit.inference.cityscapes_submission import SUBMISSION, submitted_files
from detrkit.inference.object_files import earlier_object_files
from detrkit.inference.picture_names import picture_names, whole_name

__all__ = ["MAP_FOLDERS", "TASK_FILES", "earlier_files"]

TASK_FILES = {"pan": "panoptic.json", "sem": "classes.json"}
"""The JSON file that only this task has."""

MAP_FOLDERS = {"pan": "panoptic", "sem": "semantic"}
"""The folder of the maps of a task."""


def earlier_files(folder: Path, task: str, *, submission: bool = False, formats: Collection[str] = ()) -> set[Path]:
    """Pictures, maps and JSON files of an earlier run that a run for ``task`` replaces or removes; nothing in links.

    submission: whether the run also writes a submission, which must have no other files · formats: files of objects
    that it also writes.

    Raises:
        DataError: a JSON file that the run would write, or a file in the folder of its submission or where it writes
            files of objects, is not from detrkit.
    """
    predictions = _read(folder / "predictions.json", _is_predictions)
    _read(folder / "results.json", lambda data: isinstance(data, list))
    skipped = _read(folder / "skipped.json", lambda data: isinstance(data, list)) or []
    images = [] if predictions is None else predictions["images"]
    rows = [*images, *(row for row in skipped if isinstance(row, dict) and "file_name" in row)]
    announced = picture_names(str(row["file_name"]) for row in rows)
    files = [str(row["file_name"]) for row in images]
    names = [name for file in files for name in (announced[file], whole_name(file))]  # earlier versions kept the ending
    found = {_below(folder / "images", name) for name in names}

    found |= {_below(folder, path) for path in earlier_object_files(folder, formats)}

    maps = {_below(folder / MAP_FOLDERS["sem"], name) for name in names}
    have_maps = any(path is not None and path.is_file() for path in maps)
    classes = _read(folder / TASK_FILES["sem"], lambda data: have_maps and _is_texts(data), needed=task == "sem")
    if classes is not None:
        found |= {folder / TASK_FILES["sem"], *maps}

    def belongs(data: Any) -> bool:
        return predictions is not None and _is_panoptic(data) and data["images"] == images

    panoptic = _read(folder / TASK_FILES["pan"], belongs, needed=task == "pan")
    if panoptic is not None:
        found.add(folder / TASK_FILES["pan"])
        found |= {_below(folder / MAP_FOLDERS["pan"], str(row["file_name"])) for row in panoptic["annotations"]}

    found |= set(submitted_files(folder, files))
    if submission:
        other = next((path for path in (folder / SUBMISSION).rglob("*") if path.is_file() and path not in found), None)
        if other is not None:
            raise DataError(
                f"{other}: is not from the earlier run in {folder} and would be part of the submission; remove it, or "
                "choose another output folder"
            )
    return {path for path in found if path is not None and not has_link(folder, path)}


def _read(path: Path, is_ours: Callable[[Any], bool], *, needed: bool = True) -> Any:
    """The content of a JSON file of an earlier run; None if there is none.

    Raises:
        DataError: the file is not from detrkit and ``needed``.
    """
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        data = None
    if is_ours(data):
        return data
    if needed:
        raise DataError(f"{path}: is not from detrkit and would be overwritten; choose another output folder")
    return None


def _below(folder: Path, name: str) -> Path | None:
    """A file in a folder; None for a name that leads out of it."""
    relative = PurePosixPath(name)
    return None if relative.is_absolute() or ".." in relative.parts else folder / relative


def _is_predictions(data: object) -> bool:
    return _is_coco(data) and _all_scored(data["annotations"])


def _is_panoptic(data: object) -> bool:
    return _is_coco(data) and all(
        isinstance(row, dict)
        and isinstance(row.get("file_name"), str)
        and isinstance(row.get("segments_info"), list)
        and _all_scored(row["segments_info"])
        for row in data["annotations"]
    )


def _is_coco(data: Any) -> TypeGuard[dict[str, Any]]:
    keys = {"images", "categories", "annotations"}
    return (
        isinstance(data, dict)
        and data.keys() == keys
        and all(isinstance(row, dict) and "file_name" in row for row in data["images"])
    )


def _all_scored(rows: Iterable[object]) -> bool:
    return all(isinstance(row, dict) and "score" in row for row in rows)


def _is_texts(data: object) -> bool:
    return isinstance(data, list) and all(isinstance(name, str) for name in data)
