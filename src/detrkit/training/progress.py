"""Progress of a run on the terminal: a bar with time left, loss and best score; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from detrkit.metrics import Score
from detrkit.metrics.score import Numbers
from detrkit.terminal import Console
from detrkit.training.best import Best

__all__ = ["TrainingProgress", "format_metric", "format_metrics"]


def format_metric(value: float | None) -> str:
    """Three decimals, or a dash for an undefined value."""
    return "-" if value is None else f"{value:.3f}"


def format_metrics(metrics: Numbers, names: Iterable[str]) -> str:
    """The named metrics as text, each name followed by its value."""
    return " ".join(f"{name} {format_metric(metrics.get(name))}" for name in names)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


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
        self._total, self._first, self._start = total, done, time.monotonic()
        self._best = Best() if best is None else best
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, numbers="")

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, epoch: int, loss: float) -> None:
        """Update after an optimizer step."""
        if self._bar is not None:
            numbers = f"epoch {epoch} loss {loss:.3f}"
            if self._best.value is not None:
                numbers += f" {format_metrics(self._best.metrics, self._best.headline[:1])}"
            self._bar.update(self._task, completed=step, numbers=numbers)

    def line(self, step: int, epoch: int, numbers: Mapping[str, float]) -> None:
        """Print a log line where there is no bar."""
        if self._bar is None:
            left = (time.monotonic() - self._start) / max(1, step - self._first) * (self._total - step)
            self.print(
                f"epoch {epoch} step {step}/{self._total} loss {numbers['loss']:.4f} lr {numbers['lr']:.2e} "
                f"{numbers['images_per_second']:.1f} images/s, {_duration(left)} left"
            )

    def evaluating(self, done: int, total: int) -> None:
        """Update during an evaluation: images of this process."""
        if self._bar is not None:
            self._bar.update(self._task, numbers=f"evaluating {done}/{total}")

    def evaluated(self, epoch: int, score: Score, best: Best) -> None:
        """Print the result of an evaluation."""
        self._best = best
        numbers = format_metrics(score.metrics, score.headline)
        self.print(f"epoch {epoch} evaluation: {numbers} (best {format_metrics(best.metrics, best.headline[:1])})")

    def print(self, text: str) -> None:
        """Print a line of text above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
