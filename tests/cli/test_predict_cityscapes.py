"""``detrkit predict --format cityscapes``: the benchmark's files, which ``detrkit score`` takes against gtFine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from detrkit.data import load_dataset
from detrkit.data.gtfine_files import LABEL_CLASSES
from detrkit.inference import predictor as predictor_module
from detrkit.structures import Categories, Category
from tests.data.trees import gtfine_tree, gtfine_values
from tests.inference.planted_detector import Planted, PlantedDetector

LABEL_OF = {one.name: one.label for one in LABEL_CLASSES}
FRAMES = ["frankfurt_000000_010351", "munster_000001_000019"]  # as they are predicted
NUMBERS = [1, 0]
TASKS = ["inst", "sem", "pan"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gtfine_tree(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture
def plant(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Categories]:
    """Make every checkpoint a model of a task that knows the images of val, which it sees at four times their size."""

    def change(task: str, categories: Categories | None = None) -> Categories:
        classes = load_dataset(root, split="val", task=task).categories if categories is None else categories
        scenes = [planted(gtfine_values(number), classes, task) for number in NUMBERS]
        model = PlantedDetector(scenes, task=task, categories=classes, eval_short_side=256)
        monkeypatch.setattr(predictor_module, "_load", lambda _: model)
        return classes

    return change


def planted(values: Any, classes: Categories, task: str) -> list[Planted]:
    """What a perfect model finds: objects and, unless of instances alone, stuff; groups only as classes of pixels."""
    label_of = {str(one.name): label for label, one in enumerate(classes)}
    labels = np.where(values >= 1000, values // 1000, values)
    keys = labels if task == "sem" else values
    found = []
    for key in np.unique(keys).tolist():
        mask = keys == key
        name = next((one.name for one in LABEL_CLASSES if one.label == labels[mask][0]), None)
        group = task != "sem" and key in range(24, 34)
        if name in label_of and not group:
            found.append(Planted(label_of[name], mask))
    return found


def predict(folder: Path, out: Path, *words: str) -> int:
    return run(["predict", str(folder), "--out", str(out), "--format", "cityscapes", "--device", "cpu", *words])


def score(capfd: pytest.CaptureFixture[str], *words: Any) -> Any:
    capfd.readouterr()
    assert run(["score", *map(str, words), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("task", TASKS)
def test_perfect_predictions_score_exactly_100(
    root: Path, tmp_path: Path, plant: Callable[..., Any], capfd: pytest.CaptureFixture[str], task: str
) -> None:
    plant(task)
    assert predict(root / "leftImg8bit" / "val", tmp_path, "--no-images") == 0
    assert f"and {tmp_path / 'cityscapes'}" in capfd.readouterr().out
    found = tmp_path / "cityscapes"
    for gt in (root, root / "gtFine", root / "gtFine" / "val"):
        if task == "inst":
            assert score(capfd, "cityscapes", "--gt", gt, "--results", found)["metrics"] == {"AP": 1, "AP50": 1}
        elif task == "sem":
            metrics = score(capfd, "semantic", "--gt", gt, "--results", found)["metrics"]
            assert set(metrics.values()) == {1.0}
        else:
            for results in (found / "panoptic.json", tmp_path / "panoptic.json"):
                metrics = score(capfd, "panoptic", "--gt", gt, "--results", results)["metrics"]
                assert [metrics[group]["PQ"] for group in ("All", "Things", "Stuff")] == [1, 1, 1]
                assert [metrics[group]["n"] for group in ("All", "Things", "Stuff")] == [6, 3, 3]


def test_instances_have_label_ids_and_masks_beside_them(
    root: Path, tmp_path: Path, plant: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    plant("inst")
    assert predict(root / "leftImg8bit" / "val", tmp_path, "--threshold", "0.5") == 0
    listed = [path for path in files(tmp_path / "cityscapes") if path.endswith(".txt")]
    assert listed == [f"{frame}_pred.txt" for frame in FRAMES]
    for frame, number in zip(FRAMES, NUMBERS, strict=True):
        rows = [line.split(" ") for line in (tmp_path / "cityscapes" / f"{frame}_pred.txt").read_text().splitlines()]
        assert sorted(row[1] for row in rows) == ["24", "26", "26", "26", "33"]
        values = gtfine_values(number)
        for name, label, confidence in rows:
            with Image.open(tmp_path / "cityscapes" / name) as image:
                mask = np.asarray(image)
            assert set(np.unique(mask)) == {0, 255}
            assert np.unique(values[mask > 0] // 1000).tolist() == [int(label)]
            assert float(confidence) == pytest.approx(0.99, abs=1e-3)


def test_maps_have_label_ids(root: Path, tmp_path: Path, plant: Callable[..., Any]) -> None:
    plant("sem")
    assert predict(root / "leftImg8bit" / "val", tmp_path / "sem", "--threshold", "0.5") == 0
    assert files(tmp_path / "sem" / "cityscapes") == [f"{frame}_pred.png" for frame in FRAMES]
    with Image.open(tmp_path / "sem" / "cityscapes" / f"{FRAMES[1]}_pred.png") as image:
        assert image.mode == "L"
        assert set(np.unique(image)) == {0, 7, 11, 23, 24, 26, 33}, "0: no class"
    plant("pan")
    assert predict(root / "leftImg8bit" / "val", tmp_path / "pan") == 0
    submitted = tmp_path / "pan" / "cityscapes"
    assert files(submitted) == ["panoptic.json", *(f"panoptic/{frame}_pred.png" for frame in FRAMES)]
    rows = json.loads((submitted / "panoptic.json").read_text())["annotations"]
    assert [row["image_id"] for row in rows] == FRAMES
    assert {info["category_id"] for row in rows for info in row["segments_info"]} == {7, 11, 23, 24, 26, 33}


def test_the_test_split_is_predicted_and_replaced(root: Path, tmp_path: Path, plant: Callable[..., Any]) -> None:
    test = root / "leftImg8bit" / "test"
    plant("inst")
    assert predict(test, tmp_path) == 0
    plant("inst")
    assert predict(test / "berlin", tmp_path) == 0
    names = files(tmp_path / "cityscapes")
    assert {name.split("_pred")[0] for name in names} == {"berlin_000000_000019"}, "nothing of the earlier run"
    plant("sem")
    assert predict(test, tmp_path) == 0
    assert files(tmp_path / "cityscapes") == ["berlin_000000_000019_pred.png", "bonn_000003_000019_pred.png"]
    plant("sem")
    assert run(["predict", str(test), "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert files(tmp_path / "cityscapes") == [], "they would not be those of these predictions"


def test_nothing_found_is_an_empty_list(root: Path, tmp_path: Path, plant: Callable[..., Any]) -> None:
    plant("inst")
    assert predict(root / "leftImg8bit" / "test", tmp_path, "--threshold", "1") == 0
    texts = list((tmp_path / "cityscapes").iterdir())
    assert [path.read_text() for path in texts] == ["", ""]


def test_what_is_no_submission(
    root: Path, tmp_path: Path, plant: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, *words: str) -> str:
        capfd.readouterr()
        assert predict(folder, tmp_path / "out", *words) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        return err

    val = root / "leftImg8bit" / "val"
    plant("inst", Categories([Category(1, "person"), Category(2, "bolt")]))
    assert "class 'bolt' is none of the 8 that the Cityscapes benchmark scores (person, car, " in refused(val)
    plant("sem", Categories([Category(1, "road"), Category(2, "bolt")]))
    assert "class 'bolt' is none of the 19" in refused(val)
    plant("inst")
    assert "scores masks, not boxes: choose --task inst, sem or pan" in refused(val, "--task", "det")
    Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
    assert "photo.png: is not named as the images of Cityscapes" in refused(tmp_path / "photo.png")
    for folder in "ab":
        (tmp_path / "twice" / folder).mkdir(parents=True)
        Image.new("RGB", (96, 64)).save(tmp_path / "twice" / folder / f"{FRAMES[0]}_leftImg8bit.png")
    assert f"is the frame {FRAMES[0]}, as a/{FRAMES[0]}_leftImg8bit.png is" in refused(tmp_path / "twice")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "cityscapes").mkdir(parents=True)
    (tmp_path / "out" / "cityscapes" / "mine_pred.txt").write_text("")
    assert "mine_pred.txt: is not from the earlier run" in refused(val)


def test_score_semantic_without_classes_is_for_gtfine(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    for frame in FRAMES:
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(maps / f"{frame}.png")
    assert run(["score", "semantic", "--gt", str(maps), "--results", str(maps)]) == 2
    assert "class maps of other data need --classes" in capfd.readouterr().err
    assert run(["score", "semantic", "--gt", str(root), "--results", str(maps)]) == 2
    assert "255 is no label id of Cityscapes (0 to 33; pixels without a class are 0" in capfd.readouterr().err
    (maps / f"{FRAMES[0]}.png").unlink()
    assert run(["score", "semantic", "--gt", str(root), "--results", str(maps)]) == 2
    assert f"{FRAMES[0]} has no label image; every image" in capfd.readouterr().err
