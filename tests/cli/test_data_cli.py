"""``detrkit data …``: output, files, errors and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli.data import app
from detrkit.data import load_dataset
from detrkit.errors import DetrkitError
from tests.data.trees import (
    coco_tree,
    dump,
    instance_files_tree,
    masks_tree,
    official_coco_tree,
    panoptic_tree,
    roboflow_tree,
    voc_tree,
    write_image,
    yolo_tree,
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run() -> Run:
    """A function that runs a command and returns exit code, stdout and stderr (with the error line of ``detrkit``)."""

    def invoke(*words: object) -> tuple[int, str, str]:
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(word) for word in words])
        if isinstance(result.exception, DetrkitError):
            return result.exception.exit_code, result.stdout, f"{result.stderr}{result.exception}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_tree(tmp_path / "data")


def test_check(run: Run, root: Path) -> None:
    code, out, _ = run("check", root)
    assert code == 0
    assert "empty images" in out
    assert "0 warnings, 0 errors" in out
    path = root / "images" / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:300])
    code, out, _ = run("check", root)
    assert code == 1
    assert "image data" in out
    assert "1 errors" in out
    assert run("check", root, "--quick")[0] == 0
    code, out, err = run("check", root, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["failed"] is True
    assert {finding["level"] for finding in report["findings"]} == {"ok", "info", "error"}
    assert err == ""


def test_check_of_published_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = official_coco_tree(Path("coco"))  # called as the data set is
    for path in root.glob("annotations/panoptic*"):
        path.unlink()
    assert run("check", "coco")[0] == 0
    code, out, _ = run("check", "coco", "coco")
    assert code == 0
    assert "train2017: 3 images (118,287 are published)" in out
    assert "complete; to read every file: detrkit data check coco" in out
    code, out, _ = run("check", "COCO", root, "--task", "pan")
    assert code == 1
    assert "panoptic_annotations_trainval2017.zip (821 MB" in out
    assert "not complete: 4 of 8" in out
    (root / "val2017" / "d.png").unlink()
    code, out, err = run("check", "coco", root, "--json")
    found = json.loads(out)
    assert (code, found["name"], found["complete"], err) == (1, "coco", False, "")
    states = {row["path"]: row for row in found["files"]}
    assert states["val2017"]["state"] == "incomplete"
    assert states["val2017"]["download"]["archive"] == "val2017.zip"
    assert states["train2017"]["state"] == "here"
    code, _, err = run("check", "kitti", root)
    assert code == 2
    assert "'kitti' is no published data set" in err
    assert run("check", "lvis", tmp_path / "gone")[0] == 2
    code, _, err = run("check", "lvis")
    assert code == 2
    assert "detrkit data check lvis DIR" in err
    code, _, err = run("check", "coco", root, root)
    assert code == 2
    assert "[NAME] DIR" in err


def test_trial_set(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "trial"
    code, _, err = run("sample", root, out, "--images", 2)
    assert code == 0
    assert f"wrote {out} (coco): train 2 images, val 2 images" in err.replace("\n", "")
    assert len(load_dataset(out).records) == 2
    assert not any(path.is_symlink() for path in out.rglob("*"))
    code, _, err = run("sample", root, "--out", out, "--images", 1)
    assert code == 2
    assert "not empty" in err
    assert run("sample", root, "--out", tmp_path / "links", "--images", 1, "--links")[0] == 0
    assert sum(path.is_symlink() for path in (tmp_path / "links").rglob("*")) == 2
    for words, message in (
        ((root,), "one place to write to"),
        ((root, out, "--out", out), "one place to write to"),
        ((root, tmp_path / "a"), "or --images 50 for a trial set"),
        ((root, tmp_path / "a", "--images", 1, "--rate", 0.5), "goes without --rate"),
        ((root, tmp_path / "a.json", "--images", 1), "writes a folder"),
    ):
        code, _, err = run("sample", *words)
        assert code == 2
        assert message in err


def test_unusable_input(run: Run, root: Path, tmp_path: Path) -> None:
    for command in (
        ("check",),
        ("stats",),
        ("view", "--out", tmp_path / "o"),
        ("sample", "--out", tmp_path / "o.json"),
    ):
        code, _, err = run(command[0], tmp_path / "gone", *command[1:])
        assert code == 2
        assert "gone: no such data folder" in err
    (root / "annotations" / "instances_val.json").write_text("[]")
    code, _, err = run("check", root)
    assert code == 2
    assert "instances_val.json: is a list" in err
    assert run("check")[0] == 2
    assert run("stats", root, "--split", "wal")[0] == 2


def test_stats(run: Run, root: Path) -> None:
    code, out, _ = run("stats", root)
    assert code == 0
    assert "train: 3 images, 3 boxes" in out
    assert "val: 2 images, 3 boxes" in out
    assert "40x30 (3)" in out
    code, out, err = run("stats", root, "--json", "--split", "val")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["val"]
    assert found["val"]["classes"][0] == {"id": 1, "name": "bolt", "boxes": 2, "images": 2, "small": 0.228}
    assert err == ""


@pytest.mark.parametrize("make", [coco_tree, roboflow_tree, yolo_tree, voc_tree])
def test_convert(run: Run, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root, out = make(tmp_path / "data"), tmp_path / "new"
    assert run("convert", root, "--to", "coco", "--out", out)[0] == 0
    for split in ("train", "val"):
        assert len(load_dataset(out, split=split)[0].target.labels) == len(
            load_dataset(root, split=split)[0].target.labels
        )
    code, _, err = run("convert", root, "--out", out)
    assert code == 2
    assert "exists already; pass --force" in err
    assert run("convert", root, "--out", out, "--force")[0] == 0
    code, _, err = run("convert", root, "--out", tmp_path / "one.json")
    assert code == 2
    assert "choose with --split" in err
    assert run("convert", root, "--out", tmp_path / "one.json", "--split", "val")[0] == 0
    assert len(json.loads((tmp_path / "one.json").read_text())["images"]) == 2
    code, _, err = run("convert", root, "--out", tmp_path / "two.json", "--split", "test")
    assert code == 2
    assert "no test split, only train and val" in err


def test_convert_refuses_or_leaves_out_bad_boxes(run: Run, tmp_path: Path) -> None:
    root, out = yolo_tree(tmp_path / "data"), tmp_path / "train.json"
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 nan 1\n1 0.5 0.5 1 1\n")
    code, _, err = run("convert", root, "--split", "train", "--out", out)
    assert code == 2
    assert "a.txt: line 1" in err
    assert not out.exists()
    code, _, err = run("convert", root, "--split", "train", "--out", out, "--on-error", "skip")
    assert code == 0
    assert "left out:" in err
    assert len(json.loads(out.read_text())["annotations"]) == 2


@pytest.mark.parametrize("option", [(), ("--from", "cityscapes-gtfine")])
def test_convert_gtfine(run: Run, tmp_path: Path, option: tuple[str, ...]) -> None:
    values = np.full((10, 20), 26000, dtype=np.uint16)
    values[0] = 24
    for split in ("train", "val"):
        path = tmp_path / "cityscapes" / "gtFine" / split / "ulm" / "ulm_0_gtFine_instanceIds.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(values).save(path)
        write_image(tmp_path / "cityscapes" / "leftImg8bit" / split / "ulm" / "ulm_0_leftImg8bit.png", (20, 10))
    out = tmp_path / "CocoFormatAnnos"
    assert run("convert", tmp_path / "cityscapes", *option, "--out", out)[0] == 0
    dataset = load_dataset(tmp_path / "cityscapes", split="val")
    assert dataset.categories.names[1] == "car"
    assert dataset.records[0].boxes.tolist() == [[0, 1, 20, 10]]
    assert dataset.records[0].crowd_boxes.tolist() == [[0, 0, 20, 1]]
    assert run("convert", tmp_path / "cityscapes", "--out", out)[0] == 2
    command = ("convert", tmp_path / "cityscapes", "--out", out, "--groups", "object", "--force", "--split", "val")
    assert run(*command)[0] == 0
    assert len(load_dataset(tmp_path / "cityscapes", split="val").records[0].boxes) == 2
    assert len(load_dataset(tmp_path / "cityscapes", split="train").records[0].boxes) == 1


def test_sample(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(1, 41)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(1, 41)]
    for split in ("train", "val"):
        table = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bolt"}], "info": {"v": 1}}
        dump(root / "annotations" / f"{split}.json", table)
        for n in range(1, 41):
            write_image(root / split / f"{n}.png", seed=n)
    ids = {}
    for rate in (0.1, 0.25):
        out = tmp_path / f"{rate}.json"
        assert run("sample", root, "--rate", rate, "--seed", 3, "--out", out)[0] == 0
        found = json.loads(out.read_text())
        ids[rate] = {image["id"] for image in found["images"]}
        assert {row["image_id"] for row in found["annotations"]} == ids[rate]
        assert found["info"] == {
            "v": 1, "sample_seed": 3, "sample_rate": rate, "sample_count": int(40 * rate), "sample_of": 40
        }  # fmt: skip
    assert ids[0.1] < ids[0.25]
    assert run("sample", root, "--count", 7, "--out", tmp_path / "c.json")[0] == 0
    assert len(json.loads((tmp_path / "c.json").read_text())["images"]) == 7
    assert run("sample", root, "--count", 7, "--out", tmp_path / "c.json")[0] == 2
    assert run("sample", root, "--out", tmp_path / "d.json")[0] == 2
    assert run("sample", root, "--rate", 2, "--out", tmp_path / "d.json")[0] == 2
    assert not (tmp_path / "d.json").exists()
    assert run("sample", root, "--rate", 0.1, "--out", tmp_path / "tenth")[0] == 0  # a data set of its own
    assert len(load_dataset(tmp_path / "tenth")) == 4
    assert len(load_dataset(tmp_path / "tenth", split="val")) == 40
    assert load_dataset(tmp_path / "tenth")[0].image.shape[0] == 3


def test_split(run: Run, tmp_path: Path) -> None:
    root, out = coco_tree(tmp_path / "data", splits=("train",)), tmp_path / "both"
    assert run("split", root, "--val", 0.34, "--out", out)[0] == 0
    assert (len(load_dataset(out)), len(load_dataset(out, split="val"))) == (2, 1)
    assert run("split", root, "--out", out)[0] == 2
    assert run("split", root, "--val", 1, "--out", tmp_path / "x")[0] == 2


def test_view(run: Run, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "look"
    code, stdout, err = run("view", root, "--out", out, "--count", 2)
    assert code == 0
    assert stdout == ""
    assert f"wrote 2 pictures to {out}" in err
    assert len(list(out.iterdir())) == 2
    assert run("view", root, "--out", out, "--count", 0)[0] == 2  # two exist already
    broken = root / "images" / "train" / "b.png"
    broken.write_bytes(broken.read_bytes()[:99])
    code, _, err = run("view", root, "--out", out, "--count", 0, "--force")
    assert code == 0
    assert "b.png: the image cannot be read" in err
    names = sorted(path.name for path in out.iterdir())
    assert {"a_1.jpg", "ü c_3.jpg"} <= set(names)
    with Image.open(out / "a_1.jpg") as image:
        assert image.size == (40, 30)


def test_other_commands_stay_light() -> None:
    import subprocess
    import sys

    code = "import detrkit.cli.data, sys; print([m for m in ('torch', 'numpy', 'PIL', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_splitting_train_notes_an_existing_val_split(run: Run, root: Path, tmp_path: Path) -> None:
    code, _, err = run("split", root, "--val", 0.34, "--out", tmp_path / "both")
    assert code == 0
    assert "has a val split already, which stays as it is" in err


def maps(root: Path, task: str) -> dict[str, list[list[int]]]:
    """The class of each pixel of every training image, by file name."""
    dataset = load_dataset(root, task=task)
    _, read = dataset.semantic_ground_truth()
    return {record.path.name: read(record.image_id).labels.tolist() for record in dataset.records}


@pytest.mark.parametrize(("make", "task"), [(panoptic_tree, "pan"), (masks_tree, "sem"), (instance_files_tree, "inst")])
@pytest.mark.parametrize("to", ["coco", "coco_panoptic"])
def test_masks_are_converted(run: Run, tmp_path: Path, make: Callable[[Path], Path], task: str, to: str) -> None:
    root, out = make(tmp_path / "data"), tmp_path / "new"
    code, _, err = run("convert", root, "--to", to, "--out", out)
    assert code == 0, err
    assert sorted(path.name for path in (out / "annotations").glob("*.json")) == [
        f"{'instances' if to == 'coco' else 'panoptic'}_{split}.json" for split in ("train", "val")
    ]
    assert maps(out, task) == maps(root, task)
    old, new = load_dataset(root, task=task), load_dataset(out, task=task)
    assert new.categories.names == old.categories.names
    assert [category.is_thing for category in new.categories] == [category.is_thing for category in old.categories]
    for before, after in zip(old.records, new.records, strict=True):
        assert after.segments.boxes.tolist() == before.segments.boxes.tolist()
    assert run("convert", root, "--to", to, "--out", out)[0] == 2, "exists"
    assert run("check", out, "--task", task)[0] == 0


@pytest.mark.parametrize("make", [panoptic_tree, masks_tree])
def test_splits_and_samples_keep_masks(run: Run, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "data")
    whole = maps(root, "sem")
    assert run("split", root, "--out", tmp_path / "parts", "--val", 0.4)[0] == 0
    assert run("sample", root, "--out", tmp_path / "less", "--count", 2)[0] == 0
    for folder, number in (("parts", 2), ("less", 2)):
        found = maps(tmp_path / folder, "sem")
        assert len(found) == number
        assert all(whole[name] == values for name, values in found.items())


@pytest.mark.parametrize("make", [panoptic_tree, masks_tree, instance_files_tree, coco_tree])
def test_view_and_stats_of_masks(run: Run, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "data")
    assert run("view", root, "--out", tmp_path / "pictures")[0] == 0
    pictures = [Image.open(path) for path in sorted((tmp_path / "pictures").iterdir())]
    assert len(pictures) == 3
    assert (pictures[0].height > 30) is (make is not coco_tree), "a legend below masks"
    code, out, _ = run("stats", root, "--json")
    assert code == 0
    assert json.loads(out)["train"]["images"] == 3


def test_detection_data_are_no_panoptic_data(run: Run, root: Path, tmp_path: Path) -> None:
    code, _, err = run("convert", root, "--to", "coco_panoptic", "--out", tmp_path / "new")
    assert code == 2
    assert "none of its 3 annotations has a segmentation" in err


def test_bad_mask_files_are_left_out_on_request(run: Run, tmp_path: Path) -> None:
    root = panoptic_tree(tmp_path / "data")
    (root / "annotations" / "panoptic_train" / "a.png").unlink()
    code, _, err = run("convert", root, "--out", tmp_path / "new")
    assert code == 2
    assert "a.png: no such PNG file" in err
    code, _, err = run("convert", root, "--out", tmp_path / "new", "--on-error", "skip")
    assert code == 0
    assert err.count("left out") == 1
    assert len(load_dataset(tmp_path / "new", task="pan")) == 2
