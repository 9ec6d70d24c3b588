"""What a run records for its report, and the report at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.metrics import score_coco
from detrkit.report.facts import read_facts
from detrkit.report.run_log import run_log
from detrkit.training import run_report, train
from detrkit.training.run_report import RunReport
from tests.training.fakes import fake_task, make_images, make_recipe

BOXES = (1, 2, 0, 3, 1, 2, 2)


def test_a_run_ends_with_its_report(tmp_path: Path) -> None:
    """The kept detections have the score of the best evaluation; the page has it too."""
    overrides = {"training.epochs": 24, "training.evaluate_every": 12, "logging.every": 50}
    with fake_task(tmp_path, BOXES, num_queries=8):
        result = train(make_recipe(tmp_path, **overrides), callbacks=[RunReport()])
    run = tmp_path / "run"
    data = make_images(tmp_path / "images", BOXES)
    kept = json.loads((run / "best" / "predictions.json").read_bytes())
    assert score_coco(data.coco_ground_truth(), kept).metrics["AP"] == result.metrics["AP"]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert f"<td>{result.metrics['AP50']:.3f}</td>" in text
    facts = read_facts(run)
    assert facts is not None
    assert facts.train.classes == {"red": 7, "blue": 4}
    assert facts.shared_images == len(BOXES)  # it is validated on its training images
    assert facts.train_score == pytest.approx(run_log(run / "log.jsonl").evaluations[-1].scores["AP"])
    assert facts.queries == 8
    assert "Take the training images out of the validation set" in text


def test_a_report_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("an odd data set")

    monkeypatch.setattr(run_report, "data_facts", fail)
    with fake_task(tmp_path):
        assert train(make_recipe(tmp_path), callbacks=[RunReport()]).best.is_file()
    assert "warning: the report cannot be written (ZeroDivisionError: an odd data set)" in capfd.readouterr().err
