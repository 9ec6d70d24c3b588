"""Two processes over gloo, in most steps one without boxes: exact resume, and the same result as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.training import train
from detrkit.training.loggers import read_log
from tests.training.fakes import fake_task, last_state, make_recipe, same_state
from tests.training.miniatures import MODELS, OBJECTS, train_miniature
from tests.training.two_processes import BOXES, STEPS

pytestmark = pytest.mark.xdist_group("two processes")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, "-m", "tests.training.two_processes", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_two_processes_equal_one_that_accumulates(runs: Path, tmp_path: Path) -> None:
    """The same images per step, normalised by the boxes of both processes: equal weights except for rounding."""
    with fake_task(tmp_path, BOXES, dropout=0.0):
        train(make_recipe(tmp_path, **STEPS, accumulate=2))
    one, two = last_state(tmp_path / "run"), last_state(runs / "plain" / "run")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["position"]["step"] == two["position"]["step"] == 9
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)
    logs = [read_log(folder / "run" / "log.jsonl") for folder in (tmp_path, runs / "plain")]
    numbers = [
        [row[key] for row in log if row["event"] == "train" for key in ("loss", "loss_giou", "loss_class_0")]
        for log in logs
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
    scores = [[row["AP"] for row in log if row["event"] == "eval"] for log in logs]
    assert len(scores[0]) == len(scores[1]) == 2


def test_only_one_process_writes(runs: Path) -> None:
    rows = read_log(runs / "plain" / "run" / "log.jsonl")
    assert [row["event"] for row in rows].count("start") == 1
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, 10))


def test_resumed_processes_equal_uninterrupted_ones_bit_for_bit(runs: Path) -> None:
    whole, broken = last_state(runs / "whole" / "run"), last_state(runs / "broken" / "run")
    assert len(whole["rng"]) == 2
    assert not torch.equal(whole["rng"][0]["torch"], whole["rng"][1]["torch"]), "each process draws its own dropout"
    assert same_state(whole, broken) == []
    assert "resume" in [row["event"] for row in read_log(runs / "broken" / "run" / "log.jsonl")]


def steps_of(runs: Path, name: str, *, fixed: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = torch.load(runs / "miniatures" / f"{name}-{fixed}.pt", weights_only=False)
    assert len(steps) == 2
    return steps


@pytest.mark.parametrize("name", MODELS)
def test_miniatures_of_published_models_learn_the_same_from_one_batch_or_two(
    runs: Path, tmp_path: Path, name: str
) -> None:
    """Nothing is drawn: the loss and every gradient are those of one process with the same four images."""
    ones = train_miniature(tmp_path, name, fixed=True, batch_size=4, device="cpu")
    for one, two in zip(ones, steps_of(runs, name, fixed=True), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert one["gradients"].keys() == two["gradients"].keys()
        largest = max(float(value.abs().max()) for value in one["gradients"].values())
        assert largest > 0.01
        for key, value in one["gradients"].items():
            torch.testing.assert_close(two["gradients"][key], value, rtol=1e-5, atol=1e-5 * largest, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_normalisers_and_gradients_are_those_of_both_processes_where_they_draw(runs: Path, name: str) -> None:
    """Denoising and mask points differ, and so do the objects of the two: what is exchanged is exact."""
    for step in steps_of(runs, name, fixed=False):
        assert sorted(step["objects"][0] + step["objects"][1]) == sorted(OBJECTS)
        assert sum(step["objects"][0]) != sum(step["objects"][1])
        for counts in step["counts"]:  # of both processes
            assert counts.objects == counts.originals == counts.things == sum(OBJECTS) / 2
            assert counts.matched == sum(OBJECTS) / 2
            assert counts.images == len(OBJECTS) / 2
            assert counts.matched + counts.unmatched == 12 * counts.images
        first, second = step["alone"]
        assert any(not torch.equal(first[key], second[key]) for key in first), "each process has its own images"
        for key, value in step["averaged"].items():
            assert torch.equal(value, (first[key] + second[key]) / 2), key
