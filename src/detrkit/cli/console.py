"""Output shared by the commands: consoles, progress bars, tables of metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.bars import may_show_bars, progress_bar
from detrkit.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from detrkit.console import Console
    from detrkit.metrics import ScoreJson

__all__ = [
    "local_checkpoint",
    "print_json",
    "print_line",
    "print_score",
    "progress_bar",
    "reading_bar",
    "stderr",
    "stdout",
]


_LARGE = 50_000_000
"""Bytes of a file that is worth a remark."""


def stdout() -> Console:
    """Console for results."""
    from detrkit.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """Console for everything else: progress, warnings, remarks."""
    from detrkit.console import Console

    return Console(stderr=True, highlight=False)


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Print a line as it is; where it might steer the terminal through rich, which takes out what does."""
    if text.isascii() and text.isprintable():
        print(text, file=sys.stderr if to_stderr else sys.stdout)
    else:
        (stderr() if to_stderr else stdout()).print(text, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def reading_bar(*paths: Path) -> Iterator[None]:
    """The progress of reading large JSON files on stderr: a bar, or, where that is not a terminal, a line."""
    from detrkit.data.row_slices import telling_progress

    large = [path for path in paths if path.is_file() and path.stat().st_size >= _LARGE]
    if large and not (may_show_bars() and stderr().is_terminal):
        say("reading " + " and ".join(f"{path} ({path.stat().st_size / 1e6:.0f} MB)" for path in large) + " …")
    with progress_bar("reading", in_bytes=True) as bar, telling_progress(bar.update):
        yield


def local_checkpoint(path_or_name: str) -> str | Path:
    """The path or name of a checkpoint; a URL is downloaded first, with a progress bar."""
    from detrkit.weights.published.addresses import is_url
    from detrkit.weights.published.download import fetch

    if not is_url(path_or_name):
        return path_or_name
    with progress_bar(f"downloading {path_or_name}", in_bytes=True) as bar:
        return fetch(path_or_name, bar.update)


_OF_BOXES = "box_"  # numbers of boxes beside those of masks


def _shown(value: float | int | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else f"{value:.3f}"


def print_score(score: ScoreJson, *, title: str, console: Console | None = None) -> None:
    """Print the overall metrics, those of masks above those of boxes, then those per class, the best class first."""
    from detrkit.metrics import PROTOCOLS

    console = console or stdout()
    metrics, per_class = score["metrics"], score["per_class"]
    columns = PROTOCOLS[score["protocol"]].class_columns
    columns = tuple(name for name in columns if all(name in numbers for numbers in per_class.values()))
    console.print(title, markup=False, soft_wrap=True)
    groups = {name: numbers for name, numbers in metrics.items() if isinstance(numbers, dict)}
    overall = {name: number for name, number in metrics.items() if not isinstance(number, dict)}
    boxes = {name.removeprefix(_OF_BOXES): overall.pop(name) for name in list(overall) if name.startswith(_OF_BOXES)}
    rows = {"masks": overall, "boxes": boxes} if boxes else {"": overall}
    names = list(overall)
    for start in range(0, len(names), 6):  # twelve columns are wider than a usual terminal
        columns_here = names[start : start + 6]
        rows_here = {name: numbers for name, numbers in rows.items() if not numbers.keys().isdisjoint(columns_here)}
        console.print(_table("of" if boxes else "", rows_here, columns_here))
    if groups:
        console.print(_table("classes", groups, list(next(iter(groups.values())))))
    if per_class:
        order = sorted(per_class, key=lambda name: _or_last(per_class[name][columns[0]]), reverse=True)
        console.print(_table("class", {name: per_class[name] for name in order}, columns))
    shown = [overall, boxes, *groups.values(), *({columns[0]: numbers[columns[0]]} for numbers in per_class.values())]
    if any(None in numbers.values() for numbers in shown):
        console.print("- : not defined, the ground truth has nothing of the kind", style="dim")


def _table(heading: str, rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> Table:
    """A row of numbers for each name; without ``heading`` the names are left out."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(heading) if heading else Table()
    for column in columns:
        table.add_column(column, justify="right", min_width=6)
    for name, numbers in rows.items():
        cells = (_shown(numbers[column]) if column in numbers else "" for column in columns)
        table.add_row(*([escape(name)] if heading else []), *cells)
    return table


def _or_last(value: float | None) -> float:
    return -1.0 if value is None else value
