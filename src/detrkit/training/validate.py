"""The evaluation of a run's model on its validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from detrkit.evaluation.loop import evaluate_model
from detrkit.metrics import Score
from detrkit.structures import Detections
from detrkit.training.rng import preserved_rng
from detrkit.training.task import Validation

if TYPE_CHECKING:
    from detrkit.inference.tasks import Answer
    from detrkit.training.trainer import Trainer

__all__ = ["MAPS_KEPT", "validate"]

MAPS_KEPT = 8  # panoptic and semantic maps of whole images; detections are small and kept of all


def validate(trainer: Trainer, validation: Validation) -> tuple[Score, dict[int, Answer]]:
    """Score the model, with its averaged weights when EMA is on; the training does not see the draws inside.

    Returns:
        The score, the same on every process, and the answers of all processes by image id, for the first process: all
        detections, or the first few maps.
    """
    section, accelerator = trainer.recipe.training, trainer.accelerator
    answers: dict[int, Answer] = {}

    def keep(image_id: int, found: Answer) -> None:
        if isinstance(found, Detections) or len(answers) < MAPS_KEPT:
            answers.setdefault(image_id, found)

    with preserved_rng():
        score = evaluate_model(
            trainer.evaluated_model,
            validation.data,
            metric=validation.metric,
            batch_size=trainer.evaluation_batch,
            workers=section.workers,
            device=accelerator.device,
            progress=trainer.progress.evaluating,
            precision=section.precision,
            accelerator=accelerator,
            seen=keep,
        )
    if accelerator.num_processes > 1:
        parts = gather_object([answers])
        answers = {image_id: found for part in reversed(parts) for image_id, found in part.items()}
    return score, answers
