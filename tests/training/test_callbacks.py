"""Callbacks: when they are called, with what, and that they change nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.training import Callback, Evaluation, Step, train
from detrkit.training.interrupt import Interrupted
from detrkit.training.loggers import read_log
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task, last_state, make_recipe, same_state, scores
from tests.training.test_trainer import crash_after


class Diary(Callback):
    """Writes down what happens, and draws random numbers each time."""

    def __init__(self, stop_at: int = 0) -> None:
        self.lines: list[str] = []
        self.stop_at = stop_at
        self.evaluations: list[Evaluation] = []
        self.error: BaseException | None = None

    def _note(self, line: str) -> None:
        torch.rand(3)
        np.random.rand()
        self.lines.append(line)

    def on_train_start(self, trainer: Trainer) -> None:
        self._note(f"start {trainer.step}/{trainer.total_steps}")

    def on_step(self, trainer: Trainer, step: Step) -> None:
        assert step.number == trainer.step
        assert step.loss > 0
        self._note(f"step {step.number}: {sum(len(batch) for batch in step.batches)} images")
        if step.number == self.stop_at:
            trainer.stop("enough")

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        assert not evaluation.better or (trainer.folder / "best" / "model.safetensors").is_file()
        self.evaluations.append(evaluation)
        self._note(f"evaluation {evaluation.score.value}")

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        assert (folder / "state.pt").is_file()
        self._note(f"checkpoint {trainer.step}")

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self.error = error
        self._note(f"end {type(error).__name__}")


def test_the_moments_of_a_run_in_order(tmp_path: Path) -> None:
    diary = Diary()
    with fake_task(tmp_path, (1, 2, 0, 1)):
        train(make_recipe(tmp_path, epochs=2, evaluate_every=2), callbacks=[diary])
    (evaluation,) = diary.evaluations
    assert diary.lines == [
        "start 0/4",
        *("step 1: 2 images", "step 2: 2 images", "checkpoint 2"),
        *("step 3: 2 images", "step 4: 2 images", "checkpoint 4"),
        *(f"evaluation {evaluation.score.value}", "checkpoint 4", "end NoneType"),
    ]
    assert sorted(evaluation.answers) == [100, 101, 102, 103]
    assert all(len(found) for found in evaluation.answers.values())
    assert evaluation.objects is not None
    assert len(evaluation.objects.truth) == 4


def test_what_is_no_callback_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"callbacks are objects of detrkit\.training\.Callback.*got <class"):
        train(make_recipe(tmp_path), callbacks=[Diary])  # type: ignore[list-item]  # the class, not an object of it
    assert not (tmp_path / "run").exists()


def test_callbacks_change_no_weight(tmp_path: Path) -> None:
    states = []
    for name, callbacks in (("with", [Diary()]), ("without", [])):
        with fake_task(tmp_path / name):
            train(make_recipe(tmp_path / name, epochs=2, evaluate_every=1), callbacks=callbacks)
        states.append(last_state(tmp_path / name / "run"))
    assert same_state(*states) == []


def test_a_callback_ends_the_run_and_resuming_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path, (1, 2, 0, 1), evaluate=scores(0.2)):
        recipe = make_recipe(tmp_path, epochs=3, evaluate_every=1)
        diary = Diary(stop_at=3)
        result = train(recipe, callbacks=[diary])
        assert [line for line in diary.lines if line.startswith(("step", "evaluation"))][-2:] == [
            "step 3: 2 images",
            "evaluation 0.2",
        ]
        assert "stopped after step 3 of 6: enough" in capsys.readouterr().err
        assert result.metrics["AP"] == 0.2
        train(recipe, resume=True)
    assert last_state(tmp_path / "run")["position"]["step"] == 6


def test_the_end_says_why(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            raise Interrupted(2, "stopped")

    diary = Diary()
    with fake_task(tmp_path), pytest.raises(Interrupted):
        train(make_recipe(tmp_path), callbacks=[Broken(), diary])
    assert isinstance(diary.error, Interrupted)


def table_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_of_numbers(tmp_path: Path) -> None:
    with fake_task(tmp_path, (1, 2, 0, 1), evaluate=scores(0.25, None, 0.5)):
        train(make_recipe(tmp_path, epochs=3, evaluate_every=1))
    rows = table_of(tmp_path / "run")
    assert list(rows[0])[:4] == ["epoch", "step", "time", "loss"]
    assert {"loss_class", "loss_bbox", "loss_giou", "AP", "AP50", "lr", "lr_backbone", "memory_gb"} <= set(rows[0])
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["AP"] for row in rows] == ["", "0.25", "", "", "", "0.5"]
    assert all(float(row["memory_gb"]) > 0.01 for row in rows)
    log = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([row["loss"] for row in log], rel=1e-4)
    times = [float(row["time"]) for row in rows]
    assert times == sorted(times)


def test_table_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    """The process dies after step 5; its last checkpoint is that of step 4."""
    with fake_task(tmp_path, (1, 2, 0, 1)):
        recipe = make_recipe(tmp_path, epochs=4, evaluate_every=0)
        with crash_after(5), pytest.raises(SystemExit):
            train(recipe)
        (tmp_path / "run" / "metrics.csv").write_text("half a li", encoding="utf-8")
        train(recipe, resume=True)
    assert [row["step"] for row in table_of(tmp_path / "run")] == [str(step) for step in range(1, 9)]
