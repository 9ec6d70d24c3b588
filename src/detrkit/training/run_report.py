"""What a run records for its report, and the report at its end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from detrkit.errors import first_line
from detrkit.evaluation.loop import evaluate_model
from detrkit.files import write_bytes, write_json
from detrkit.metrics import Score, metric_for
from detrkit.metrics.instances import InstanceMetric
from detrkit.report.facts import NAME, Facts, data_facts, read_facts
from detrkit.report.map_scores import MapScores
from detrkit.report.page import write_report
from detrkit.report.run_folder import MAP_SCORES, PREDICTIONS, open_run, with_detections
from detrkit.structures import Detections
from detrkit.structures.detections import result_rows
from detrkit.training.callbacks import Callback, Evaluation
from detrkit.training.task import SHORT_FINE_TUNING, SHORT_STEPS

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["RunReport"]

_LOOKED_AT = 30  # images of each split, for the edges below boxes
_SCORED = 50  # training images that are scored at the end, fewer where that would take longer than …
_SECONDS = 20.0
_SAID = 50  # urgency of the advice that is printed too


class RunReport(Callback):
    """Keeps the detections of the best evaluation in ``best/predictions.json``, of maps their scores in
    ``best/map_scores.json``; at the end of a finished run writes ``facts.json`` and ``report.html``.

    What cannot be written is one warning and never ends the run.
    """

    def __init__(self) -> None:
        self._unreadable: tuple[int, ...] | None = None  # not known: no evaluation in this session
        self._each = 0.0  # seconds that the last evaluation took for an image

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Keep the detections of the best evaluation, or the scores of its maps."""
        self._each = evaluation.seconds / max(1, len(evaluation.of.data))
        if not evaluation.better:
            return
        if evaluation.score.pixels is not None:
            maps = MapScores(score=evaluation.score, columns=evaluation.metric.class_columns)
            try:
                write_json(trainer.folder / MAP_SCORES, maps.to_json(), force=True)
            except Exception as error:
                _warn(trainer, "the scores of the best evaluation cannot be kept", error)
        if not isinstance(evaluation.of.metric, InstanceMetric):
            return
        found = {number: one for number, one in evaluation.answers.items() if isinstance(one, Detections)}
        self._unreadable = tuple(sorted({record.image_id for record in evaluation.of.data.records} - found.keys()))
        try:
            write_bytes(trainer.folder / PREDICTIONS, json.dumps(result_rows(found), separators=(",", ":")).encode())
        except Exception as error:
            _warn(trainer, "the detections of the best evaluation cannot be kept", error)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Write facts and report."""
        if error is not None:
            return
        try:
            facts = self._facts(trainer)
            write_json(trainer.folder / NAME, facts.to_json(), force=True)
            run, validation = open_run(trainer.folder), trainer.task.validation
            kept = trainer.folder / PREDICTIONS
            if validation is not None and kept.is_file():
                ids = {record.image_id for record in validation.data.records} - set(facts.unreadable)
                run = with_detections(run, validation.metric, validation.data, kept, image_ids=ids)
            trainer.progress.print(f"report: {write_report(run)}")
            if run.advice and run.advice[0].urgency >= _SAID:
                trainer.progress.print(f"next: {run.advice[0].title}: {run.advice[0].reason}")
        except Exception as problem:  # whatever a drawing or an odd data set raises: the weights are there
            _warn(trainer, "the report cannot be written", problem)

    def _facts(self, trainer: Trainer) -> Facts:
        task, config = trainer.task, trainer.model.config
        validation = None if task.validation is None else task.validation.data
        count = _SCORED if self._each == 0 else min(_SCORED, max(8, int(_SECONDS / self._each)))
        score = _score_on_training_images(trainer, count)
        earlier = read_facts(trainer.folder) if self._unreadable is None else None
        return data_facts(
            task.train_data,
            validation,
            short_side=config.input.eval_short_side,
            max_side=config.input.eval_max_side,
            look=_LOOKED_AT,
            unreadable=self._unreadable or (() if earlier is None else earlier.unreadable),
            parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
            queries=config.architecture.num_queries,
            device=str(trainer.accelerator.device),
            train_score=None if score is None else score.value,
            train_images=0 if score is None else min(count, len(task.train_data)),
            short_steps=SHORT_STEPS if trainer.recipe.model.init is None else SHORT_FINE_TUNING,
            task=config.architecture.task,
        )


def _score_on_training_images(trainer: Trainer, count: int) -> Score | None:
    """The score on some of the training images, prepared as in an evaluation; None without evaluations."""
    data = trainer.task.train_data
    if trainer.task.validation is None or len(data) == 0:
        return None
    records = data.unique_records()
    step = max(1, len(records) // count)
    sample = replace(data, records=records[::step][:count], chances=None)
    return evaluate_model(
        trainer.evaluated_model,
        sample,
        metric=metric_for(sample),
        batch_size=trainer.evaluation_batch,
        device=trainer.accelerator.device,
        precision=trainer.recipe.training.precision,
    )


def _warn(trainer: Trainer, what: str, error: Exception) -> None:
    trainer.progress.print(f"warning: {what} ({type(error).__name__}: {first_line(error)})")
