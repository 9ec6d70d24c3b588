"""``detrkit score``: output and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detrkit.cli.main import run

TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "zweite Klasse µ"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}],
}
HIT = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "gt.json").write_text(json.dumps(TRUTH))
    (tmp_path / "results.json").write_text(json.dumps([HIT]))
    return {"gt": str(tmp_path / "gt.json"), "results": str(tmp_path / "results.json"), "folder": tmp_path}


def score(files: dict[str, Any], *more: str) -> int:
    return run(["score", "coco", "--gt", files["gt"], "--results", files["results"], *more])


def test_json_is_the_only_thing_on_stdout(files: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    """capfd, not capsys: output of libraries below Python is captured too."""
    assert score(files, "--json") == 0
    captured = capfd.readouterr()
    score_json = json.loads(captured.out)
    assert list(score_json) == ["protocol", "iou_type", "metrics", "per_class"]
    assert (score_json["protocol"], score_json["iou_type"]) == ("coco", "bbox")
    assert score_json["metrics"]["AP"] == pytest.approx(1.0)
    assert score_json["metrics"]["APl"] is None
    assert score_json["per_class"]["zweite Klasse µ"]["AP"] is None
    assert captured.err == ""


def test_warnings_go_to_stderr(files: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    Path(files["results"]).write_text(json.dumps([HIT, {**HIT, "category_id": 77}]))
    with pytest.warns(UserWarning, match="category ids 77"):
        assert score(files, "--json") == 0
    assert json.loads(capfd.readouterr().out)["metrics"]["AP"] == pytest.approx(1.0)


def test_table(files: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert score(files) == 0
    out = capfd.readouterr().out
    for word in ("AP50", "ARl", "1.000", "cell", "zweite Klasse µ", "not defined"):
        assert word in out
    assert out.index("cell") < out.index("zweite")


def test_masks(files: dict[str, Any], shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden" / "eval_coco"
    words = ["--gt", str(folder / "gt.json"), "--results", str(folder / "dt_segm.json"), "--iou", "segm", "--json"]
    assert run(["score", "coco", *words]) == 0
    score_json = json.loads(capfd.readouterr().out)
    expected = json.loads((folder / "expected.json").read_text())["segm"]
    assert score_json["iou_type"] == "segm"
    assert [score_json["metrics"][name] for name in expected["stats_names"]] == pytest.approx(expected["stats"])


@pytest.mark.parametrize("text", ['{"annotations": 1}', "not json", '[{"image_id": 9, "category_id": 1}]'])
def test_bad_results_are_exit_code_2(files: dict[str, Any], capfd: pytest.CaptureFixture[str], text: str) -> None:
    Path(files["results"]).write_text(text)
    assert score(files, "--json") == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"detrkit: error: {files['results']}")
    assert captured.err.count("\n") == 1


def test_unknown_iou_type_is_exit_code_2(files: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--iou", "keypoints") == 2
    assert "keypoints" in capfd.readouterr().err


@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_lvis(shared: Path, iou: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden" / "eval_lvis"
    files = ["--gt", str(folder / "gt.json"), "--results", str(folder / f"dt_{iou}.json")]
    assert run(["score", "lvis", *files, "--iou", iou, "--json"]) == 0
    score_json = json.loads(capfd.readouterr().out)
    assert (score_json["protocol"], score_json["iou_type"]) == ("lvis", iou)
    assert score_json["metrics"] == pytest.approx(json.loads((folder / "expected.json").read_text())[iou], abs=1e-9)
    assert run(["score", "lvis", *files, "--iou", iou]) == 0
    out = capfd.readouterr().out
    assert f"LVIS {iou}" in out
    assert "APr" in out


def test_lvis_needs_lvis_annotations(files: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "lvis", "--gt", files["gt"], "--results", files["results"]]) == 2
    assert "image id 1 has no list 'neg_category_ids'" in capfd.readouterr().err
