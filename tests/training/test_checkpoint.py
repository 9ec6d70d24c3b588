"""Checkpoints survive a kill at any moment, a full disk and damaged files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.errors import CheckpointError, RunError
from detrkit.training import checkpoint
from detrkit.training.checkpoint import load_state, save_best, save_last


def writer(number: int) -> Callable[[Path], None]:
    return lambda path: path.write_text(str(number), encoding="utf-8") and None


def save(folder: Path, number: int) -> None:
    save_last(folder, {"step": number, "tensor": torch.full((3,), float(number))}, writer(number))


def saved(folder: Path) -> tuple[int, int]:
    """(step of the state, step of the weights)."""
    state = load_state(folder)
    assert state is not None
    assert torch.equal(state["tensor"], torch.full((3,), float(state["step"])))
    return state["step"], int((folder / "last" / "model.safetensors").read_text(encoding="utf-8"))


def test_save_and_load(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert load_state(folder) is None
    for number in range(3):
        save(folder, number)
        assert saved(folder) == (number, number)
    assert sorted(path.name for path in folder.iterdir()) == ["last"]
    names = sorted(path.name for path in (folder / "last").iterdir())
    assert names == ["model.safetensors", "previous.pt", "state.pt"]


class Killed(BaseException):
    """Stands for kill -9: no code that saves runs after it."""


CALLS = ("rename", "replace", "fsync", "open")


def record(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Record the file system calls of ``os``; call number ``stop_at`` raises :class:`Killed` instead."""
    calls: list[str] = []
    for name in CALLS:
        original = getattr(os, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls.append(_name)
            if len(calls) == stop_at:
                raise Killed
            return _original(*args, **kwargs)

        monkeypatch.setattr(checkpoint.os, name, counted)
    return calls


@pytest.mark.parametrize("first", [True, False])
def test_killed_between_any_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    outcomes = []
    for stop_at in range(1, 40):
        folder = tmp_path / str(stop_at)
        if not first:
            save(folder, 1)
        with monkeypatch.context() as patch:
            calls = record(patch, stop_at)
            try:
                save(folder, 2)
            except Killed:
                pass
            else:
                break
        if (folder / "last").exists():
            state, weights = saved(folder)
            assert state in (1, 2)
            assert weights in (1, 2)
            outcomes.append((state, weights))
        else:
            assert first
        save(folder, 3)  # files left by a killed process do not disturb the next one
        assert saved(folder) == (3, 3)
        assert sorted(path.name for path in folder.iterdir()) == ["last"]
    else:
        pytest.fail("saving never finished")
    assert len(calls) >= 8
    assert {"replace" if not first else "rename", "fsync"} <= set(calls)
    if not first:
        assert set(outcomes) == {(1, 1), (2, 1), (2, 2)}


@pytest.mark.parametrize("where", ["state", "weights"])
@pytest.mark.parametrize("text_only", [False, True])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, text_only: bool) -> None:
    def fail(*args: Any) -> None:
        if text_only:  # as safetensors reports it
            raise RuntimeError("Io(Os { code: 28, kind: StorageFull, message: 'No space left on device' })")
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        if where == "state":
            patch.setattr(checkpoint.torch, "save", fail)
        with pytest.raises(RunError, match=r"disk is full.*previous checkpoint is intact"):
            save_last(tmp_path, {"step": 2}, fail if where == "weights" else writer(2))
    assert saved(tmp_path) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]
    save(tmp_path, 3)
    assert saved(tmp_path) == (3, 3)


def test_other_errors_give_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"could not be written: .*Permission denied") as caught:
        save_last(tmp_path, {}, lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert caught.value.exit_code == 1


def test_errors_of_torch_on_a_full_disk_are_recognised() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "wb") as file:
        torch.save({"tensor": torch.zeros(100_000)}, file)
    assert checkpoint._is_disk_full(caught.value)


def test_best(tmp_path: Path) -> None:
    path = save_best(tmp_path, writer(1))
    assert path == tmp_path / "best" / "model.safetensors"

    def fail(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="disk is full"):
        save_best(tmp_path, fail)
    assert path.read_text(encoding="utf-8") == "1"
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_state(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, 1)
    (tmp_path / "last" / "state.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a state that can be resumed"):
        load_state(tmp_path)


def test_a_file_that_is_not_a_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    torch.save({"model": torch.zeros(1)}, tmp_path / "last" / "state.pt")
    with pytest.raises(CheckpointError, match="this version of detrkit"):
        load_state(tmp_path)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return shutil.rmtree, (str(tmp_path / "victim"),)

    (tmp_path / "victim").mkdir()
    save(tmp_path, 1)
    torch.save({"format": 1, "evil": Evil()}, tmp_path / "last" / "state.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    assert (tmp_path / "victim").is_dir()
