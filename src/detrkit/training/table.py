"""``metrics.csv``: the numbers of a run's log as one table, for spreadsheets and pandas."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import RunError
from detrkit.files import replacing
from detrkit.report.run_log import seconds_at
from detrkit.training.callbacks import Callback, Row
from detrkit.training.checkpoint import saving_failed
from detrkit.training.loggers import read_log

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["MetricsTable", "metrics_table"]

TableRow = dict[str, float]


class MetricsTable(Callback):
    """Writes ``metrics.csv`` anew from ``log.jsonl`` whenever a checkpoint is written, and at the end.

    So the table has every step once, whatever a killed process left, and ends where a resumed run goes on.
    """

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """Write the table."""
        _write(trainer.folder)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Write the table."""
        with contextlib.suppress(RunError) if error is not None else contextlib.nullcontext():  # say the first error
            _write(trainer.folder)


def metrics_table(rows: Iterable[Row]) -> list[TableRow]:
    """One row per logged step: epoch, step, time in seconds of training (pauses between sessions do not count), losses,
    scores in the rows of evaluations, rates, memory. What a row has no value for is missing in it.

    Args:
        rows: the rows of a log as ``read_log`` gives them.
    """
    table: dict[int, TableRow] = {}
    rows = list(rows)
    for row, seconds in zip(rows, seconds_at(rows), strict=True):
        step = int(_number(row["step"]))
        if row["event"] in ("train", "eval"):
            of_step = table.setdefault(step, {"epoch": _number(row["epoch"]), "step": step})
            of_step["time"] = round(seconds, 2)
            skipped = _NO_COLUMNS | ({"seconds"} if row["event"] == "eval" else set())
            of_step |= {key: _number(value) for key, value in row.items() if _is_number(value) and key not in skipped}
    return [table[step] for step in sorted(table)]


_NO_COLUMNS = {"event", "step", "epoch", "time"}
_FIRST = ("epoch", "step", "time", "loss")
_LAST = ("lr", "grad_norm", "images_per_second", "memory_gb")


def _write(folder: Path) -> None:
    log = folder / "log.jsonl"
    table = metrics_table(read_log(log)) if log.is_file() else []
    names = list(dict.fromkeys(name for row in table for name in row)) or list(_FIRST)
    losses = [name for name in names if name.startswith("loss_")]
    rates = [name for name in names if name.startswith("lr_")]
    last = [name for name in _LAST[:1] if name in names] + rates + [name for name in _LAST[1:] if name in names]
    first = [name for name in _FIRST if name in names] + losses
    columns = [*first, *(name for name in names if name not in {*first, *last}), *last]
    try:
        with replacing(folder / "metrics.csv") as draft, open(draft, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(_short(row) for row in table)
    except OSError as error:
        raise saving_failed(error, folder / "metrics.csv") from error


def _short(row: Mapping[str, float]) -> dict[str, object]:
    """Whole numbers without a point, others with six digits."""
    return {key: int(value) if key in ("epoch", "step") else f"{value:.6g}" for key, value in row.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
