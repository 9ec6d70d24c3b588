"""``detrkit predict``: objects, masks, segments or classes of pixels in images; writes JSON, maps and pictures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from detrkit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.inference.prediction_folder import PredictionFolder
    from detrkit.inference.predictor import Predictor
    from detrkit.inference.sources import ImageInput

__all__ = ["PredictCommand", "predict_command", "predict_images"]

_DEFAULT_NMS = "0.7"  # DEFAULT_NMS of the predictor; importing it would load torch for --help


class OnError(StrEnum):
    """Policy for unreadable images."""

    skip = "skip"
    stop = "raise"


class TaskName(StrEnum):
    """Detections, instances, classes of pixels, panoptic segments."""

    det = "det"
    inst = "inst"
    sem = "sem"
    pan = "pan"


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
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE|DIR|URL", help="Images, folders of images, URLs.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
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
            help="Minimum score; 0 keeps all top-k. Default 0.3; for pan the model's own, for sem none.",
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
    images: Annotated[bool, typer.Option("--images/--no-images", help="Draw annotated pictures.")] = True,
    on_error: Annotated[OnError, typer.Option("--on-error", help="Unreadable images: skip or stop.")] = OnError.skip,
) -> None:
    """Find objects in images.

    Writes predictions.json and results.json (COCO), annotated pictures below images/, and skipped.json, the list of
    images that could not be read. Task pan also writes panoptic.json and panoptic/ (COCO panoptic), task sem writes
    classes.json and semantic/ (class maps). Predictions of an earlier run in the same folder are replaced.
    """
    from detrkit.cli.console import local_checkpoint, stderr, stdout
    from detrkit.inference.answers import check_task
    from detrkit.inference.earlier_run import MAP_FOLDERS, TASK_FILES, earlier_maps
    from detrkit.inference.prediction_folder import PredictionFolder
    from detrkit.inference.predictor import Predictor
    from detrkit.inference.sources import find_images
    from detrkit.models.presets import DEFAULT_MODEL

    written = [out / "images", *earlier_maps(out)]
    found = find_images(inputs, written=written)
    predictor = Predictor(
        local_checkpoint(model or DEFAULT_MODEL), device=device, batch_size=batch_size, nms=nms, nms_decay=nms_decay
    )
    chosen = check_task(predictor.config, None if task is None else task.value)
    if chosen in MAP_FOLDERS:
        found = find_images(inputs, written=[*written, out / MAP_FOLDERS[chosen]])
    folder = PredictionFolder(
        out, predictor.categories, pictures=images, task=chosen, file_names=[item.file_name for item in found]
    )
    try:
        predict_images(predictor, found, folder, threshold=threshold, skip=on_error is OnError.skip)
    except KeyboardInterrupt:
        if folder.count:
            folder.write()
        stderr().print(f"stopped after {folder.count} of {len(found)} images; {out} holds their results", markup=False)
        raise
    if folder.count == 0:
        raise DataError(
            f"none of {len(found)} images can be read: {folder.skipped[0]['error']}"
            if len(found) > 1
            else folder.skipped[0]["error"]
        )
    folder.write()
    console = stdout()
    console.soft_wrap = True
    console.print(f"{folder.count} images, {_summary(folder.counts(), chosen)}", markup=False)
    files = [out / "predictions.json", *([out / TASK_FILES[chosen]] if chosen in TASK_FILES else [])]
    console.print(" and ".join(map(str, files)) + (f", pictures in {out / 'images'}" if images else ""), markup=False)
    if folder.skipped:
        stderr().print(f"{len(folder.skipped)} unreadable images skipped: {out / 'skipped.json'}", markup=False)


def _summary(counts: dict[str, int], task: str) -> str:
    """What was found, in words."""
    total = sum(counts.values())
    if task == "sem":
        shares = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
        return f"share of pixels: {shares or 'none'}"
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{total} {'segments' if task == 'pan' else 'objects'} ({listed or 'none'})"


def predict_images(
    predictor: Predictor, inputs: list[ImageInput], folder: PredictionFolder, *, threshold: float | None, skip: bool
) -> None:
    """Predict images in batches, with a progress bar, and write the results into a folder.

    Raises:
        DataError: an image cannot be read and ``skip`` is off.
    """
    from detrkit.cli.console import progress_bar
    from detrkit.inference.sources import open_image

    batch: list[tuple[ImageInput, Image.Image]] = []

    def flush() -> None:
        answers = predictor.predict([picture for _, picture in batch], threshold, folder.task)
        for (item, picture), found in zip(batch, answers, strict=True):
            folder.add(item.file_name, found, picture)
        batch.clear()

    with progress_bar("predicting", total=len(inputs)) as bar:
        for number, item in enumerate(inputs, start=1):
            try:
                batch.append((item, open_image(item.source)))
            except DataError as error:
                if not skip:
                    raise
                folder.skip(item.file_name, str(error))
            if len(batch) == predictor.batch_size or number == len(inputs):
                flush()
                bar.update(number)
