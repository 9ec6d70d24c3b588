"""benchmarks/vs_peers.py: one clock over several calls, weights that go on, the same score for every side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.scripts import imported_script
from tests.training.test_curve import data_of


@pytest.fixture
def peers() -> Iterator[ModuleType]:
    with imported_script("peers") as module:
        yield module


@pytest.fixture
def vs_peers(peers: ModuleType) -> Iterator[ModuleType]:
    with imported_script("vs_peers") as module:
        yield module


def test_two_calls_are_one_run_and_both_sides_are_scored_alike(
    vs_peers: ModuleType, peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a hundredth of a second whenever it is asked."""
    ticks = itertools.count()
    monkeypatch.setattr(vs_peers, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
    data, runs = data_of(tmp_path / "data", rare=0), tmp_path / "runs"
    rates: list[float] = []

    class Fixed(peers.Peer):
        """Says that a bolt is where they all are, and counts its steps in a weight."""

        title, weights, how, batch, ema = "fixed", "none", "SGD", 4, 0.5

        def build(self, classes: int) -> nn.Module:
            assert classes == 2
            return nn.Linear(1, 1, bias=False)

        def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=1.0)

        def factor(self, progress: float, step: int) -> float:
            rates.append(progress)
            return 0.5

        def prepare(self, image: Image.Image, boxes: Tensor, labels: Tensor, *, augment: bool) -> Any:
            return peers.Example(torch.zeros(1), boxes, labels, (image.height, image.width))

        def loss(self, model: nn.Module, examples: Sequence[Any]) -> Tensor:
            assert [tuple(one.labels.tolist()) for one in examples] == [(0,)] * 4
            return -next(model.parameters()).sum()

        def detect(self, model: nn.Module, example: Any) -> Any:
            assert not model.training
            boxes = torch.tensor([[4.0, 6, 18, 22], [24.0, 6, 38, 22], [0.0, 0, 3, 3]])
            return boxes, torch.tensor([0.9, 0.8, 0.95]), torch.tensor([0, 1, 2])  # the last class does not exist

    monkeypatch.setitem(peers.PEERS, "fixed", Fixed())
    words = ["train", "fixed", "--data", str(data), "--minutes", "0.02", "--runs", str(runs), "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        vs_peers.main([*words, "--chunk", "0.005"])
        (folder,) = runs.iterdir()
        first = json.loads((folder / "run.json").read_text())
        assert not first["done"]
        assert 0.3 <= first["seconds"] < 0.4
        vs_peers.main(words)
        second = json.loads((folder / "run.json").read_text())
        assert second["done"]
        assert 1.2 <= second["seconds"] < 1.3
        state = torch.load(folder / "state.pt", weights_only=True)
        assert state["step"] == second["steps"] > first["steps"]
        vs_peers.main(["score", "--data", str(data), "--runs", str(runs), "--out", str(tmp_path / "out.json")])
    finally:
        torch.set_num_threads(threads)
    assert rates == sorted(rates)
    assert rates[-1] < 1.02
    content = json.loads((tmp_path / "out.json").read_text())
    (row,) = content["rows"]
    assert row["AP"] == pytest.approx(1.0)
    assert (row["title"], row["images"], row["memory_gb"]) == ("fixed", 205, second["memory_gb"])
    assert "fixed" not in content["skipped"]


def test_parts_and_boxes_are_those_of_the_files(vs_peers: ModuleType, tmp_path: Path) -> None:
    data = data_of(tmp_path / "data", rare=2)
    (data / "splits").mkdir()
    (data / "splits" / "train_25pct_seed0.txt").write_text("train02.png\ntrain07.png\n")
    part = vs_peers.part_of(data, 51, tmp_path)
    rows = vs_peers.read_split(part, data / "images" / "train")
    assert [row[0] for row in rows] == [2, 7]
    assert rows[0][2].tolist() == [[4, 6, 18, 22], [24, 6, 38, 22]]
    assert [row[3].tolist() for row in rows] == [[0, 1], [0]]
    assert vs_peers.part_of(data, 205, tmp_path).name == "instances_train.json"


def test_flips_and_frames(peers: ModuleType) -> None:
    image, boxes = torch.zeros(3, 10, 40), torch.tensor([[4.0, 2, 14, 8]])
    image[:, 2:8, 4:14] = 1
    seen = set()
    for _ in range(20):
        picture, moved = peers.flipped(image, boxes)
        x1, y1, x2, y2 = (int(value) for value in moved[0])
        seen.add(x1)
        assert picture[:, y1:y2, x1:x2].min() == 1
        assert picture.sum() == image.sum()
    assert seen == {4, 26}
    assert peers.centred(boxes, image)[0].tolist() == pytest.approx([9 / 40, 0.5, 0.25, 0.6])
    picture, moved = peers.resized(Image.new("RGB", (40, 10)), boxes, 20, 60)
    assert picture.shape == (3, 20, 60)
    assert moved.tolist() == [[6, 4, 21, 16]]
