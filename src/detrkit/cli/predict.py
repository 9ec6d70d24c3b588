"""``detrkit predict``: objects, masks, segments or classes of pixels in images; writes JSON, maps and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from detrkit.cli.choices import OnError, TaskName
from detrkit.errors import DataError, RunError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from detrkit.data.images import Picture
    from detrkit.inference.prediction_folder import PredictionFolder
    from detrkit.inference.sources import ImageInput
    from detrkit.inference.tasks import ImagePredictor
    from detrkit.runtime.engines import Engine
    from detrkit.structures import Categories, Thresholds

__all__ = ["PredictCommand", "predict_command", "predict_images", "thresholds_line"]

_DEFAULT_NMS = "0.7"  # DEFAULT_NMS of the predictor; importing it would load torch for --help

_LISTED = 8  # classes whose thresholds are printed one by one
_LOOKED_AT = 10  # images at most that are predicted again to say their best score


class LabelsShown(StrEnum):
    """Objects that are named in pictures."""

    auto = "auto"
    all = "all"
    none = "none"


class FileFormat(StrEnum):
    """Files that are written besides those of COCO."""

    coco = "coco"
    csv = "csv"
    yolo = "yolo"
    crops = "crops"
    cityscapes = "cityscapes"


class PredictCommand(TyperCommand):
    """Allow ``--nms`` without a value: typer has no options with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for position, word in enumerate(args, start=1):
            words.append(word)
            if word == "--nms" and not (position < len(args) and _is_number(args[position])):
                words.append(_DEFAULT_NMS)
        return super().parse_args(ctx, words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def predict_command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE|DIR|URL", help="Images, folders of images, patterns, URLs.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--checkpoint",
            metavar="NAME|CKPT",
            help="Trained model's name, checkpoint, run folder or URL; default embedded.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path("predictions"),
    task: Annotated[
        TaskName | None, typer.Option("--task", help="Default: the task that the model was trained for.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            help="Minimum score; 0 keeps all top-k. Default: that of the checkpoint for each class, chosen on "
            "validation images, else 0.3 (0 with --format cityscapes); for pan the model's own, for sem none.",
        ),
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option(
            "--nms", min=0, max=1, metavar="[IOU]", help=f"Class-wise NMS; without a value, at IoU {_DEFAULT_NMS}."
        ),
    ] = None,
    nms_decay: Annotated[
        float | None,
        typer.Option("--nms-decay", min=0, max=1, help="Soft NMS: factor on suppressed scores, e.g. 0.01."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="A,B", help="Only these classes: names or ids of the data set."),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option("--max-detections", min=1, help="Detections of an image at most, best first.")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Predict the mirror image too; better boxes, twice the time.")
    ] = False,
    file_formats: Annotated[
        list[FileFormat] | None,
        typer.Option(
            "--format",
            help="Files besides COCO's, may be repeated: csv, yolo (label files), crops (pictures of the objects), "
            "cityscapes (what its benchmark takes).",
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Draw annotated pictures.")] = True,
    labels: Annotated[
        LabelsShown,
        typer.Option("--labels", help="Names in pictures; auto: those that do not cover a crowded picture."),
    ] = LabelsShown.auto,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max-pixels", min=1, help="Larger images are skipped, JPEGs read smaller. Default: what fits into memory."
        ),
    ] = None,
    on_error: Annotated[OnError, typer.Option("--on-error", help="Unusable images: skip or stop.")] = OnError.skip,
) -> None:
    """Find objects in images.

    Writes predictions.json and results.json (COCO), annotated pictures below images/, and skipped.json, the list of
    images that could not be used, with the reasons. Task pan also writes panoptic.json and panoptic/ (COCO panoptic),
    task sem writes classes.json and semantic/ (class maps). --format csv adds predictions.csv, yolo labels/ (with
    scores), crops a picture of each object below crops/<class>/, cityscapes what its benchmark takes of inst, sem or
    pan. Predictions of an earlier run in this folder are replaced.
    """
    opened = _start_engine(model, device)

    from PIL import Image

    from detrkit.cli.console import print_line
    from detrkit.inference.cityscapes_submission import SUBMISSION, CityscapesSubmission
    from detrkit.inference.earlier_run import MAP_FOLDERS, TASK_FILES, earlier_files
    from detrkit.inference.object_files import CROPS
    from detrkit.inference.prediction_folder import PredictionFolder
    from detrkit.inference.sources import find_images
    from detrkit.inference.tasks import check_task

    if max_pixels is not None:  # Pillow has a limit of its own, and refuses images of twice as many
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    earlier = earlier_files(out, "det")
    written = [out / "images"] if images else []
    formats = {one.value for one in file_formats or []}
    submits = "cityscapes" in formats
    written += [out / SUBMISSION] if submits else []
    written += [out / CROPS] if CROPS in formats else []
    found = find_images(inputs, written=written, earlier=earlier)
    options: dict[str, Any] = {"batch_size": batch_size, "nms": nms, "nms_decay": nms_decay, "max_pixels": max_pixels}
    options |= {"classes": classes, "max_detections": max_detections, "tta": tta}
    wanted = None if task is None else task.value
    predictor = _predictor_for(wanted, model, device, opened, options)
    chosen = check_task(predictor.tasks[0], wanted)
    if chosen in MAP_FOLDERS:
        found = find_images(inputs, written=[*written, out / MAP_FOLDERS[chosen]], earlier=earlier)
    folders = [Path(word) for word in inputs if os.path.isdir(word)]
    listed = None
    if folders:
        from detrkit.inference.data_set_ids import data_set_ids  # with all formats, which single images need not

        listed = data_set_ids(folders, found)
    if listed is not None:
        print_line(f"image ids are those of {listed.origin}", to_stderr=True)
    file_names = [item.file_name for item in found]
    submission = CityscapesSubmission(predictor.categories, task=chosen, file_names=file_names) if submits else None
    if submits and chosen == "inst" and threshold is None:
        threshold = 0.0  # the benchmark counts any number of detections
    folder = PredictionFolder(
        out,
        predictor.categories,
        pictures=images,
        task=chosen,
        labels=labels.value,
        file_names=file_names,
        image_ids=None if listed is None else listed.of(found),
        submission=submission,
        formats=formats,
    )
    with folder.claimed():
        try:
            predict_images(predictor, found, folder, threshold=threshold, skip=on_error is OnError.skip)
        except BaseException:
            _keep(folder, len(found))
            raise
        if folder.count == 0:
            raise DataError(
                f"none of {len(found)} images can be used: {folder.skipped[0]['error']}"
                if len(found) > 1
                else folder.skipped[0]["error"]
            )
        folder.write()
    chosen_for = predictor.default_thresholds(chosen) if threshold is None else None
    if chosen_for is not None:
        print_line(thresholds_line(chosen_for, predictor.categories), to_stderr=True)
    print_line(f"{folder.count} images, {_summary(folder.counts(), chosen)}")
    files = [out / "predictions.json", *([out / TASK_FILES[chosen]] if chosen in TASK_FILES else [])]
    files += [out / SUBMISSION] if submits else []
    files += folder.object_paths
    print_line(" and ".join(map(str, files)) + (f", pictures in {out / 'images'}" if images else ""))
    if folder.skipped:
        print_line(f"{len(folder.skipped)} images skipped: {out / 'skipped.json'} says why", to_stderr=True)
    if chosen in ("det", "inst") and not folder.counts():
        print_line(_best_score(predictor, found, folder), to_stderr=True)


def _start_engine(model: str | None, device: str) -> Future[Engine] | None:
    """An exported model that needs no torch, opened while other modules are imported; None: it is another file."""
    from detrkit.runtime.engines import needs_no_torch, open_engine

    if model is None or device not in ("auto", "cpu") or not needs_no_torch(model) or not os.path.isfile(model):
        return None
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1).submit(open_engine, model)


def _predictor_for(
    task: str | None, model: str | None, device: str, opened: Future[Engine] | None, options: Mapping[str, Any]
) -> ImagePredictor:
    """The predictor of a model; an exported one finds boxes without torch, whose import takes seconds."""
    if opened is not None and model is not None:
        from detrkit.inference.artefact_predictor import ArtefactPredictor, answers_without_torch

        engine = opened.result()
        if answers_without_torch(engine.info, task) and not options["tta"]:
            own = {name: value for name, value in options.items() if name != "tta"}
            return ArtefactPredictor(engine, Path(model), **own)
    from detrkit.cli.console import local_checkpoint
    from detrkit.cli.quick_imports import quick_imports
    from detrkit.models.presets import DEFAULT_MODEL

    weights: Any = local_checkpoint(DEFAULT_MODEL if model is None else model)
    with quick_imports():
        from detrkit.inference.predictor import Predictor

        if opened is not None:
            from detrkit.weights.artefact import ArtefactDetector

            weights = ArtefactDetector(opened.result(), Path(weights))
        return Predictor(weights, device=device, **options)


def thresholds_line(thresholds: Thresholds, categories: Categories) -> str:
    """Which thresholds of a checkpoint are used, in words."""
    own = dict(zip(categories, thresholds.per_class, strict=True))
    named = {str(category.name): value for category, value in own.items() if category.name is not None}
    values = [value for value in named.values() if value is not None]
    text = f"{thresholds.overall:.2f}"
    if 0 < len(values) <= _LISTED:
        listed = ", ".join(f"{name} {value:.2f}" for name, value in named.items() if value is not None)
        text = listed if len(values) == len(named) else f"{listed}, else {text}"
    elif values:
        text += f" ({min(values):.2f} to {max(values):.2f} for {len(values)} classes)"
    return f"score thresholds: {text} (highest F1 on the validation images; --threshold chooses another)"


def _keep(folder: PredictionFolder, total: int) -> None:
    """Write what there is when the prediction ends early."""
    from detrkit.cli.console import print_line

    done = f"stopped after {folder.count} of {total} images"
    if folder.count:
        try:
            folder.write()
        except RunError as error:
            done += f", whose results cannot be kept: {error}"
        else:
            done += f"; {folder.folder} holds their results"
    print_line(done, to_stderr=True)


def _best_score(predictor: ImagePredictor, inputs: list[ImageInput], folder: PredictionFolder) -> str:
    """A hint where nothing reached the threshold: the best score in the first images that could be read."""
    skipped = {row["file_name"] for row in folder.skipped}
    looked_at = [item for item in inputs if item.file_name not in skipped][:_LOOKED_AT]
    best, where = 0.0, "the image" if len(looked_at) == 1 else f"{len(looked_at)} images"
    for item in looked_at:
        try:
            scores = predictor.predict(item.source, 0.0, "det").scores
        except Exception:  # a hint never fails what is done: a server may have closed, memory may run out
            continue
        best = max(best, float(scores.max(initial=0)))
    lower = math.floor(best * 10) / 10
    advice = f"try --threshold {lower:g}" if lower > 0 else "--threshold 0 keeps everything"
    return f"nothing reached the threshold: the best score in {where} was {best:.2f}; {advice}"


def _summary(counts: dict[str, int], task: str) -> str:
    """What was found, in words."""
    total = sum(counts.values())
    if task == "sem":
        shares = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
        return f"share of pixels: {shares or 'none'}"
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{total} {'segments' if task == 'pan' else 'objects'} ({listed or 'none'})"


def predict_images(
    predictor: ImagePredictor,
    inputs: list[ImageInput],
    folder: PredictionFolder,
    *,
    threshold: float | None,
    skip: bool,
) -> None:
    """Predict images in batches, with a progress bar, and write the results into a folder.

    Raises:
        DataError: an image cannot be read and ``skip`` is off.
    """
    from detrkit.cli.console import progress_bar

    batch: list[tuple[ImageInput, Picture]] = []

    def answer(pairs: list[tuple[ImageInput, Picture]]) -> None:
        try:
            answers = predictor.predict([picture.image for _, picture in pairs], threshold, folder.task)
        except Exception as error:
            if not skip or not _is_out_of_memory(error):
                raise
            if len(pairs) == 1:
                folder.skip(pairs[0][0].file_name, "not enough memory to predict this image; make it smaller")
                return
            for pair in pairs:
                answer([pair])
            return
        for (item, picture), found in zip(pairs, answers, strict=True):
            folder.add(item.file_name, found, picture)

    with progress_bar("predicting", total=len(inputs)) as bar:
        for number, item in enumerate(inputs, start=1):
            try:
                batch.append((item, predictor.open(item.source, tasks=[folder.task])))
            except DataError as error:
                if not skip:
                    raise
                folder.skip(item.file_name, str(error))
            if len(batch) == predictor.batch_size or number == len(inputs):
                answer(batch)
                batch.clear()
                bar.update(number)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the CPU (where torch raises a RuntimeError) or on a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower())
