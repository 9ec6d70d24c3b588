"""Benchmarks of training: published forms equal ours, and the model of long runs adds up."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.backends import BACKEND_VARIABLE
from detrkit.losses import build_criterion
from detrkit.models import create_model
from detrkit.structures import Target

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("published_forms", "scale"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["de_detr_lite0", "relation_detr_lite0"])
def test_published_forms_predict_and_lose_what_ours_do(
    benchmarks: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from published_forms import detr_losses, publish

    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    torch.manual_seed(0)
    model: Any = create_model(name, num_classes=5, num_queries=20).eval()
    images = torch.randn(2, 3, 96, 128)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, :, 100:] = True
    with torch.no_grad():
        ours = model(images, padding)
        published = publish(model)(images, padding)
    torch.testing.assert_close(published.logits, ours.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(published.boxes, ours.boxes, atol=1e-4, rtol=1e-4)
    if name == "de_detr_lite0":
        targets = [Target(labels=torch.tensor([1, 4]), boxes=torch.rand(2, 4) * 0.3 + 0.2)] * 2
        terms = build_criterion(model.config)(ours, targets).terms
        losses = detr_losses(ours, targets)
        assert len(losses) == 3 * len(ours.logits)
        for key, value in losses.items():
            torch.testing.assert_close(value, terms[key], atol=1e-5, rtol=1e-5)


def machine(**changes: Any) -> Any:
    from scale import Machine

    values: dict[str, Any] = {"compute": 0.2, "backward": 0.1, "batch": 2, "picture": 0.01, "workers": 4}
    return Machine(**values | {"gradient_bytes": 10**9, "bandwidth": 10e9, "hidden": 0.5} | changes)


def test_a_step_is_its_computation_or_its_loader_and_what_of_the_all_reduce_is_not_hidden(benchmarks: None) -> None:
    from scale import ring_seconds, step_seconds

    assert ring_seconds(machine(), 1) == 0
    assert ring_seconds(machine(), 2) == pytest.approx(0.1)
    assert ring_seconds(machine(latency=0.01), 8) == pytest.approx(0.175 + 0.14)
    assert step_seconds(machine(), 1) == pytest.approx(0.2)
    assert step_seconds(machine(), 2) == pytest.approx(0.25)
    assert step_seconds(machine(hidden=1.0), 2) == pytest.approx(0.2)
    assert step_seconds(machine(picture=1.0), 1) == pytest.approx(0.5), "two pictures by four workers"
    assert step_seconds(machine(workers=0), 1) == pytest.approx(0.22), "read between the steps"
    assert step_seconds(machine(workers=0, crowding=1.5, hidden=1.0), 2) == pytest.approx(0.33)


def test_a_plan_needs_a_check_that_held(benchmarks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scale import plan

    path = tmp_path / "check.json"
    assumed: dict[str, Any] = {"inside": 300.0, "between": 25.0, "latency": 1e-5, "hidden": 0.8, "workers": 8}
    options = argparse.Namespace(checked=path, **assumed)
    with pytest.raises(SystemExit, match="has no check in which the model held"):
        plan(options)
    path.write_text(json.dumps({"rows": [{"error": 0.01}, {"error": -0.2}]}))
    with pytest.raises(SystemExit, match="has no check in which the model held"):
        plan(options)
    path.write_text(json.dumps({"rows": [{"error": 0.01}, {"error": -0.1}]}))
    rows = plan(options)["rows"]
    assert [row["gpus"] for row in rows] == [1, 8, 64] * 2
    assert all(row["all_reduce_s"] == 0 for row in rows if row["gpus"] == 1)
    assert rows[0]["hours"] > rows[1]["hours"] > rows[2]["hours"]
