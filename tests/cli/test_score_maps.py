"""``detrkit score panoptic`` and ``detrkit score semantic``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from tests.metrics.maps import CAR, DOG, SKY, case


@pytest.fixture
def panoptic(tmp_path: Path) -> list[str]:
    truth, found = np.full((10, 10), 1), np.full((10, 10), 5)
    truth[:, 5:], found[:, 4:] = 2, 6
    files = case(tmp_path, [(truth, {1: CAR, 2: SKY})], [(found, {5: CAR, 6: SKY})])
    return ["score", "panoptic", "--gt", str(files["ground_truth"]), "--results", str(files["results"])]


@pytest.fixture
def semantic(tmp_path: Path) -> list[str]:
    for folder, values in (("maps", [[0, 0, 1, 9]]), ("found_maps", [[0, 1, 1, 1]])):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array(values, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.json").write_text(json.dumps(["road", "house", "zweite Klasse µ"]))
    words = ["--gt", tmp_path / "maps", "--results", tmp_path / "found_maps", "--classes", tmp_path / "classes.json"]
    return ["score", "semantic", *map(str, words), "--ignore", "9"]


def test_panoptic_json(panoptic: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*panoptic, "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    things, stuff = {"PQ": 0.8, "SQ": 0.8, "RQ": 1.0}, {"PQ": 5 / 6, "SQ": 5 / 6, "RQ": 1.0}
    undefined = {"PQ": None, "SQ": None, "RQ": None}
    assert content == {
        "protocol": "panoptic",
        "iou_type": "segm",
        "metrics": {
            "All": {"PQ": (0.8 + 5 / 6) / 2, "SQ": (0.8 + 5 / 6) / 2, "RQ": 1.0, "n": 2},
            "Things": things | {"n": 1},
            "Stuff": stuff | {"n": 1},
        },
        "per_class": {"car": things, "dog": undefined, "sky": stuff, "road": undefined},
    }


def test_panoptic_table(panoptic: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(panoptic) == 0
    out = capfd.readouterr().out
    for text in ("All", "Things", "Stuff", "PQ", "0.800", "0.833", "not defined"):
        assert text in out
    assert out.index("sky") < out.index("car") < out.index("dog")


def test_panoptic_folders_elsewhere(panoptic: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("gt", "found"):
        (tmp_path / name).rename(tmp_path / f"{name}_png")
    assert run(panoptic) == 2
    assert "--gt-images" in capfd.readouterr().err
    more = ["--gt-images", str(tmp_path / "gt_png"), "--results-images", str(tmp_path / "found_png")]
    assert run([*panoptic, *more, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["metrics"]["All"]["n"] == 2


def test_things_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    side = (np.full((4, 4), 1), {1: DOG})
    files = case(tmp_path, [side], [side])
    words = ["score", "panoptic", "--gt", str(files["ground_truth"]), "--results", str(files["results"])]
    assert run([*words, "--json"]) == 0
    metrics = json.loads(capfd.readouterr().out)["metrics"]
    assert metrics["Stuff"] == {"PQ": None, "SQ": None, "RQ": None, "n": 0}
    assert metrics["All"] == metrics["Things"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "n": 1}
    assert run(words) == 0
    assert "not defined" in capfd.readouterr().out


def test_semantic_json(semantic: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*semantic, "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert (content["protocol"], content["iou_type"]) == ("semantic", "segm")
    assert content["metrics"] == pytest.approx({"mIoU": 0.5, "fwIoU": 0.5, "mAcc": 0.75, "aAcc": 2 / 3})
    assert content["per_class"]["zweite Klasse µ"] == {"IoU": None, "Acc": None}


def test_semantic_table(semantic: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(semantic) == 0
    out = capfd.readouterr().out
    for text in ("mIoU", "fwIoU", "0.500", "zweite Klasse µ", "not defined"):
        assert text in out


@pytest.mark.parametrize("command", ["panoptic", "semantic"])
def test_bad_input_is_two_and_one_line(
    command: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = request.getfixturevalue(command)
    next((tmp_path / "found_maps" if command == "semantic" else tmp_path / "found").iterdir()).write_bytes(b"no PNG")
    assert run([*words, "--json"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"detrkit: error: {tmp_path}")
    assert "is not a PNG file" in captured.err
    assert captured.err.count("\n") == 1
