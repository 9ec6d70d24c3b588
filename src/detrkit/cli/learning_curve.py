"""``detrkit learning-curve``: what twice the labels would bring, from runs on nested parts of the training images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.data_options import Folder, JsonFlag
from detrkit.cli.quick_imports import quick_imports
from detrkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from detrkit.report.growth import Growth

__all__ = ["learning_curve_command"]


def learning_curve_command(
    folder: Folder,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of all runs, as for train.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Model (model.name).")] = None,
    fractions: Annotated[
        str, typer.Option("--fractions", metavar="12.5,25,50,100", help="Parts of the training images, in percent.")
    ] = "12.5,25,50,100",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="0,1,2", help="Train each part once with each: how much is luck.")
    ] = "0",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="500", help="Optimizer steps of each run, all the same.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="120", help="Instead: time of all runs together, each has the same share."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Output; default runs/<model>-<data>-learning-curve."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    json: JsonFlag = False,
) -> None:
    """Say what twice the labels would bring, with an interval, before anyone labels them.

    Trains on nested parts of the training images, each time as many steps, scores the last weights on the validation
    images, and continues the saturating power law through the scores. Says too whether the same prediction from at most
    half of the images would have been right. Settings are chosen from the data as by train.

    Writes learning_curve.json, learning_curve.csv and learning_curve.png beside the runs. The same command again goes
    on where it was stopped; runs that are finished are not repeated.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such data folder")
    if steps is not None and minutes is not None:
        raise RecipeError("give --steps or --minutes, not both")
    if minutes is not None and not 0 < minutes < math.inf:
        raise RecipeError(f"--minutes {minutes:g}: give the curve a time above 0")
    if out is not None and out.exists() and not out.is_dir():
        raise DataError(f"{out}: the output must be a folder, but this is a file")
    parts, numbers = _fractions(fractions), _seeds(seeds)

    from detrkit.data.once import read_once

    options = {"model.name": model, "training.iterations": steps, "training.device": device}
    given: dict[str, Any] = {key: str(value) for key, value in options.items() if value is not None}
    given["data.root"] = str(folder)
    with read_once():
        from detrkit.cli.train import recipe_from_data

        recipe = recipe_from_data(str(folder), given, overrides or [], resume=False)
        with quick_imports():
            from detrkit.training.curve import learning_curve
            from detrkit.training.folder import run_folder
            from detrkit.training.interrupt import Interrupted
        length = recipe.training
        if (steps and steps != length.iterations) or (minutes and length.minutes is not None):
            option = "--steps" if steps else "--minutes"
            raise RecipeError(f"{option} and a setting of training say how long a run is: give one of them")
        own = run_folder(recipe)
        target = out or own.with_name(f"{own.name}-learning-curve")
        try:
            growth = learning_curve(recipe, fractions=parts, seeds=numbers, minutes=minutes, folder=target)
        except Interrupted as stop:
            typer.echo(f"interrupted; the same command goes on ({target})", err=True)
            raise typer.Exit(stop.exit_code) from None
    _write(growth, target, json=json, title=f"{recipe.model.name} on {folder.resolve().name}")


def _fractions(text: str) -> list[float]:
    """Percents, such as ``12.5,25%,50,100``, as shares."""
    try:
        values = [float(word.strip().removesuffix("%")) / 100 for word in text.split(",")]
    except ValueError:
        raise RecipeError(f"--fractions {text}: give percents with commas, such as 12.5,25,50,100") from None
    wrong = [value for value in values if not 0 < value <= 1]
    if wrong:
        raise RecipeError(f"--fractions {text}: {100 * wrong[0]:g} % is not above 0 and at most 100")
    if max(values) <= 0.01 and "%" not in text:
        percents = ",".join(f"{10_000 * value:g}" for value in values)
        raise RecipeError(f"--fractions {text}: give percents, here {percents}; really 1 % and less: 0.5%,1%")
    return values


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds {text}: give whole numbers with commas, such as 0,1,2") from None


def _write(growth: Growth, out: Path, *, json: bool, title: str) -> None:
    """The files, and what they say."""
    from detrkit.cli.console import print_json, print_line
    from detrkit.files import write_bytes, write_json
    from detrkit.report.charts.canvas import save_chart
    from detrkit.report.charts.growth_chart import draw_growth

    content = growth.to_json()
    write_json(out / "learning_curve.json", content, force=True)
    rows = ["images,fraction,seed,ap,deviation"]
    rows += [f"{run.images},{run.fraction:g},{run.seed},{run.ap:.6f},{run.deviation:.6f}" for run in growth.runs]
    write_bytes(out / "learning_curve.csv", ("\n".join(rows) + "\n").encode())
    save_chart(draw_growth(growth, title=title), out / "learning_curve.png")
    if json:
        print_json(content)
        return
    for run in growth.runs:
        print_line(f"{run.images:>7,} images, seed {run.seed}: AP {run.ap:.3f} ± {run.deviation:.3f}")
    for remark in growth.remarks:
        print_line(f"note: {remark}")
    print_line(str(out / "learning_curve.png"))
    print_line(growth.back_test_sentence)
    print_line(growth.sentence)
