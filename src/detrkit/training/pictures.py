"""The pictures of a run folder: labels, training batches, predictions beside labels, curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import DataError, first_line
from detrkit.files import write_picture
from detrkit.report.best_threshold import best_threshold, class_thresholds
from detrkit.report.charts.batches import draw_batch
from detrkit.report.charts.canvas import save_chart
from detrkit.report.charts.comparisons import draw_comparisons
from detrkit.report.charts.confusion_charts import draw_confusion
from detrkit.report.charts.curves import draw_curves
from detrkit.report.charts.label_charts import draw_label_charts
from detrkit.report.charts.score_curves import draw_precision_recall, draw_threshold_curve
from detrkit.report.confusion import Confusion, confusion_matrix
from detrkit.report.map_scores import MapScores
from detrkit.report.matching import match_objects
from detrkit.report.precision_recall import all_curves
from detrkit.report.subset import threshold_of_each
from detrkit.structures.thresholds import DEFAULT_THRESHOLD
from detrkit.training.callbacks import Callback, Evaluation, Step
from detrkit.training.loggers import read_log
from detrkit.training.table import metrics_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrkit.structures import Batch
    from detrkit.training.task import Task
    from detrkit.training.trainer import Trainer

__all__ = ["PICTURES", "RunPictures", "save_batches"]

TRAIN_BATCHES = 3
VAL_SHEETS, VAL_IMAGES = 2, 4  # sheets, and images on each of them
PICTURES = (
    *("labels.png", "curves.png", "pr_curve.png", "p_curve.png", "r_curve.png", "f1_curve.png"),
    *("confusion_matrix.png", "confusion_matrix_normalized.png"),
    *(f"train_batch{number}.jpg" for number in range(TRAIN_BATCHES)),
    *(f"val_{number}.jpg" for number in range(VAL_SHEETS)),
)
"""Names of the files."""

SHARE = 0.02  # of the time of a run that drawing may take before its end


class RunPictures(Callback):
    """Draws the run: labels and the first batches when it begins; curves and the best evaluation as it goes, as far as
    this takes at most 2 % of its time, and at the end.

    A picture that cannot be drawn ends the drawing with one warning, never the run.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._spent = 0.0
        self._failed = False
        self._best: Evaluation | None = None  # not drawn yet

    def on_train_start(self, trainer: Trainer) -> None:
        """Draw the labels of the training images, unless the run is resumed."""
        if trainer.step == 0:
            data = trainer.task.train_data
            self._draw(trainer, lambda: save_chart(draw_label_charts(data), trainer.folder / "labels.png"))

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Draw the first batches."""
        if step.number > TRAIN_BATCHES:
            return
        path = trainer.folder / f"train_batch{step.number - 1}.jpg"
        self._draw(trainer, lambda: save_batches(path, step.batches, trainer.task))

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Draw the curves, and the evaluation if it is the best so far, unless that has taken too long already."""
        if evaluation.better:
            self._best = evaluation
        if self._spent <= SHARE * (time.monotonic() - self._began):
            self._draw_state(trainer)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Draw what is not drawn yet."""
        self._draw_state(trainer)

    def _draw_state(self, trainer: Trainer) -> None:
        self._draw(trainer, lambda: _draw_curves(trainer))
        best, self._best = self._best, None
        if best is not None:
            self._draw(trainer, lambda: _draw_scores(trainer.folder, best))
            self._draw(trainer, lambda: _draw_validation(trainer.folder, best, _threshold(trainer)))

    def _draw(self, trainer: Trainer, draw: Callable[[], None]) -> None:
        if self._failed:
            return
        start = time.monotonic()
        try:
            draw()
        except Exception as error:  # whatever the drawing libraries raise: the training goes on
            self._failed = True
            trainer.progress.print(
                f"warning: a picture of the run cannot be drawn ({type(error).__name__}: {first_line(error)}); no "
                "further ones are tried (logging.plots=false: none at all)"
            )
        self._spent += time.monotonic() - start


def save_batches(path: Path, batches: Sequence[Batch], task: Task) -> None:
    """Write training images as the model of the task sees them, with their labels, as a JPEG file."""
    model = task.model.config.input
    mean, std = model.image_mean or (0, 0, 0), model.image_std or (1, 1, 1)
    write_picture(path, draw_batch(batches, task.train_data.categories, mean=mean, std=std), format="JPEG")


def _draw_curves(trainer: Trainer) -> None:
    table = metrics_table(read_log(trainer.folder / "log.jsonl"))
    if table:
        metric = None if trainer.task.validation is None else trainer.task.validation.metric
        figure = draw_curves(table, scores=() if metric is None else metric.headline, title=trainer.folder.name)
        save_chart(figure, trainer.folder / "curves.png")


def _draw_scores(folder: Path, evaluation: Evaluation) -> None:
    if evaluation.score.pixels is not None:
        maps = MapScores(score=evaluation.score, columns=evaluation.metric.class_columns)
        _save(folder, _confusion_charts(maps.confusion))
    data = evaluation.objects
    if data is None or not len(data.truth):
        return
    overall, classes = all_curves(data, match_objects(data))
    best = best_threshold(overall)
    ap50 = {name: numbers.get("AP50") for name, numbers in evaluation.score.per_class.items()}
    charts = {"pr_curve": draw_precision_recall(overall, classes, ap50=ap50)}
    for name, value in (("p_curve", "precision"), ("r_curve", "recall"), ("f1_curve", "F1")):
        charts[name] = draw_threshold_curve(overall, classes, value=value, threshold=best)
    default = DEFAULT_THRESHOLD if best is None else best
    thresholds = threshold_of_each(default, class_thresholds(classes), default=default)
    _save(folder, charts | _confusion_charts(confusion_matrix(data, thresholds=thresholds)))


def _confusion_charts(confusion: Confusion) -> dict[str, Figure]:
    return {
        "confusion_matrix": draw_confusion(confusion, normalized=False),
        "confusion_matrix_normalized": draw_confusion(confusion, normalized=True),
    }


def _save(folder: Path, charts: Mapping[str, Figure]) -> None:
    for name, figure in charts.items():
        save_chart(figure, folder / f"{name}.png")


def _threshold(trainer: Trainer) -> float:
    """The score from which detections are drawn: that of the highest F1 where it is known."""
    chosen = trainer.evaluated_model.thresholds
    return DEFAULT_THRESHOLD if chosen is None else chosen.overall


def _draw_validation(folder: Path, evaluation: Evaluation, threshold: float) -> None:
    places = {record.image_id: place for place, record in enumerate(evaluation.data.records)}
    shown = [image_id for image_id in sorted(evaluation.answers) if image_id in places][: VAL_SHEETS * VAL_IMAGES]
    for number in range(-(-len(shown) // VAL_IMAGES)):
        rows = []
        for image_id in shown[number * VAL_IMAGES : (number + 1) * VAL_IMAGES]:
            try:
                image = evaluation.data.read_image(places[image_id])
            except DataError:  # with data.on_error=skip
                continue
            rows.append((image, evaluation.data.records[places[image_id]], evaluation.answers[image_id]))
        if rows:
            sheet = draw_comparisons(rows, evaluation.data.categories, threshold=threshold)
            write_picture(folder / f"val_{number}.jpg", sheet, format="JPEG")
