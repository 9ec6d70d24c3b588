"""``detrkit data fetch``: a small labelled set that comes with the package, as a folder to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.data_options import Force

__all__ = ["fetch_command"]


def fetch_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="blood_cells.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The data folder; default: NAME.")] = None,
    force: Force = False,
) -> None:
    """Write a small labelled set of the package as a data folder (COCO, train and val); nothing is downloaded."""
    from detrkit.data.toy_sets import TOY_SETS, write_toy_set
    from detrkit.terminal import say

    folder = Path(name) if out is None else out
    counts = write_toy_set(name, folder, force=force)
    listed = ", ".join(f"{split} {number} images" for split, number in counts.items())
    say(f"wrote {folder}: {listed}; train on it with: detrkit train --data {folder}")
    say(f"enough for a trial and not for a good detector; the full set: {TOY_SETS[name].full}")
