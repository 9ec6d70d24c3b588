"""The log of a run, ``log.jsonl``, as rows and as series of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["EvaluationRow", "RunLog", "read_log", "run_log", "seconds_at"]

LogRow = Mapping[str, Any]

_NOT_SCORES = {"event", "epoch", "step", "time", "per_class", "best", "seconds"}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl``, with repeated steps only once.

    Steps after the last checkpoint of a killed process are in the file twice; the later rows are kept.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed process
        if row.get("event") == "resume":
            rows = [earlier for earlier in rows if earlier["step"] <= row["step"]]
        rows.append(row)
    return rows


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One evaluation of a run: when it was, its numbers, the deciding number of each class, how long it took."""

    epoch: int
    step: int
    scores: dict[str, float | None]
    per_class: dict[str, float | None]
    better: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """What a run has logged.

    Attributes:
        total_steps: optimizer steps that were planned; None where the log does not say.
        steps: steps that were done.
        images: training images.
        left_out: boxes or images of the training and of the validation data that could not be used.
        seconds: time in training and evaluation, without pauses between sessions.
        losses: (step, total loss).
        rates: (step, learning rate).
        speed: training images per second, the median of the log; None without a row.
        memory: gigabytes in use, the most of the log; None where it is not logged.
        evaluations: all of them, in order.
        finished: whether the run came to its end.
        metric: name of the deciding number, the first of every evaluation.
    """

    total_steps: int | None
    steps: int
    images: int | None
    left_out: int
    seconds: float
    losses: list[tuple[int, float]]
    rates: list[tuple[int, float]]
    speed: float | None
    memory: float | None
    evaluations: list[EvaluationRow]
    finished: bool
    metric: str | None

    @property
    def best(self) -> EvaluationRow | None:
        """The best evaluation; None where there was none."""
        better = [row for row in self.evaluations if row.better]
        return better[-1] if better else None

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a number of the evaluations."""
        found = ((row.step, row.scores.get(name)) for row in self.evaluations)
        return [(step, value) for step, value in found if value is not None]


def run_log(path: Path) -> RunLog:
    """Read the log of a run; without a file it is empty."""
    rows = read_log(path) if path.is_file() else []
    train = [row for row in rows if row["event"] == "train"]
    starts = [row for row in rows if row["event"] in ("start", "resume")]
    evaluations = [_evaluation(row) for row in rows if row["event"] == "eval"]
    speeds = sorted(row["images_per_second"] for row in train if row.get("images_per_second"))
    return RunLog(
        total_steps=next((row["total_steps"] for row in reversed(starts) if "total_steps" in row), None),
        steps=max((int(row["step"]) for row in rows), default=0),
        images=next((row["images"] for row in reversed(starts) if "images" in row), None),
        left_out=max((row.get("left_out", 0) + row.get("left_out_val", 0) for row in starts), default=0),
        seconds=max(seconds_at(rows), default=0.0),
        losses=[(row["step"], row["loss"]) for row in train if row.get("loss") is not None],
        rates=[(row["step"], row["lr"]) for row in train if row.get("lr") is not None],
        speed=speeds[len(speeds) // 2] if speeds else None,
        memory=max((row["memory_gb"] for row in train if row.get("memory_gb")), default=None),
        evaluations=evaluations,
        finished=any(row["event"] == "end" for row in rows),
        metric=next(iter(evaluations[0].scores), None) if evaluations else None,
    )


def _evaluation(row: LogRow) -> EvaluationRow:
    scores = {key: value for key, value in row.items() if key not in _NOT_SCORES}
    return EvaluationRow(
        epoch=int(row["epoch"]),
        step=int(row["step"]),
        scores={key: value for key, value in scores.items() if value is None or isinstance(value, int | float)},
        per_class=row.get("per_class") or {},
        better=bool(row.get("best")),
        seconds=float(row.get("seconds", 0.0)),
    )


def seconds_at(rows: Iterable[LogRow]) -> Iterator[float]:
    """For each row the seconds of training before it; pauses between sessions do not count."""
    began: float | None = None
    before = seconds = 0.0
    for row in rows:
        if began is None or row["event"] in ("start", "resume"):
            began, before = float(row["time"]), seconds
        seconds = before + float(row["time"]) - began
        yield seconds
