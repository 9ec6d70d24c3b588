"""``detrkit models``: list the registered models and their embedded weights."""

from __future__ import annotations

from typing import Annotated

import typer

from detrkit.cli.choices import name_pattern
from detrkit.errors import RecipeError, did_you_mean

__all__ = ["models_command"]


def models_command(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[FILTER]", help="Part of a name, or a pattern such as 'dela_*'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models: name, what it is, and whether trained weights come with the package."""
    from detrkit.models.presets import PRESETS, list_models
    from detrkit.weights.find import embedded_names

    names = list_models(name_pattern(pattern))
    if not names:
        raise RecipeError(f"no model matches '{pattern}'.{did_you_mean(pattern or '', list_models())}")
    trained = embedded_names()
    rows = [
        {"name": name, "family": PRESETS[name].family, "summary": PRESETS[name].summary, "trained": name in trained}
        for name in names
    ]
    from detrkit.cli.console import print_json, stdout

    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("model", "what it is", "comes trained")
    for name in names:
        table.add_row(name, PRESETS[name].summary, "yes" if name in trained else "")
    stdout().print(table)
