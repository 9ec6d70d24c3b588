"""``detrkit predict --task``: the files of every task, which ``detrkit score`` scores, and earlier runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from detrkit.data.label_maps import read_panoptic_png
from detrkit.inference import predictor as predictor_module
from detrkit.structures import Masks
from detrkit.structures.segment_maps import ids_to_rgb, segment_shapes
from tests.inference.planted_detector import CATEGORIES, Planted, PlantedDetector, scene

SIZES = {"a.jpg": (256, 320), "sub/b.png": (192, 256), "sub/c.jpg": (256, 256)}
SCENES = [scene(size) for size in SIZES.values()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        Image.new("RGB", (width, height), (90, 90, 90)).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide which model every checkpoint is; at first it is panoptic and finds what is planted."""

    def change(scenes: list[list[Planted]] = SCENES, **options: Any) -> None:
        options = {"eval_short_side": 256, **options}
        monkeypatch.setattr(predictor_module, "_load", lambda _: PlantedDetector(scenes, **options))

    change()
    return change


def predict(*words: Any, out: Path) -> int:
    return run(["predict", *map(str, words), "--out", str(out), "--device", "cpu"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


PICTURES = ["images/a.png", "images/sub/b.png", "images/sub/c.png"]
LISTS = ["predictions.json", "results.json", "skipped.json"]
MAPS = ["a.png", "sub/b.png", "sub/c.png"]


# --- ground truth -----------------------------------------------------------------------------------------------------


def image_rows() -> list[dict[str, Any]]:
    return [
        {"id": 50 + number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(SIZES.items())
    ]


def coco_truth(folder: Path) -> Path:
    rows = [
        {
            "id": 0,
            "image_id": 50 + number,
            "category_id": CATEGORIES[one.label].id,
            "bbox": segment_shapes(one.mask.astype(np.int32)).boxes[0].tolist(),
            "area": int(one.mask.sum()),
            "iscrowd": 0,
            "segmentation": Masks.of(one.mask[None], SIZES[name]).to_coco()[0],
        }
        for number, (name, planted) in enumerate(zip(SIZES, SCENES, strict=True))
        for one in planted
        if CATEGORIES[one.label].is_thing
    ]
    rows = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
    categories = [{"id": one.id, "name": one.name} for one in CATEGORIES.named if one.is_thing]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": image_rows(), "categories": categories, "annotations": rows}))
    return path


def panoptic_truth(folder: Path) -> Path:
    annotations = []
    for number, (name, planted) in enumerate(zip(SIZES, SCENES, strict=True)):
        ids = np.zeros(planted[0].mask.shape, dtype=np.int32)
        for k, one in enumerate(planted, start=1):
            ids[one.mask] = 1000 * k
        png = f"{name.replace('/', '_')}.png"
        (folder / "truth").mkdir(exist_ok=True)
        Image.fromarray(ids_to_rgb(ids)).save(folder / "truth" / png)
        segments = [
            {"id": 1000 * k, "category_id": CATEGORIES[one.label].id, "area": int(one.mask.sum()), "iscrowd": 0}
            for k, one in enumerate(planted, start=1)
        ]
        annotations.append({"image_id": 50 + number, "file_name": png, "segments_info": segments})
    categories = [{"id": one.id, "name": one.name, "isthing": int(one.is_thing)} for one in CATEGORIES.named]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": image_rows(), "categories": categories, "annotations": annotations}))
    return path


def semantic_truth(folder: Path) -> Path:
    for name, planted in zip(MAPS, SCENES, strict=True):
        labels = np.full(planted[0].mask.shape, 255, dtype=np.uint8)
        for one in planted:
            labels[one.mask] = one.label
        path = folder / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
    return folder / "maps"


def score(capfd: pytest.CaptureFixture[str], *words: Any) -> Any:
    capfd.readouterr()
    assert run(["score", *map(str, words), "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)["metrics"]


# --- files of every task ----------------------------------------------------------------------------------------------


def test_instances(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(images, "--task", "inst", out=out) == 0
    assert "3 images, 9 objects (cell 6, rod 3)" in capfd.readouterr().out
    assert files(out) == sorted([*PICTURES, *LISTS])
    predictions = read(out / "predictions.json")
    for row in predictions["annotations"]:
        assert set(row) == {"id", "image_id", "category_id", "bbox", "area", "score", "iscrowd", "segmentation"}
        size = list(SIZES.values())[row["image_id"] - 1]
        assert row["segmentation"]["size"] == list(size)
        assert isinstance(row["segmentation"]["counts"], str)
        mask = Masks([row["segmentation"]["counts"].encode()], size)[0]
        assert row["area"] == mask.sum()
        assert isinstance(row["area"], int)
    results = read(out / "results.json")
    assert [row["segmentation"] for row in results] == [row["segmentation"] for row in predictions["annotations"]]
    for iou in ("segm", "bbox"):
        metrics = score(
            capfd, "coco", "--iou", iou, "--gt", coco_truth(tmp_path), "--results", out / "predictions.json"
        )
        assert metrics["AP50"] == 1
        assert metrics["AP"] > 0.99


def test_panoptic(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(images, out=out) == 0, "the task of the model"
    assert "3 images, 15 segments (cell 6, rod 3, sky 3, soil 3)" in capfd.readouterr().out
    assert files(out) == sorted([*PICTURES, *LISTS, "panoptic.json", *(f"panoptic/{name}" for name in MAPS)])
    panoptic = read(out / "panoptic.json")
    assert panoptic.keys() == {"images", "categories", "annotations"}
    assert panoptic["images"] == read(out / "predictions.json")["images"]
    assert [(row["id"], row["name"], row["isthing"]) for row in panoptic["categories"]] == [
        (3, "cell", 1),
        (7, "rod", 1),
        (8, "sky", 0),
        (9, "soil", 0),
    ]
    assert [row["file_name"] for row in panoptic["annotations"]] == MAPS
    metrics = score(capfd, "panoptic", "--gt", panoptic_truth(tmp_path), "--results", out / "panoptic.json")
    for group in ("All", "Things", "Stuff"):
        assert metrics[group]["RQ"] == 1
        assert metrics[group]["PQ"] > 0.99
    found = read(out / "predictions.json")["annotations"]
    assert {row["category_id"] for row in found} == {3, 7}, "the things"
    metrics = score(capfd, "coco", "--iou", "segm", "--gt", coco_truth(tmp_path), "--results", out / "predictions.json")
    assert metrics["AP50"] == 1


def test_semantic(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(images, "--task", "sem", out=out) == 0
    assert "3 images, share of pixels: cell " in capfd.readouterr().out
    assert files(out) == sorted([*PICTURES, *LISTS, "classes.json", *(f"semantic/{name}" for name in MAPS)])
    assert read(out / "classes.json") == ["cell", "unused 1", "rod", "sky", "soil"]
    predictions = read(out / "predictions.json")
    assert len(predictions["images"]) == 3
    assert [row["name"] for row in predictions["categories"]] == ["cell", "rod", "sky", "soil"]
    assert predictions["annotations"] == read(out / "results.json") == []
    with Image.open(out / "semantic" / "sub" / "b.png") as labels:
        assert labels.mode == "L"
        assert labels.size == (256, 192)
    truth = semantic_truth(tmp_path)
    words = ("--gt", truth, "--results", out / "semantic", "--classes", out / "classes.json")
    assert score(capfd, "semantic", *words)["mIoU"] > 0.99


def test_detections_of_a_panoptic_model_have_no_masks(images: Path, tmp_path: Path) -> None:
    assert predict(images, "--task", "det", "--no-images", out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == LISTS
    assert "segmentation" not in read(tmp_path / "out" / "predictions.json")["annotations"][0]


def test_masks_are_exact_at_their_own_size(tmp_path: Path, plant: Callable[..., None]) -> None:
    """Images of a quarter of the size that the model sees have one pixel per cell of the masks."""
    (tmp_path / "in").mkdir()
    sizes = [(64, 80), (64, 64), (64, 96)]
    for name, (height, width) in zip("abc", sizes, strict=True):
        Image.new("RGB", (width, height)).save(tmp_path / "in" / f"{name}.png")
    scenes = [scene(size, unit=1) for size in sizes]
    plant(scenes)
    assert predict(tmp_path / "in", "--batch-size", 3, out=tmp_path / "out") == 0
    for name, planted in zip("abc", scenes, strict=True):
        found = read_panoptic_png(tmp_path / "out" / "panoptic" / f"{name}.png")
        assert all(len(np.unique(found[one.mask])) == 1 for one in planted)
        assert len(np.unique(found)) == len(planted)


# --- thresholds and tasks that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "empty"), [("inst", "0 objects (none)"), ("pan", "0 segments (none)")])
def test_nothing_found(images: Path, tmp_path: Path, task: str, empty: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(images, "--task", task, "--threshold", 1, out=out) == 0
    assert f"3 images, {empty}" in capfd.readouterr().out
    assert read(out / "predictions.json")["annotations"] == []
    if task == "pan":
        assert [row["segments_info"] for row in read(out / "panoptic.json")["annotations"]] == [[]] * 3
        metrics = score(capfd, "panoptic", "--gt", panoptic_truth(tmp_path), "--results", out / "panoptic.json")
        assert metrics["All"]["PQ"] == 0


def test_threshold_of_pixels(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict(images, "--task", "sem", "--threshold", 1, out=tmp_path / "out") == 0
    assert "share of pixels: none" in capfd.readouterr().out
    with Image.open(tmp_path / "out" / "semantic" / "a.png") as labels:
        assert (np.asarray(labels) == 255).all()


def test_a_task_that_the_model_does_not_answer(
    images: Path, tmp_path: Path, plant: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    plant(task="inst")
    assert predict(images, "--task", "pan", out=tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert "task 'pan': this model was made for 'inst' and answers inst, det" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert predict(images, "--task", "panoptic", out=tmp_path / "out") == 2
    assert "'det', 'inst', 'sem', 'pan'" in capfd.readouterr().err


# --- earlier runs and names -------------------------------------------------------------------------------------------


def test_files_of_another_task_are_removed(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(images, "--task", "sem", out=out) == 0
    (out / "semantic" / "mine.png").write_bytes(b"mine")
    (out / "panoptic").mkdir()
    (out / "panoptic" / "mine.png").write_bytes(b"mine")
    mine = ["panoptic/mine.png", "semantic/mine.png"]
    assert predict(images, "--task", "pan", out=out) == 0
    assert files(out) == sorted([*PICTURES, *LISTS, "panoptic.json", *(f"panoptic/{name}" for name in MAPS), *mine])
    assert predict(images, "--task", "det", "--no-images", out=out) == 0
    assert files(out) == sorted([*LISTS, *mine])


@pytest.mark.parametrize(("task", "name"), [("pan", "panoptic.json"), ("sem", "classes.json")])
def test_files_of_other_programs_are_not_overwritten(
    images: Path, tmp_path: Path, task: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    text = '["a"]' if task == "sem" else '{"images": [], "categories": [], "annotations": []}'
    (out / name).write_text(text)
    assert predict(images, "--task", task, out=out) == 2
    assert f"{name}: is not from detrkit" in capfd.readouterr().err
    assert predict(images, "--task", "det", out=out) == 0
    assert (out / name).exists()


def test_maps_of_images_that_differ_in_their_ending_only(tmp_path: Path, plant: Callable[..., None]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png", "b.jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / "in" / name)
    plant([[], [], []])
    out = tmp_path / "out"
    assert predict(tmp_path / "in", "--no-images", out=out) == 0
    assert [row["file_name"] for row in read(out / "panoptic.json")["annotations"]] == [
        "a.jpg.png",
        "a.png.png",
        "b.png",
    ]
    plant([[], [], []])
    assert predict(tmp_path / "in", "--task", "sem", out=out) == 0
    maps = ["semantic/a.jpg.png", "semantic/a.png.png", "semantic/b.png"]
    assert [name for name in files(out) if name.startswith(("semantic", "panoptic"))] == maps
    plant([[]])
    assert predict(tmp_path / "in" / "b.jpg", "--task", "sem", out=out) == 0
    assert [name for name in files(out) if name.startswith("semantic")] == ["semantic/b.png"]


def test_maps_are_never_inputs_and_never_land_among_them(
    images: Path, tmp_path: Path, plant: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    for task in ("sem", "pan", "sem"):
        plant()
        assert predict(images, "--task", task, out=images) == 0
        assert [row["file_name"] for row in read(images / "predictions.json")["images"]] == list(SIZES)
    (tmp_path / "in").rename(tmp_path / "semantic")
    assert predict(tmp_path / "semantic", "--task", "sem", out=tmp_path) == 2
    assert "choose another --out" in capfd.readouterr().err
