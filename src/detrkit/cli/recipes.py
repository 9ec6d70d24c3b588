"""``detrkit recipes list|show|copy``: the recipes that come with the package, and those in ./recipes."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.choices import name_pattern
from detrkit.cli.data_options import Force, JsonFlag

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="List, show and copy recipes.")

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="Its name, with or without folders, or a file.")]


@app.command("list")
def recipes_command(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[FILTER]", help="Part of a name, or a pattern such as 'dape/*'.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the recipes by name, as 'detrkit train NAME' takes them."""
    from detrkit.cli.console import print_json
    from detrkit.config import list_recipes
    from detrkit.errors import RecipeError, did_you_mean

    wanted = name_pattern(pattern)
    names = [name for name in list_recipes() if fnmatch(name.lower(), wanted)]
    if not names:
        raise RecipeError(f"no recipe matches '{pattern}'.{did_you_mean(pattern or '', list_recipes())}")
    if json:
        print_json(names)
        return
    for name in names:
        print(name)


@app.command("show")
def show_recipe(name: Name) -> None:
    """Print a recipe in full: every key with its value, those of the recipes that it extends and defaults too."""
    from detrkit.config import load_recipe

    print(load_recipe(name).to_yaml(), end="")


@app.command("copy")
def copy_recipe(
    name: Name,
    out: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The file to write; default: its name here.")
    ] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to change it: one file with what it sets itself and what the recipes say that it extends."""
    from detrkit.config.loading import written_values
    from detrkit.config.recipe_files import find_recipe
    from detrkit.files import refuse_existing, write_bytes
    from detrkit.terminal import say

    source = find_recipe(name)
    target = Path(source.name) if out is None else out / source.name if out.is_dir() else out
    refuse_existing(target, force)
    write_bytes(target, written_values(source).encode())
    say(f"wrote {target}; train it with: detrkit train {target}")
