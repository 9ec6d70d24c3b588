"""Tests of ``detrkit bench``: what it says of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import detrkit
from detrkit.cli.main import run
from detrkit.export.bench import bench
from tests.small import small_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    detrkit.save(small_model("deformable_detr_lite0"), path)
    return path


def test_parameters_and_operations(checkpoint: Path) -> None:
    """Samples of token rows count: four corners, weighed and added, of every channel."""
    (row,) = bench([checkpoint], rounds=1, threads=1, memory=False)["rows"]
    model = detrkit.load(checkpoint)
    assert row["parameters"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)
    sampled = []

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.detrkit.ms_deform_attn_sides:
                value, _, locations, _ = args
                sampled.append(8 * locations[..., 0].numel() * value.shape[3])
            return func(*args, **(kwargs or {}))

    from detrkit.data.images import read_image
    from detrkit.export.bench import _Checkpoint
    from detrkit.export.example_images import example_images

    images, padding, _ = _Checkpoint(checkpoint).prepare(read_image(example_images(None, None)[0]))
    with FlopCounterMode(display=False) as counter, Counted():
        model(images, padding)
    assert len(sampled) > 1
    assert row["gflops"] == pytest.approx((counter.get_total_flops() + sum(sampled)) / 1e9)


def test_the_table_names_them(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["bench", str(checkpoint), "--rounds", "1", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    for column in ("M parameters", "GFLOPs", "pre ms", "model ms", "post ms", "images/s"):
        assert column in said
