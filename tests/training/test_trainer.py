"""The training loop: accumulation, exact resume, losses that are not finite."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from detrkit.data.loader import collate
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.errors import RunError
from detrkit.losses import Criterion, LossOutput
from detrkit.metrics import Score
from detrkit.structures import Batch
from detrkit.training import RunResult, run, train
from detrkit.training.loggers import read_log
from detrkit.training.rng import preserved_rng, restore_rng, rng_state
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task, last_state, make_recipe, make_task, same_state, scores


class Idle:
    """Replaces the signal handler."""

    requested = False
    signum = 0


def make_trainer(folder: Path, **overrides: Any) -> Trainer:
    task = make_task(folder, (1, 1, 0, 4), dropout=0.0)
    trainer = Trainer(
        recipe=make_recipe(folder, **overrides),
        task=task,
        sampler=AspectRatioBatchSampler(length=4, batch_size=2),
        accelerator=Accelerator(cpu=True),
        folder=folder,
        callbacks=[],
    )
    trainer.interrupt = Idle()
    return trainer


def gradients(trainer: Trainer, group: list[Batch]) -> list[torch.Tensor]:
    trainer.forward_backward(group)
    result = [parameter.grad.clone() for parameter in trainer.parameters if parameter.grad is not None]
    trainer.optimizer.zero_grad()
    assert len(result) == len(trainer.parameters)
    return result


def test_accumulated_gradient_equals_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Micro-batches of 1 + 3 and 2 + 2 images, one of them without boxes, give the gradient of all 4 images."""
    trainer = make_trainer(tmp_path, clip_norm=None)
    samples = [trainer.task.train_data[index] for index in range(4)]
    whole = gradients(trainer, [collate(samples)])
    for sizes in ([1, 3], [2, 2], [1, 1, 1, 1]):
        bounds = np.cumsum([0, *sizes])
        parts = [collate(samples[start:end]) for start, end in itertools.pairwise(bounds)]
        for got, want in zip(gradients(trainer, parts), whole, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    halves = [gradients(trainer, [collate(samples[start : start + 2])]) for start in (0, 2)]
    mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    assert max(float((a - b).abs().max()) for a, b in zip(mean, whole, strict=True)) > 1e-3, "test would prove nothing"


def test_logged_losses_do_not_depend_on_the_split(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, clip_norm=None)
    samples = [trainer.task.train_data[index] for index in range(4)]
    rows = []
    for parts in ([samples], [samples[:2], samples[2:]]):
        gradients(trainer, [collate(part) for part in parts])
        rows.append({key: value for key, value in trainer.meter.row().items() if key.startswith("loss")})
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    assert {"loss", "loss_class", "loss_bbox", "loss_giou", "loss_class_0"} <= set(rows[0])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, clip_norm=0.05)
    loss, norm, finite = trainer.forward_backward([collate([trainer.task.train_data[3]])])
    assert finite
    assert loss > 0
    assert norm > 0.05
    after = math.sqrt(sum(float(parameter.grad.norm()) ** 2 for parameter in trainer.parameters))
    assert after == pytest.approx(0.05, rel=1e-3)


def test_random_states_round_trip(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]

    random.gauss(0, 1)
    np.random.normal()
    state = rng_state()
    torch.save(state, tmp_path / "rng.pt")
    wanted = draw()
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    with preserved_rng():
        draw()
    assert draw() == wanted


def crash_after(step: int) -> Any:
    """The process 'dies' after this optimizer step and saves nothing."""
    original = Trainer.train_step

    def train_step(self: Trainer, group: list[Batch]) -> None:
        original(self, group)
        if self.step == step:
            raise SystemExit

    return mock.patch.object(Trainer, "train_step", train_step)


Uninterrupted = Callable[[int], tuple[Path, RunResult, dict[str, Any]]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The folder, result and settings of a run with this number of workers, trained once."""

    @cache
    def run(workers: int) -> tuple[Path, RunResult, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("whole")
        settings = {"ema": 0.9, "workers": workers, "checkpoint_every": 2, "epochs": 4, "evaluate_every": 1}
        with fake_task(folder):
            return folder, train(make_recipe(folder, **settings)), settings

    return run


@pytest.mark.parametrize(
    ("crash", "restart", "workers"),
    [
        (9, 8, 0),  # first step of the third epoch; resumed from the end of the second epoch
        (7, 6, 2),  # resumed within the second epoch, two workers
        (11, 10, 2),
        (3, 2, 0),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    uninterrupted: Uninterrupted, tmp_path: Path, crash: int, restart: int, workers: int
) -> None:
    """Weights, averaged weights, optimizer, random states, best metric and last log lines, with dropout and EMA on."""
    whole, expected, settings = uninterrupted(workers)
    broken = tmp_path / "broken"
    with fake_task(broken):
        recipe = make_recipe(broken, **settings)
        with crash_after(crash), pytest.raises(SystemExit):
            train(recipe)
        assert last_state(broken / "run")["position"]["step"] == restart
        torch.manual_seed(1234)  # the new process may start in any state
        np.random.seed(99)
        result = train(recipe, resume=True)
    assert same_state(last_state(whole / "run"), last_state(broken / "run")) == []
    assert result.metrics == expected.metrics
    for name in ("last", "best"):
        files = [folder / "run" / name / "model.safetensors" for folder in (whole, broken)]
        assert same_weights(*files)
    volatile = {"time", "images_per_second", "memory_gb", "seconds"}
    logs = [
        [
            {key: value for key, value in row.items() if key not in volatile}
            for row in read_log(folder / "run" / "log.jsonl")
            if row["event"] not in ("start", "resume")
        ]
        for folder in (whole, broken)
    ]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0] if row["event"] == "train"] == list(range(1, 17))


def same_weights(a: Path, b: Path) -> bool:
    return same_state(load_file(a), load_file(b)) == []


def test_resume_needs_what_it_restores(tmp_path: Path) -> None:
    """Without the random states or the sampler position the runs differ: the test above can fail."""
    settings = {"checkpoint_every": 2, "epochs": 2, "evaluate_every": 0}
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, **settings))
        wanted = last_state(tmp_path / "run")["model"]
        for missing in ("rng", "position"):
            original = Trainer.load_state

            def forgetful(
                self: Trainer, state: dict[str, Any], _missing: str = missing, _original: Any = original
            ) -> None:
                if _missing == "rng":
                    state["rng"][0] = rng_state()
                else:
                    state["position"]["batch"] = 0
                _original(self, state)

            recipe = make_recipe(tmp_path, **settings)
            with crash_after(3), pytest.raises(SystemExit):
                train(recipe, overwrite=True)
            with mock.patch.object(Trainer, "load_state", forgetful):
                train(recipe, resume=True)
            assert same_state(wanted, last_state(tmp_path / "run")["model"]) != []


def test_evaluation_does_not_influence_the_training(tmp_path: Path) -> None:
    """The number of evaluations, and random numbers drawn in them, change no weight."""

    def noisy() -> Score:
        torch.rand(5)
        np.random.rand()
        return scores(0.1)()

    states = []
    for name, every in (("often", 1), ("never", 0)):
        with fake_task(tmp_path / name, evaluate=noisy):
            train(make_recipe(tmp_path / name, epochs=3, evaluate_every=every))
        states.append(last_state(tmp_path / name / "run"))
    assert same_state(states[0]["model"], states[1]["model"]) == []


@pytest.mark.slow
def test_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    states = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        with fake_task(folder):
            train(make_recipe(folder, epochs=2, workers=workers, evaluate_every=0))
        states.append(last_state(folder / "run"))
    assert same_state(states[0]["model"], states[1]["model"]) == []


def test_best_is_the_highest_ap_and_the_averaged_weights(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(None, 0.2, 0.5, 0.4, 0.5, 0.1)):
        result = train(make_recipe(tmp_path, ema=0.9, evaluate_every=1))
    assert result.metrics == {"AP": 0.5, "AP50": 1.0}
    assert result.best == tmp_path / "run" / "best" / "model.safetensors"
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "eval"]
    assert [row["AP"] for row in rows] == [None, 0.2, 0.5, 0.4, 0.5, 0.1]
    assert [row["best"] for row in rows] == [True, True, True, False, False, False]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    state = last_state(tmp_path / "run")
    last = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert same_state(dict(state["ema"]["model"]), last) == []
    assert same_state(dict(state["model"]), last) != []


def test_loss_falls(tmp_path: Path) -> None:
    with fake_task(tmp_path, dropout=0.0):
        train(make_recipe(tmp_path, epochs=40, batch_size=4, evaluate_every=0))
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:8], rows[-8:]))
    assert last < 0.75 * first


class Spoiled:
    """The real criterion, whose losses are not finite in some calls."""

    def __init__(self, criterion: Criterion, bad: set[int], value: float = math.nan) -> None:
        self.criterion, self.bad, self.value, self.calls = criterion, bad, value, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

    def __call__(self, *args: Any, **kwargs: Any) -> LossOutput:
        self.calls += 1
        output = self.criterion(*args, **kwargs)
        if self.calls not in self.bad:
            return output
        terms = output.terms | {"loss_giou": output.terms["loss_giou"] * self.value}
        return LossOutput(output.total * self.value, terms, output.matches)


def spoiled_task(folder: Path, bad: set[int], value: float = math.nan) -> Any:
    def build(recipe: Any) -> Any:
        task = make_task(folder, (1, 2, 0, 3))
        return replace(task, criterion=Spoiled(task.criterion, bad, value))

    return mock.patch.object(run, "build_task", build)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_with_a_loss_that_is_not_finite_are_skipped(tmp_path: Path, value: float) -> None:
    with spoiled_task(tmp_path, {2, 3, 6}, value):
        train(make_recipe(tmp_path, epochs=4, evaluate_every=0))
    rows = read_log(tmp_path / "run" / "log.jsonl")
    skipped = [row for row in rows if row["event"] == "skip"]
    assert [row["step"] for row in skipped] == [2, 3, 6]
    assert all(row["loss_giou"] is None and len(row["images"]) == 2 for row in skipped)
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 4, 5, 7, 8]
    assert all(torch.isfinite(value).all() for value in last_state(tmp_path / "run")["model"].values())


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    pattern = r"step 6: loss or gradient is not finite \(loss nan.*loss_giou nan.*images 10\d, 10\d; 3 steps in a row"
    with spoiled_task(tmp_path, {4, 5, 6}), pytest.raises(RunError, match=pattern) as caught:
        train(make_recipe(tmp_path, epochs=4, evaluate_every=0))
    assert caught.value.exit_code == 1
    assert last_state(tmp_path / "run")["position"]["step"] == 4  # the checkpoint of the last complete epoch is kept


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batch = collate([trainer.task.train_data[3]])
    trainer.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    loss, norm, finite = trainer.forward_backward([batch])
    assert math.isfinite(loss)
    assert not math.isfinite(norm)
    assert not finite


def test_bf16_trains_with_float32_losses(tmp_path: Path) -> None:
    seen = set()
    original = Criterion.__call__

    def spy(self: Criterion, *args: Any, **kwargs: Any) -> LossOutput:
        output = original(self, *args, **kwargs)
        seen.update(value.dtype for value in (output.total, *output.terms.values()))
        return output

    inside = set()
    linear = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        result = linear(self, x)
        inside.add(result.dtype)
        return result

    with fake_task(tmp_path), mock.patch.object(Criterion, "__call__", spy):
        with mock.patch.object(torch.nn.Linear, "forward", forward):
            train(make_recipe(tmp_path, epochs=2, precision="bf16", ema=0.9))
        assert inside == {torch.bfloat16}
        train(make_recipe(tmp_path, epochs=2, precision="fp32"), overwrite=True)  # in one process, one after the other
    assert seen == {torch.float32}
    assert {value.dtype for value in last_state(tmp_path / "run")["model"].values()} == {torch.float32}
