"""The report of panoptic and semantic maps: numbers of the classes, what they are made of, confusion of pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detrkit.cli.main import run as command
from detrkit.metrics.score import Score
from detrkit.report.map_scores import MapScores, read_map_scores
from detrkit.report.run_folder import open_run
from tests.report.runs import write_run
from tests.report.test_page import read

NAMES = ("road", "a very long name of a class", "tree", "sky", "<i>&")
PIXELS = np.array(
    [
        [90_000, 5_000, 0, 0, 0, 5_000],
        [26_000, 10_000, 3_000, 0, 0, 1_000],
        [0, 0, 7_999, 0, 1, 0],
        [0, 0, 0, 1_000_000, 0, 234_567],
        [0, 0, 0, 0, 0, 0],
    ]
)


def semantic() -> MapScores:
    hit, true, found = np.diag(PIXELS), PIXELS.sum(axis=1), PIXELS[:, :-1].sum(axis=0)
    iou = [float(value) for value in hit[:4] / (true + found - hit)[:4]]
    rows = {name: {"IoU": value, "Acc": 0.5} for name, value in zip(NAMES, iou, strict=False)}
    rows[NAMES[4]] = {"IoU": None, "Acc": None}
    metrics = {"mIoU": float(np.mean(iou)), "fwIoU": 0.7, "mAcc": 0.5, "aAcc": 0.81}
    score = Score("semantic", "segm", metrics, rows, ("mIoU", "fwIoU", "aAcc"), pixels=PIXELS)
    return MapScores(score=score, columns=("IoU", "Acc"))


def panoptic() -> MapScores:
    rows = {name: {"PQ": 0.1 * n * 0.8, "SQ": 0.8, "RQ": 0.1 * n} for n, name in enumerate(NAMES, start=1)}
    metrics = {"PQ": 0.24, "SQ": 0.8, "RQ": 0.3, "PQ_things": 0.2, "PQ_stuff": 0.3}
    score = Score("panoptic", "segm", metrics, rows, ("PQ", "PQ_things", "PQ_stuff"), pixels=PIXELS)
    return MapScores(score=score, columns=("PQ", "SQ", "RQ"))


def run_with(root: Path, maps: MapScores) -> Path:
    run = write_run(root, results=[])
    (run / "best" / "predictions.json").unlink()
    (run / "best" / "map_scores.json").write_text(json.dumps(maps.to_json()))
    return run


@pytest.mark.parametrize("kind", [semantic, panoptic])
def test_the_page_shows_what_was_scored(tmp_path: Path, kind: type) -> None:
    maps: MapScores = kind()
    run = run_with(tmp_path, maps)
    kept = read_map_scores(run / "best" / "map_scores.json")
    assert kept is not None
    assert kept == maps
    np.testing.assert_array_equal(kept.score.pixels, PIXELS)
    assert command(["report", str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    rows = read(text).rows
    heading = ["class", "share of pixels", *maps.columns]
    first = rows.index(heading)
    table = {row[0]: row for row in rows[first + 1 : first + 7]}
    total = PIXELS.sum()
    for label, (name, numbers) in enumerate(maps.score.per_class.items()):
        values = ["–" if numbers[column] is None else f"{numbers[column]:.3f}" for column in maps.columns]
        assert table[name] == [name, f"{PIXELS[label].sum() / total:.1%}", *values]
    primary = maps.score.metrics[maps.score.primary]
    assert table["all"][2] == f"{primary:.3f}"
    worst = min(maps.score.per_class.items(), key=lambda item: item[1][maps.columns[0]] or 9)
    assert rows[first + 1][0] == worst[0]
    confusion = rows.index(["labelled ↓ found →", *NAMES, "none"])
    assert rows[confusion + 1] == ["road", "90k 90%", "5,000 5%", "0 0%", "0 0%", "0 0%", "5,000 5%"]
    assert rows[confusion + 4][4] == "1.0M 81%"
    assert rows[confusion + 5][0] == "<i>&"
    assert rows[confusion + 6][0] == "model"  # no row of what is found where nothing is labelled
    assert "Precision and recall" not in text
    assert (f"{maps.score.per_class['road']['PQ']:.3f} = 0.80 x 0.10" in text) if "SQ" in maps.columns else True


def test_pixels_taken_for_another_class_are_told(tmp_path: Path) -> None:
    (found,) = [one for one in open_run(run_with(tmp_path, semantic())).advice if one.kind == "taken for another"]
    assert (
        "65% of the pixels labelled a very long name of a class are found as road, and its IoU is 0.222" in found.reason
    )
    sound = semantic()
    rows = {name: {"IoU": 0.8, "Acc": 0.9} for name in NAMES}
    better = Score("semantic", "segm", sound.score.metrics, rows, sound.score.headline, pixels=PIXELS)
    maps = MapScores(score=better, columns=sound.columns)
    run = run_with(tmp_path / "sound", maps)
    assert all(one.kind != "taken for another" for one in open_run(run).advice)


def test_scores_that_cannot_be_read_are_as_good_as_none(tmp_path: Path) -> None:
    run = run_with(tmp_path, semantic())
    path = run / "best" / "map_scores.json"
    values = json.loads(path.read_text())
    for damaged in ("", "[]", json.dumps({**values, "pixels": [[1, 2]]})):
        path.write_text(damaged)
        assert open_run(run).maps is None
