"""Checkpoints of a run: ``last/`` (weights to use and state to resume from) and ``best/model.safetensors``.

A resumed run reads only ``last/state.pt``; ``last/model.safetensors`` holds the evaluated weights (the average when
EMA is on). Both files are written completely beside ``last/``, synced and read back (torch's archive has a checksum for
each of its parts), then moved into place by atomic renames, so a process killed at any moment leaves files that
load. The state before stays as ``last/previous.pt``: it is read where ``state.pt`` is damaged, or missing because the
process was killed between the renames. Weights may then be one checkpoint ahead, which does not affect a resumed run.
"""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor

from detrkit.errors import CheckpointError, RunError
from detrkit.files import replacing, sync
from detrkit.terminal import say
from detrkit.training.best import BestState
from detrkit.training.clock import ClockState
from detrkit.training.ema import EMAState
from detrkit.training.fingerprint import Fingerprint

__all__ = ["RunState", "load_state", "save_best", "save_last"]

STATE = "state.pt"
PREVIOUS = "previous.pt"
MODEL = "model.safetensors"
FORMAT = 1

SaveModel = Callable[[Path], None]


class RunState(TypedDict):
    """The state from which a resumed run equals an uninterrupted one: tensors, numbers, strings, lists, dicts."""

    model: dict[str, Tensor]
    optimizer: dict[str, object]
    ema: EMAState | None
    scaler: dict[str, object] | None
    rng: list[dict[str, object]]
    """One per process; loader workers need none (see ``rng.py``)."""
    position: dict[str, int]
    best: BestState
    processes: int
    batches: int
    recipe: dict[str, object]
    data: NotRequired[Fingerprint]
    """Of the training data; states of version 0.1 have none."""
    validation: NotRequired[Fingerprint]
    """Of the validation data, if there are any."""
    thresholds: NotRequired[dict[str, object]]
    """Score thresholds chosen at the last evaluation, if it chose any."""
    clock: NotRequired[ClockState]
    """Of a run that is planned by time."""


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors and torch's archive writer report a full disk only as text
        if any(sign in str(error) for sign in ("No space left", "os error 28", "disk quota")):
            return True
        error = error.__cause__ or error.__context__
    return False


def saving_failed(error: Exception, path: Path) -> RunError:
    """The error for a file of a run that could not be written."""
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
    """Replace ``folder/last``; ``save_model(path)`` writes the weights.

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
        if damage := _damage(new / STATE):
            raise OSError(f"what was written reads back otherwise ({damage})")
        if not last.exists():
            os.rename(new, last)
        else:
            if (last / STATE).exists():
                os.replace(last / STATE, last / PREVIOUS)
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


def _damage(path: Path) -> str:
    """What is wrong with an archive of torch, by the checksums of its parts; empty where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # whatever bytes a damaged file has
        return type(error).__name__
    return "" if part is None else f"checksum of {part}"


def load_state(folder: Path) -> RunState | None:
    """Load the state in ``folder/last`` on the CPU; None where there is none yet. Only plain data are unpickled.

    Where the state is damaged or missing, the one before it is loaded, and a line says so.

    Raises:
        CheckpointError: the file cannot be read, or was written by another version.
    """
    path, previous = folder / "last" / STATE, folder / "last" / PREVIOUS
    if not path.is_file() and not previous.is_file():
        return None
    try:
        return _read_state(path)
    except CheckpointError as error:
        if not previous.is_file() or not _damage(path):
            raise
        state = _read_state(previous)
        reason = str(error).split(";")[0] if path.is_file() else f"{path}: missing, the process was killed as it saved"
        say(f"{reason}; continuing from {previous}, the state before it")
        return state


def _read_state(path: Path) -> RunState:
    if damage := _damage(path):
        raise CheckpointError(
            f"{path}: not a state that can be resumed, it is damaged ({damage}); --overwrite starts again"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a state that can be resumed ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a state that this version of detrkit can resume")
    return cast(RunState, state)
