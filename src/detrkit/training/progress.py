"""Progress of a run on the terminal: a bar with time left and a line of numbers; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from detrkit.console import Console
from detrkit.metrics import Score
from detrkit.metrics.score import Numbers
from detrkit.terminal import printable
from detrkit.training.best import Best

__all__ = ["TrainingProgress", "duration", "format_metric", "format_metrics", "numbers_line"]

CLASSES_SHOWN = 40  # rows of the table of classes at an evaluation


def format_metric(value: float | None) -> str:
    """Three decimals, or a dash for an undefined value."""
    return "-" if value is None else f"{value:.3f}"


def format_metrics(metrics: Numbers, names: Iterable[str]) -> str:
    """The named metrics as text, each name followed by its value."""
    return " ".join(f"{name} {format_metric(metrics.get(name))}" for name in names)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def numbers_line(numbers: Mapping[str, float]) -> str:
    """The numbers of a log row for people: loss, its terms in the last layer, rate, speed, objects of the last
    step, image size, memory."""
    # like loss_bbox; those of other layers and groups have a second underscore
    each = [f"{name[5:]} {numbers[name]:.3f}" for name in numbers if name.startswith("loss_") and "_" not in name[5:]]
    terms = f" ({', '.join(each)})" if each else ""
    text = f"loss {numbers['loss']:.4f}{terms} lr {numbers['lr']:.2e}"
    text += f" {numbers['images_per_second']:.1f} images/s"
    if "objects" in numbers:
        text += f" {numbers['objects']:.0f} objects"
    if "width" in numbers:
        text += f" {numbers['width']:.0f}x{numbers['height']:.0f}"
    if "memory_gb" in numbers:
        text += f" {numbers['memory_gb']:.1f} GB"
    return text


class TrainingProgress:
    """Progress of one run on stderr.

    Args:
        total: optimizer steps of the whole run.
        done: steps done before a resume.
        best: best evaluation before a resume.
        enabled: False on all processes except the main one.
        name: name of the run.
    """

    def __init__(
        self, total: int, *, done: int = 0, best: Best | None = None, enabled: bool = True, name: str = "training"
    ) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self.total = total
        self._first, self._start = done, time.monotonic()
        self._best = Best() if best is None else best
        self._bar: Progress | None = None
        self._numbers = Text(no_wrap=True, overflow="ellipsis")
        self._task = TaskID(0)
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, state="")
            self._live = Live(Group(self._bar, self._numbers), console=self.console)

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._live.stop()

    def step(self, step: int, epoch: int, loss: float) -> None:
        """Update after an optimizer step."""
        if self._bar is not None:
            state = f"epoch {epoch} loss {loss:.3f}"
            if self._best.value is not None:
                state += f" {format_metrics(self._best.metrics, self._best.headline[:1])}"
            self._bar.update(self._task, completed=step, total=self.total, state=state)

    def line(self, step: int, epoch: int, numbers: Mapping[str, float]) -> None:
        """Show the numbers of a log row: below the bar, or as a line of its own where there is no bar."""
        if self._bar is None:
            left = (time.monotonic() - self._start) / max(1, step - self._first) * (self.total - step)
            self.print(f"epoch {epoch} step {step}/{self.total} {numbers_line(numbers)}, {duration(left)} left")
        else:
            self._numbers.plain = printable(numbers_line(numbers))

    def evaluating(self, done: int, total: int) -> None:
        """Update during an evaluation: images of this process."""
        if self._bar is not None:
            self._bar.update(self._task, state=f"evaluating {done}/{total}")

    def evaluated(self, epoch: int, score: Score, best: Best, columns: Sequence[str] = ()) -> None:
        """Print the result of an evaluation, and with ``columns`` that of every class, the worst first."""
        self._best = best
        numbers = format_metrics(score.metrics, score.headline)
        self.print(f"epoch {epoch} evaluation: {numbers} (best {format_metrics(best.metrics, best.headline[:1])})")
        columns = [name for name in columns if any(name in of_class for of_class in score.per_class.values())]
        if columns and len(score.per_class) > 1:
            self.console.print(_class_table(score, columns))

    def print(self, text: str) -> None:
        """Print a line of text above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _class_table(score: Score, columns: Sequence[str]) -> Table:
    values = {name: numbers.get(columns[0]) for name, numbers in score.per_class.items()}
    defined = {name: value for name, value in values.items() if value is not None}
    names = sorted(defined, key=defined.__getitem__)
    rest = [(len(names) - CLASSES_SHOWN, "better ones (log.jsonl)"), (len(values) - len(defined), "without objects")]
    table = Table("class", box=None, padding=(0, 2, 0, 0), caption_justify="left")
    table.caption = ", ".join(f"{count} {words}" for count, words in rest if count > 0) or None
    for column in columns:
        table.add_column(column, justify="right")
    for name in names[:CLASSES_SHOWN]:
        table.add_row(Text(name), *(format_metric(score.per_class[name].get(column)) for column in columns))
    return table
