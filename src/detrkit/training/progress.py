"""What the person at the terminal sees: a bar with time left, loss and AP; plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["TrainingProgress", "format_metric"]


def format_metric(value: float | None) -> str:
    """Three decimals, or a dash for what is undefined."""
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class TrainingProgress:
    """Progress of one run on stderr.

    Args:
        total: optimizer steps of the whole run.
        done: steps done by the run this one continues; best: its best AP.
        enabled: False on every process but the main one.
        name: what to call the run.
    """

    def __init__(
        self, total: int, *, done: int = 0, best: float | None = None, enabled: bool = True, name: str = "training"
    ) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self._total, self._first, self._start = total, done, time.monotonic()
        self._best = best
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
        """After each optimizer step."""
        if self._bar is not None:
            best = f" AP {self._best:.3f}" if self._best is not None else ""
            self._bar.update(self._task, completed=step, numbers=f"epoch {epoch} loss {loss:.3f}{best}")

    def line(self, row: dict[str, Any]) -> None:
        """At each log line; printed only where there is no bar."""
        if self._bar is None:
            done = max(1, row["step"] - self._first)
            left = (time.monotonic() - self._start) / done * (self._total - row["step"])
            self.say(
                f"epoch {row['epoch']} step {row['step']}/{self._total} loss {row['loss']:.4f} lr {row['lr']:.2e} "
                f"{row['images_per_second']:.1f} images/s, {_duration(left)} left"
            )

    def evaluating(self, done: int, total: int) -> None:
        """During an evaluation: images of this process."""
        if self._bar is not None:
            self._bar.update(self._task, numbers=f"evaluating {done}/{total}")

    def evaluated(self, epoch: int, metrics: dict[str, float | None], best: float | None) -> None:
        """After each evaluation."""
        self._best = best
        numbers = " ".join(f"{name} {format_metric(metrics.get(name))}" for name in ("AP", "AP50", "AP75"))
        self.say(f"epoch {epoch} evaluation: {numbers} (best AP {format_metric(best)})")

    def say(self, text: str) -> None:
        """A line of text, above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
