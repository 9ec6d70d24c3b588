"""``detrkit train``: a recipe, or a data folder and a model name, with ``key=value`` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detrkit.errors import DataError, RecipeError

__all__ = ["small_data_recipe", "train_command"]

DEFAULT_MODEL = "dela_detr_lite0"


def small_data_recipe(data: str, model: str) -> dict[str, Any]:
    """The settings for one's own images when no recipe is given: a few hundred images, one device.

    Epochs: 50, or as many as give 3000 optimizer steps (``training.epochs`` null); evaluation at most every 100 steps.
    The laptop models learn from a higher rate than the published one of the full-size models.
    """
    laptop = "_lite" in model
    return {
        "model": {"name": model},
        "data": {"root": data},
        "training": {"ema": 0.998},
        "optimizer": {"lr": 3e-4, "lr_backbone": 6e-5} if laptop else {"lr": 1e-4, "lr_backbone": 1e-5},
        "schedule": {"kind": "cosine", "warmup": 100},
    }


def train_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="Recipe (file, name or run folder), and overrides such as training.epochs=20 or lr=2e-4.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Data folder (data.root).")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help=f"Model (model.name); default {DEFAULT_MODEL}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Run folder; default runs/<recipe>-<data>.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,2", help="Train each seed, print mean ± std.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder exactly.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder.")] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases.")] = False,
) -> None:
    """Train a model; writes last/, best/model.safetensors, recipe.yaml and log.jsonl into the run folder.

    With --data and without a recipe: settings for small data. 50 epochs or as many as give 3000 optimizer steps,
    whichever is more: detection transformers that see fewer steps than about 1500 end at AP 0.

    The learning rate belongs to a total batch = batch_size x accumulate x processes: with optimizer.lr_batch_size=B it
    is multiplied by sqrt(total batch / B), otherwise it is used as it stands.

    Several processes: accelerate launch --num_processes N -m detrkit train ...
    """
    recipes = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [argument for argument in arguments or [] if "=" in argument]
    if len(recipes) > 1:
        raise RecipeError(f"train takes one recipe, not {len(recipes)}: {', '.join(recipes)}")
    if not recipes and data is None:
        raise RecipeError("train needs a recipe or --data DIR (detrkit train --help)")
    if data is not None and not data.is_dir():
        raise DataError(f"{data}: no such data folder")
    if resume and overwrite:
        raise RecipeError("--resume continues the run that --overwrite deletes: give one of them")

    from detrkit.config import load_recipe

    options = {"data.root": data, "model.name": model, "training.output": output}
    given: dict[str, Any] = {key: str(value) for key, value in options.items() if value is not None}
    if wandb:
        given["logging.wandb"] = True
    source = recipes[0] if recipes else small_data_recipe(str(data), model or DEFAULT_MODEL)
    more = [] if seeds is None else [f"training.seeds=[{seeds}]"]
    recipe = load_recipe(load_recipe(source, given), [*more, *overrides])

    from detrkit.training import train
    from detrkit.training.interrupt import Interrupted

    try:
        result = train(recipe, resume=resume, overwrite=overwrite)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(stop.exit_code) from None
    _report(result)


def _report(result: Any) -> None:
    """The last lines: best AP, where the weights are, and what to do with them."""
    from accelerate.state import PartialState

    from detrkit.training.progress import format_metric

    if not PartialState().is_main_process:
        return
    metrics = result.metrics
    if "mean" not in metrics:
        numbers = " ".join(f"{name} {format_metric(metrics.get(name))}" for name in ("AP", "AP50", "AP75"))
        typer.echo(f"best: {numbers}" if metrics else "not evaluated")
    typer.echo(f"weights: {result.best}")
    typer.echo(f"try them: detrkit predict IMAGE --model {result.best}")
