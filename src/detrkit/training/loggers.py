"""Loggers of a run, which are callbacks: ``log.jsonl`` always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Recipe
from detrkit.errors import RunError
from detrkit.report.run_log import read_log
from detrkit.training.callbacks import Callback, Row

__all__ = ["JsonLines", "Logger", "TensorBoard", "WandB", "build_loggers", "read_log"]


class Logger(Callback, ABC):
    """A callback that writes the rows of the log somewhere, and is closed after the run."""

    def on_log(self, row: Row) -> None:
        """Log the row."""
        self.log(row)

    @abstractmethod
    def log(self, row: Row) -> None:
        """Log one row."""

    @abstractmethod
    def close(self) -> None:
        """Flush and close."""


def _plain(value: object) -> object:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


class JsonLines(Logger):
    """A file with one JSON object per line, flushed after each row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])  # a half-written line of a killed process
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open during the whole run)

    def log(self, row: Row) -> None:
        """Append the row."""
        self._file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _numbers(row: Row) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "time")
    }


class TensorBoard(Logger):
    """Scalars under ``<run>/tensorboard``.

    Raises:
        RunError: the package tensorboard is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError("logging.tensorboard needs the package tensorboard: pip install tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        """Add the row's numbers."""
        if row["event"] in ("train", "eval"):
            for key, value in _numbers(row).items():
                self._writer.add_scalar(f"{row['event']}/{key}", value, row["step"])

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


class WandB(Logger):
    """Scalars and the recipe to Weights & Biases; a resumed run keeps the id stored in ``<run>/wandb_id``.

    Raises:
        RunError: the package wandb is missing.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        try:
            import wandb
        except ImportError as error:
            raise RunError("logging.wandb needs the package wandb: pip install wandb") from error
        kept = folder / "wandb_id"
        run_id = kept.read_text(encoding="utf-8").strip() if kept.is_file() else secrets.token_hex(4)
        kept.write_text(run_id, encoding="utf-8")
        self._run = wandb.init(
            project="detrkit", name=folder.name, id=run_id, resume="allow", dir=str(folder), config=recipe.to_dict()
        )

    def log(self, row: Row) -> None:
        """Send the row's numbers."""
        if row["event"] in ("train", "eval"):
            self._run.log({f"{row['event']}/{key}": value for key, value in _numbers(row).items()}, step=row["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def build_loggers(folder: Path, recipe: Recipe) -> list[Logger]:
    """The loggers of a recipe, the JSONL file first."""
    loggers: list[Logger] = [JsonLines(folder / "log.jsonl")]
    if recipe.logging.tensorboard:
        loggers.append(TensorBoard(folder))
    if recipe.logging.wandb:
        loggers.append(WandB(folder, recipe))
    return loggers
