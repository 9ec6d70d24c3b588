"""The table of what each recipe does with one process, with two, four and eight."""

from __future__ import annotations

from detrkit.config import Recipe, load_recipe
from detrkit.training.optimizer import lr_factor
from generator.headers import headers
from generator.tables import table

__all__ = ["SECTIONS"]

PROCESSES = (1, 2, 4, 8)


def recipes() -> str:
    """Images per step, learning rate and, where a recipe counts steps, their number for the same images."""
    counts = ["1 process", *(f"{count} processes" for count in PROCESSES[1:])]
    rows = []
    for header in headers():
        recipe = load_recipe(header.path)
        training = recipe.training
        per_process = str(training.batch_size) + (f" x {training.accumulate}" if training.accumulate > 1 else "")
        length = f"{training.epochs} epochs" if training.iterations is None else f"{training.iterations:,} steps"
        cells = [_cell(recipe, count) for count in PROCESSES]
        rows.append([f"[`{header.name}`]({header.link})", per_process, length, *cells])
    return table(["recipe", "images per process", "length", *counts], rows)


def _cell(recipe: Recipe, processes: int) -> str:
    """What a step is with so many processes; bold where it is as the rate was chosen for."""
    training, optimizer = recipe.training, recipe.optimizer
    batch = training.batch_size * training.accumulate * processes
    text = f"{batch} at {optimizer.lr * lr_factor(optimizer, batch):.3g}"
    chosen = optimizer.lr_batch_size
    if training.iterations is not None and chosen is not None:
        text += f", {round(training.iterations * chosen / batch):,}"
    return f"**{text}**" if batch == chosen else text


SECTIONS = {"recipes on several processes": recipes}
