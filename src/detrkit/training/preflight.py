"""``detrkit train --check``: what a training will meet, before it: sizes, batches, cost, and four images to learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.data import collate
from detrkit.report.label_check import size_doubts
from detrkit.terminal import say
from detrkit.training.batch_fit import fit_batch
from detrkit.training.cost import measure_cost, say_cost
from detrkit.training.overfit import Overfit, overfit
from detrkit.training.pictures import save_batches
from detrkit.training.progress import TrainingProgress
from detrkit.training.rng import preserved_rng, seed_everything
from detrkit.training.task import Task, build_task, epoch_sampler, require_backbone, resolve
from detrkit.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

    from detrkit.config import Recipe

__all__ = ["preflight"]

PICTURES, IMAGES = 2, 4
MINUTES = 5.0


def preflight(recipe: Recipe, accelerator: Accelerator, *, folder: Path, minutes: float = MINUTES) -> Overfit:
    """Look at what a training of this recipe will meet, and say it: the size of objects, what a step costs, and whether
    four of the images can be learned. Writes what the model sees to ``folder``; trains nothing that is kept.

    Raises:
        DataError, RecipeError, CheckpointError: as :func:`detrkit.train`.
    """
    require_backbone(recipe)
    seed_everything(recipe.training.seed)
    task = build_task(recipe)
    config = task.model.config
    validation = None if task.validation is None else task.validation.data
    for doubt in size_doubts(
        recipe,
        task.train_data,
        validation,
        short_side=config.input.eval_short_side,
        max_side=config.input.eval_max_side,
        queries=config.architecture.num_queries,
    ):
        say(f"note: {doubt.text}")
    if recipe.training.auto_batch:
        recipe = fit_batch(recipe, task, accelerator)
    sampler = epoch_sampler(recipe, task.train_data, accelerator)
    recipe = resolve(recipe, batches_per_epoch=len(sampler), folder=folder)
    trainer = Trainer(recipe=recipe, task=task, sampler=sampler, accelerator=accelerator, folder=folder)
    trainer.progress = TrainingProgress(trainer.total_steps)
    for path in _draw(task, folder):
        say(f"what the model will see: {path}")
    cost = measure_cost(trainer)
    if cost is not None:
        say_cost(trainer, cost, checking=True)
    del trainer
    say(f"learning four images by heart, {minutes:g} minutes at most …")
    return overfit(recipe, task, accelerator, folder=folder / "four_images", minutes=minutes)


def _draw(task: Task, folder: Path) -> list[Path]:
    """Some training images after augmentation, with their labels."""
    data = task.train_data
    filled = [place for place, record in enumerate(data.records) if len(record.labels)]
    step, written = max(1, len(filled) // (PICTURES * IMAGES)), []
    chosen = filled[::step][: PICTURES * IMAGES]
    for number in range(-(-len(chosen) // IMAGES)):
        with preserved_rng():
            batch = collate([data[place] for place in chosen[number * IMAGES : (number + 1) * IMAGES]])
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"check_batch{number}.jpg")
        save_batches(written[-1], [batch], task)
    return written
