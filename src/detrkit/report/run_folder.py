"""Reading a run folder for its report. Needs no torch: the detections of the best evaluation were kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.formats import find_source
from detrkit.data.open import load_source
from detrkit.data.records import OnError
from detrkit.errors import DataError, first_line
from detrkit.metrics import Metric, metric_for
from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.result_files import read_results
from detrkit.report.analysis import analyse
from detrkit.report.facts import images_digest, read_facts
from detrkit.report.map_scores import read_map_scores
from detrkit.report.page import RunRecord
from detrkit.report.run_log import run_log

__all__ = ["MAP_SCORES", "PREDICTIONS", "open_run", "with_detections", "with_kept_detections"]

PREDICTIONS = Path("best") / "predictions.json"
"""COCO results of the best evaluation, in the run folder."""

MAP_SCORES = Path("best") / "map_scores.json"
"""The same of maps: the score of each class and the pixels it is taken for."""


def open_run(folder: Path) -> RunRecord:
    """A run without its detections; scores of maps it has kept as they are.

    Raises:
        DataError: not a run folder.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        what = "no such folder" if not folder.exists() else "not a run folder, it has no recipe.yaml"
        raise DataError(f"{folder}: {what}; give the folder that 'detrkit train' wrote")
    text = path.read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(recipe, dict):
        raise DataError(f"{path}: not a recipe")
    log, maps = run_log(folder / "log.jsonl"), read_map_scores(folder / MAP_SCORES)
    return RunRecord(folder=folder, recipe=recipe, recipe_text=text, log=log, facts=read_facts(folder), maps=maps)


def with_kept_detections(run: RunRecord) -> RunRecord | None:
    """The run with the detections that it kept of its best evaluation; None: it kept none, or of other images.

    Raises:
        DataError: its data are not where they were.
    """
    kept = run.folder / PREDICTIONS
    if run.facts is None or run.facts.val is None or not kept.is_file():
        return None
    data = _validation_images(run.recipe, run.facts.task)
    if images_digest(data) != run.facts.val_digest:
        return None
    ids = {record.image_id for record in data.records} - set(run.facts.unreadable)
    return with_detections(run, metric_for(data), data, kept, image_ids=ids)


def with_detections(
    run: RunRecord,
    metric: Metric[Any],
    data: AnnotatedImages,
    results: Path | Sequence[Mapping[str, object]],
    *,
    image_ids: Collection[int],
) -> RunRecord:
    """The run with detections of validation images; without them where the protocol is not one of objects.

    Args:
        run: the run.
        metric: the protocol of the images.
        data: the images.
        results: detections as a COCO results list, or its file.
        image_ids: the images in which was searched.
    """
    if not isinstance(metric, InstanceMetric):
        return run
    found = read_results(results, metric.truth, iou_type=metric.iou_type)
    analysis = analyse(metric, found, image_ids=sorted(image_ids))
    places = {record.image_id: position for position, record in enumerate(data.records)}

    def read(position: int) -> Image.Image:
        return data.read_image(places[int(str(analysis.data.images[position].id))])

    return replace(run, analysis=analysis, read=read)


def _validation_images(recipe: Mapping[str, Any], task: str) -> AnnotatedImages:
    section = recipe.get("data") or {}
    files = section.get("val") or {}
    root = Path(str(section.get("root", "")))
    if not root.exists():
        raise DataError(f"{root}: the data of the run are not there any more; say where they are with --data DIR")
    source = find_source(
        root,
        "val",
        task=task,
        format=str(section.get("format", "auto")),
        annotations=_path(files.get("annotations")),
        images=_path(files.get("images")),
    )
    on_error: OnError = "skip" if section.get("on_error") == "skip" else "raise"
    return load_source(source, task=task, on_error=on_error, max_detections=section.get("max_detections"))


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))
