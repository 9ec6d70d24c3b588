"""spoilt_sets.py: every set is spoilt as its name says and in no other way; runs are judged from what is kept."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.config import load_recipe
from tests.report.runs import write_run
from tests.scripts import imported_script


@pytest.fixture(scope="module")
def spoilt() -> Iterator[ModuleType]:
    with imported_script("spoilt_sets") as module:
        yield module


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each split with eight objects of three classes."""
    root, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        images, rows = [], []
        for number in range(1, 13):
            name = f"{split}{number}.jpg"
            Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(root / "images" / split / name)
            images.append({"id": number, "file_name": name, "width": 128, "height": 96})
            for place in range(8):
                box = [10.0 + 12 * place, 20.0, 30.0, 24.0]
                row = {"image_id": number, "category_id": place % 3 + 1, "bbox": box, "area": 720.0, "iscrowd": 0}
                rows.append({"id": len(rows) + 1, **row})
        categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def labels(root: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())[
        "annotations"
    ]
    return rows


def test_sets_are_spoilt_as_their_names_say(spoilt: ModuleType, sound: Path, tmp_path: Path) -> None:
    made = {fault: spoilt.make_set(fault, sound, tmp_path / fault, seed=5) for fault in spoilt.FAULTS}
    for fault, root in made.items():
        for split in ("train", "val"):
            rows, before = labels(root, split), labels(sound, split)
            assert len({row["id"] for row in rows}) == len(rows), fault
            for x, y, w, h in (row["bbox"] for row in rows):
                assert min(x, y) >= 0, fault
                assert (x + w <= 128, y + h <= 96) == (True, True), fault
            touched = {"ids_off_by_one": "val", "rare_class": "train", "shared_images": "val", "found_twice": "train"}
            same = fault == "too_short" or touched.get(fault, split) != split
            assert (rows == before) is same, (fault, split)
    assert [row["category_id"] for row in labels(made["ids_off_by_one"], "val")][:3] == [2, 3, 1]
    assert len(labels(made["labels_removed"], "train")) == pytest.approx(0.7 * 96, abs=12)
    assert Counter(row["category_id"] for row in labels(made["rare_class"], "train"))[3] == 5
    assert max(row["bbox"][2] for row in labels(made["tiny_objects"], "train")) < 5
    assert len(labels(made["tiny_objects"], "train")) == 4 * 96
    files = [
        {path.read_bytes() for path in (made["shared_images"] / "images" / split).iterdir()} for split in spoilt.SPLITS
    ]
    assert len(files[0] & files[1]) == 4
    off = {row["id"]: row["bbox"][:2] for row in labels(made["boxes_off"], "val")}
    assert off[1] == [30.0, 40.0]
    assert len(labels(made["found_twice"], "train")) == pytest.approx(1.4 * 96, abs=12)
    again = spoilt.make_set("labels_removed", sound, tmp_path / "again", seed=5)
    assert labels(again, "train") == labels(made["labels_removed"], "train")


def test_runs_are_trained_with_valid_settings_and_judged_again_from_the_archive(
    spoilt: ModuleType, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that another machine has trained: its report is made here, from its archive and the set made anew."""
    settings: list[list[str]] = []

    def trained(command: list[str], **_: Any) -> Any:
        given = command[command.index("train") + 1 :]
        settings.append([word for word in given if "=" in word])
        run, data = Path(given[given.index("--output") + 1]), Path(given[given.index("--data") + 1])
        truth = json.loads((data / "annotations" / "instances_val.json").read_text())
        drawn = write_run(tmp_path / "drawn", truth=truth, results=[], scores=(0.0, 0.01), steps=80)
        for name in spoilt.NEEDED[:-1]:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_bytes((drawn / name).read_bytes())
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", trained)
    common = ["--data", str(sound), "--faults", "too_short"]
    spoilt.main([*common, "--out", str(tmp_path / "there"), "--device", "cpu", "data.crop=true"])
    recipe = load_recipe(spoilt.RECIPE, settings[0])
    assert (recipe.training.iterations, recipe.training.device, recipe.data.crop) == (80, "cpu", True)
    spoilt.main([*common, "--out", str(tmp_path / "here"), "--runs", str(tmp_path / "there" / "spoilt_sets.tar.gz")])
    found = json.loads((tmp_path / "here" / "spoilt_sets.json").read_text())
    assert (found["right"], found["of"], found["sets"][0]["first"]) == (1, 1, "too short")
    assert (tmp_path / "here" / "runs" / "too_short" / "report.html").is_file()
    assert "analysis" not in found


def test_the_time_is_shared_by_runs_that_follow_each_other(
    spoilt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    ended = argparse.Namespace(returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: given.append(command) or ended)
    args = argparse.Namespace(iterations=None, faults=list(spoilt.FAULTS), parallel=4, minutes=5.0, size=64, batch=4)
    args.device, args.model, args.settings = "cpu", "dape_lite0", []
    assert spoilt.train("rare_class", tmp_path, tmp_path / "run", args, time.monotonic()) == "exit code 1"
    assert "training.minutes=2.15" in given[0]
