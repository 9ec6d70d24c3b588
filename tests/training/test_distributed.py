"""Two processes over gloo, in most steps one without boxes: exact resume, and the same result as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.training import train
from detrkit.training.loggers import read_log
from tests.training.fakes import fake_task, last_state, make_recipe, same_state
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
