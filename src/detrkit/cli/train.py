"""``detrkit train``: train a recipe, or a recipe chosen from a data folder, with ``key=value`` overrides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.quick_imports import quick_imports
from detrkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from detrkit.config import Recipe
    from detrkit.training import RunResult

__all__ = ["recipe_from_data", "train_command"]


def train_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="Recipe (file, name or run folder), and overrides such as training.epochs=20 or lr=2e-4.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Data folder (data.root).")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Model (model.name).")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="NAME|CKPT", help="Start from a trained detector: name, checkpoint, run (model.init)."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Run folder; default runs/<recipe>-<data>.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Train each seed, print mean ± std.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="60", help="Plan the run for this time, evaluations included (training.minutes)."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder exactly.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Train nothing: check the labels, say the cost, learn four images (--minutes, default 5)."
        ),
    ] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases.")] = False,
) -> None:
    """Train a model; writes last/, best/model.safetensors, recipe.yaml, log.jsonl, metrics.csv and pictures (curves,
    labels, batches, predictions beside labels, precision and recall, confusion matrix) into the run folder.

    With --data and without a recipe, the settings are chosen from the data: model, queries, image size, augmentation,
    50 epochs or at least 3000 optimizer steps. Each choice is printed with its reason and written to recipe.yaml;
    --model and overrides win. A model that you name starts from its published detector, which is downloaded the first
    time, where there is one, else from ImageNet weights of its backbone; model.init=FILE, model.init=null and --offline
    choose otherwise. Nothing else is downloaded. --resume without --output finds the run on this data in runs/.

    The total batch is batch_size x accumulate x processes: with optimizer.lr_batch_size=B the learning rate is
    multiplied by sqrt(total batch / B), otherwise it is used unchanged.

    Several processes: accelerate launch --num_processes N -m detrkit train ...
    """
    recipes = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [argument for argument in arguments or [] if "=" in argument]
    if len(recipes) > 1:
        raise RecipeError(f"train takes one recipe, not {len(recipes)}: {', '.join(recipes)}")
    if not recipes and data is None:
        raise RecipeError("train needs a recipe or --data DIR (detrkit train --help)")
    if data is not None and not data.exists():
        raise DataError(f"{data}: no such data folder")
    if check and (resume or overwrite or seeds is not None):
        raise RecipeError("--check comes before a training: give it without --resume, --overwrite and --seeds")
    if check and minutes is not None and not 0 < minutes < math.inf:
        raise RecipeError(f"--minutes {minutes:g}: give the four images a time above 0")
    if resume and overwrite:
        raise RecipeError("--resume continues the run that --overwrite deletes: give one of them")

    from detrkit.config import load_recipe
    from detrkit.data.once import read_once

    options = {"data.root": data, "model.name": model, "model.init": init, "training.output": output}
    given: dict[str, Any] = {key: str(value) for key, value in options.items() if value is not None}
    if minutes is not None and not check:
        given["training.minutes"] = str(minutes)
    if wandb:
        given["logging.wandb"] = True
    more = [] if seeds is None else [f"training.seeds=[{seeds}]"]

    with read_once():  # the choice of the recipe and the training read the same files
        if check:
            _check_labels(load_recipe(load_recipe(recipes[0] if recipes else {}, given), overrides))
        if recipes:
            recipe = load_recipe(load_recipe(recipes[0], given), [*more, *overrides])
        else:
            recipe = recipe_from_data(str(data), given, [*more, *overrides], resume=resume)

        if check:
            _check_run(recipe, minutes)
            return
        with quick_imports():
            from detrkit.terminal import say
            from detrkit.training import train
            from detrkit.training.folder import run_folder
            from detrkit.training.interrupt import Interrupted
        folder = run_folder(recipe)
        if resume and not any(folder.glob("last*")) and not any(folder.glob("seed*/last*")):
            say(f"--resume: {folder} holds no run to continue; a new one starts")
        try:
            result = train(recipe, resume=resume, overwrite=overwrite)
        except Interrupted as stop:
            typer.echo(str(stop), err=True)
            raise typer.Exit(stop.exit_code) from None
    _report(result)


def _check_labels(recipe: Recipe) -> None:
    """Say what is wrong with the labels; end where a training would be in vain."""
    from detrkit.models.presets import preset_task
    from detrkit.report.label_check import label_doubts
    from detrkit.terminal import say

    doubts = label_doubts(recipe, str(recipe.model.overrides.get("task") or preset_task(recipe.model.name)))
    for doubt in doubts:
        say(f"{'fault' if doubt.stops else 'note'}: {doubt.text}")
    faults = sum(doubt.stops for doubt in doubts)
    if faults:
        say(
            f"not ready to train: {faults} fault{'s' * (faults > 1)} of the labels; all cases: detrkit data check "
            f"{recipe.data.root}, pictures: detrkit data view {recipe.data.root} --out LOOK"
        )
        raise typer.Exit(1)


def _check_run(recipe: Recipe, minutes: float | None) -> None:
    """Say what a run of this recipe will meet; exit code 1 where four images cannot be learned."""
    from detrkit.training.folder import run_folder
    from detrkit.training.preflight import MINUTES, preflight
    from detrkit.training.run import accelerator_of

    folder = run_folder(recipe)
    found = preflight(
        recipe,
        accelerator_of(recipe),
        folder=folder.with_name(folder.name + "-check"),
        minutes=MINUTES if minutes is None else minutes,
    )
    typer.echo(f"four images: {found}")
    raise typer.Exit(1 if found.verdict == "failed" else 0)


def recipe_from_data(data: str, given: dict[str, Any], overrides: list[str], *, resume: bool) -> Recipe:
    """The recipe chosen from the data; with ``resume``, the recipe of the existing run."""
    from detrkit.config import load_recipe, override_values

    with quick_imports():
        from detrkit.training import auto_recipe
        from detrkit.training.auto.draft import Draft
        from detrkit.training.auto.model_choice import choose_model, fetch_start
        from detrkit.training.folder import find_run
        from detrkit.training.task import require_backbone
    values = {**override_values(given), **override_values(overrides)}
    existing = find_run(values) if resume else None
    if existing is None:
        if "model.init" not in values:  # before the data are read, which may take long
            choose_model(Draft(values), gpu=False)  # nothing is fetched for options that no model has
            fetch_start(values)
            draft = Draft(values)
            choose_model(draft, gpu=False)
            require_backbone(draft.recipe())
        return auto_recipe(data, overrides, **given)
    folder, recipe = existing
    return load_recipe(load_recipe(recipe, {"training.output": str(folder), **given}), overrides)


def _report(result: RunResult) -> None:
    """Print the best score, the path of the weights and the next command."""
    from accelerate.state import PartialState

    from detrkit.training.progress import format_metrics

    if not PartialState().is_main_process:
        return
    metrics = result.metrics
    if "mean" not in metrics:
        typer.echo(f"best: {format_metrics(metrics, result.headline)}" if metrics else "not evaluated")
    typer.echo(f"weights: {result.best}")
    typer.echo(f"try them: detrkit predict IMAGE --model {result.best}")
