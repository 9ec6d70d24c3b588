"""Checkpoints of a run: ``last/`` (weights to use and state to resume from) and ``best/model.safetensors``.

``last/state.pt`` is all that a resume reads; ``last/model.safetensors`` holds the weights that evaluation saw (the
average when EMA is on). Both are written completely beside ``last/`` and synced before either takes its place by an
atomic rename, so a process killed at any moment leaves files that load; killed between the two renames, the weights to
use are one checkpoint ahead of the state, which a resume does not notice.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from detrkit.errors import CheckpointError, RunError
from detrkit.files import replacing, sync
from detrkit.training.best import BestState
from detrkit.training.ema import EMAState

__all__ = ["RunState", "load_state", "save_best", "save_last"]

STATE = "state.pt"
MODEL = "model.safetensors"
FORMAT = 1

SaveModel = Callable[[Path], None]


class RunState(TypedDict):
    """Everything that a resumed run needs to equal an uninterrupted one: tensors, numbers, strings, lists, dicts."""

    model: dict[str, Tensor]
    optimizer: dict[str, object]
    ema: EMAState | None
    scaler: dict[str, object] | None
    rng: list[dict[str, object]]
    """Of each process; the loader's workers need none (see ``rng.py``)."""
    position: dict[str, int]
    best: BestState
    processes: int
    batches: int
    recipe: dict[str, object]


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and torch's archive writer report it as text only
        if any(sign in str(error) for sign in ("No space left", "os error 28", "disk quota")):
            return True
        error = error.__cause__ or error.__context__
    return False


def saving_failed(error: Exception, path: Path) -> RunError:
    """The error to raise when a file of a run could not be written."""
    reason = "the disk is full" if _is_disk_full(error) else str(error)
    return RunError(
        f"{path} could not be written: {reason}; the previous checkpoint is intact: "
        "make room, then continue with --resume"
    )


def _write_state(state: dict[str, object], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def save_last(folder: Path, state: RunState, save_model: SaveModel) -> None:
    """Replace ``folder/last``; ``save_model(path)`` writes weights.

    Raises:
        RunError: the files could not be written (disk full); the previous checkpoint is intact.
    """
    last, new = folder / "last", folder / "last.new"
    try:
        shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed here
        new.mkdir(parents=True)
        _write_state({"format": FORMAT, **state}, new / STATE)
        save_model(new / MODEL)
        sync(new / MODEL)
        sync(new)
        if not last.exists():
            os.rename(new, last)
        else:
            for name in (STATE, MODEL):
                os.replace(new / name, last / name)
            sync(last)
            new.rmdir()
        sync(folder)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        raise saving_failed(error, last) from error


def save_best(folder: Path, save_model: SaveModel) -> Path:
    """Replace ``folder/best/model.safetensors`` atomically; returns its path.

    Raises:
        RunError: the file could not be written (disk full); the previous one is intact.
    """
    best = folder / "best" / MODEL
    try:
        with replacing(best) as draft:
            save_model(draft)
    except Exception as error:
        raise saving_failed(error, best) from error
    return best


def load_state(folder: Path) -> RunState | None:
    """The state in ``folder/last``, on the CPU, or None when there is none yet. Nothing is unpickled but plain data.

    Raises:
        CheckpointError: the file is there and cannot be read, or was written by another version.
    """
    path = folder / "last" / STATE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a state that can be resumed, it is damaged ({type(error).__name__}); --overwrite starts anew"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a state that this version of detrkit can resume")
    return cast(RunState, state)
