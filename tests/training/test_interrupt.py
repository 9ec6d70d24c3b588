"""Ctrl-C, SIGTERM and kill -9: the resumed run equals the uninterrupted run exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from detrkit.metrics import Score
from detrkit.training import run, train
from detrkit.training.interrupt import SAME_SIGNAL_SECONDS, Interrupt, Interrupted
from detrkit.training.loggers import read_log
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task, last_state, make_recipe, same_state, scores
from tests.training.held_run import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hangup_by_default() -> Iterator[None]:
    """The signal of a closed terminal does what it usually does, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with fake_task(folder):
        train(make_recipe(folder, **SETTINGS))
    return last_state(folder / "run")


def held(folder: Path, steps: int, *arguments: str) -> subprocess.Popen[str]:
    """Start ``detrkit train`` in its own process group, as a terminal does; it waits after ``steps`` steps."""
    (folder / "held").unlink(missing_ok=True)
    (folder / "go").unlink(missing_ok=True)
    (folder / "recipe.yaml").write_text(make_recipe(folder, **SETTINGS).to_yaml(), encoding="utf-8")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.held_run", str(folder), str(steps), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (folder / "held").exists():
        if process.poll() is not None:
            pytest.fail(f"ended before step {steps}: {process.communicate()[1][-2000:]}")
        time.sleep(0.01)
    return process


def test_ctrl_c_then_kill_then_resume(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """Ctrl-C for the whole process group with loader workers, then kill -9, then a resume to the end."""
    process = held(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    stopped = last_state(tmp_path / "run")["position"]
    rows = [row["step"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    assert stopped["step"] == rows[-1] == 3, "the current step is finished and saved"

    process = held(tmp_path, 11, "--resume")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = last_state(tmp_path / "run")["position"]
    assert stopped["step"] < killed["step"] < 11, "the last checkpoint before the kill"

    with fake_task(tmp_path):
        train(tmp_path / "run", resume=True)
    assert same_state(uninterrupted, last_state(tmp_path / "run")) == []


def signal_in_step(step: int, signum: int) -> Any:
    """Send a signal to this process during one optimizer step."""
    original = Trainer.forward_backward

    def forward_backward(self: Trainer, group: list[Any]) -> Any:
        if self.step == step - 1:
            os.kill(os.getpid(), signum)
        return original(self, group)

    return mock.patch.object(Trainer, "forward_backward", forward_backward)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_the_step_is_finished_and_saved(tmp_path: Path, uninterrupted: dict[str, Any], signum: int, code: int) -> None:
    recipe = make_recipe(tmp_path, **SETTINGS)
    handler = signal.getsignal(signal.SIGINT)
    with fake_task(tmp_path):
        with signal_in_step(7, signum), pytest.raises(Interrupted, match="stopped after step 7") as caught:
            train(recipe)
        assert caught.value.exit_code == code
        assert isinstance(caught.value, KeyboardInterrupt)
        assert signal.getsignal(signal.SIGINT) is handler
        position = last_state(tmp_path / "run")["position"]
        assert (position["epoch"], position["batch"], position["step"]) == (1, 3, 7)
        train(recipe, resume=True)
    assert same_state(uninterrupted, last_state(tmp_path / "run")) == []


def test_in_the_last_step(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, epochs=2, evaluate_every=1)
    with fake_task(tmp_path, evaluate=scores(0.1, 0.2)):
        with signal_in_step(8, signal.SIGINT), pytest.raises(Interrupted):
            train(recipe)
        assert train(recipe, resume=True).metrics["AP"] == 0.2
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "eval"] == [4, 8]


def test_during_an_evaluation_nothing_is_lost(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, epochs=4, evaluate_every=2)

    def interrupted() -> Score:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("the evaluation went on")

    with fake_task(tmp_path / "a", evaluate=interrupted), pytest.raises(Interrupted):
        train(recipe)
    assert last_state(tmp_path / "run")["position"] == {
        "epoch": 1,
        "batch": 4,
        "step": 8,
        "skipped": 0,
        "evaluated_step": -1,
    }
    with fake_task(tmp_path / "a", evaluate=scores(0.3, 0.2)):
        result = train(recipe, resume=True)
    assert result.metrics["AP"] == 0.3
    evaluated = [row["step"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "eval"]
    assert evaluated == [8, 16]


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """The time for the signal handler."""
    now = [100.0]
    with mock.patch("detrkit.training.interrupt.time.monotonic", side_effect=lambda: now[0]):
        yield now


def test_a_second_ctrl_c_stops_at_once_but_a_forwarded_one_does_not(clock: list[float]) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the launcher forwards the same signal
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
        assert interrupt.signum == signal.SIGINT
        clock[0] += SAME_SIGNAL_SECONDS + 1
        with pytest.raises(Interrupted, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupt(lambda: "finishing step 7") as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
    assert capfd.readouterr().err.strip() == "finishing step 7"


def test_a_run_says_which_step_it_finishes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path), signal_in_step(3, signal.SIGINT), pytest.raises(Interrupted):
        train(make_recipe(tmp_path, evaluate_every=0))
    assert "finishing step 3, then saving; a second Ctrl-C stops at once" in capfd.readouterr().err


def test_a_closed_terminal_does_not_end_the_step() -> None:
    """Writing to it is an error, also for everything that is printed afterwards."""
    outputs = [os.dup(1), os.dup(2)]
    read, write = os.pipe()
    os.close(read)
    try:
        os.dup2(write, 1)
        os.dup2(write, 2)
        with Interrupt(lambda: "finishing") as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signum == signal.SIGHUP
            os.write(2, b"a later line")
            os.write(1, b"a later line")
    finally:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        os.close(write)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_the_model_is_built_stops_there(tmp_path: Path) -> None:
    def build(recipe: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
        pytest.fail("not stopped")

    with mock.patch.object(run, "build_task", build), pytest.raises(Interrupted) as caught:
        train(make_recipe(tmp_path))
    assert caught.value.exit_code == 129
    assert not (tmp_path / "run").exists()


def test_a_signal_before_an_immediate_part_stops_there() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted), interrupt.immediate():
            pytest.fail("not stopped")
