"""The learning curve: nested parts, one run each, nothing is trained twice; what cannot be shown is said before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.main import run
from detrkit.config import load_recipe
from detrkit.errors import DataError, RecipeError
from detrkit.report.growth import Growth
from detrkit.training import curve, learning_curve
from detrkit.training.interrupt import Interrupted
from detrkit.training.loggers import read_log
from tests.workplace import SMALL_RUN, TINY_MODEL

TRAIN, VAL = 21, 6
SETTINGS = SMALL_RUN | {f"model.{key}": value for key, value in TINY_MODEL.items()}
SETTINGS |= {
    "model.name": "de_detr_lite0",
    "model.num_queries": 5,
    "data.short_sides": [32],
    "data.eval_short_side": 32,
}


def data_of(root: Path, *, train: int = TRAIN, val: int = VAL, rare: int | None = None) -> Path:
    """Images with a bolt each; image ``rare`` of train and every one of val have a nut, too."""
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    for split, count in (("train", train), ("val", val)):
        if not count:
            continue
        images, rows = [], []
        (root / "images" / split).mkdir(parents=True)
        for number in range(1, count + 1):
            noise = np.random.default_rng(number).integers(0, 255, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "images" / split / f"{split}{number:02}.png")
            images.append({"id": number, "file_name": f"{split}{number:02}.png", "width": 48, "height": 32})
            for label in (1, 2) if split == "val" or rare in (None, number) else (1,):
                box = [4 + 20 * (label - 1), 6, 14, 16]
                row = {"id": len(rows) + 1, "image_id": number, "category_id": label, "bbox": box}
                rows.append({**row, "area": 224, "iscrowd": 0})
        content = {"images": images, "annotations": rows, "categories": categories}
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def grow(root: Path, folder: Path, **more: Any) -> Growth:
    overrides = {**SETTINGS, "data.root": str(root), **more.pop("overrides", {})}
    return learning_curve(load_recipe({}, overrides), folder=folder, **{"fractions": (0.25, 0.5, 1.0), **more})


def test_nested_runs_that_are_trained_once(tmp_path: Path) -> None:
    root, folder = data_of(tmp_path / "data"), tmp_path / "curve"
    trained: list[str] = []

    def train_and_stop(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == 2:
            raise Interrupted(2, "stopped")
        trained.append(args[0].training.output)
        return real(*args, **kwargs)

    real = curve.train
    with mock.patch.object(curve, "train", train_and_stop), pytest.raises(Interrupted):
        grow(root, folder)
    assert [Path(path).name for path in trained] == ["5_images_seed0", "10_images_seed0"]
    before = {path: path.read_bytes() for path in folder.rglob("last/model.safetensors")}
    growth = grow(root, folder)
    assert {path: path.read_bytes() for path in before} == before
    assert growth.sizes == (5, 10, 21)
    events = {}
    for images in growth.sizes:
        place = folder / f"{images}_images_seed0"
        events[images] = [row["event"] for row in read_log(place / "log.jsonl")]
        recipe = load_recipe(place)
        assert recipe.training.iterations == 1
        assert recipe.data.sample_seed == 0
        score = next(row["AP"] for row in read_log(place / "log.jsonl") if row["event"] == "eval")
        assert growth.scores[growth.sizes.index(images)] == pytest.approx(score, abs=1e-9)
    assert all(found.count("train") == 1 and found.count("eval") == 1 for found in events.values())
    assert load_recipe(folder / "5_images_seed0").data.repeat == 4 * load_recipe(folder / "21_images_seed0").data.repeat
    with pytest.raises(
        RecipeError, match=r"5_images_seed0: the run there has training\.iterations=1, not 2\. To begin"
    ):
        grow(root, folder, overrides={"training.iterations": 2})
    with pytest.raises(RecipeError, match=rf"training\.minutes=None, not 2\.0\. .* another --out, or delete {folder}"):
        grow(root, folder, minutes=6)
    assert {path: path.read_bytes() for path in before} == before
    damaged = folder / "10_images_seed0" / curve.ANSWERS
    damaged.write_text("{")
    with pytest.raises(DataError, match=r"answers\.json: the detections .* delete .*10_images_seed0 to repeat it"):
        grow(root, folder)


@pytest.mark.parametrize(
    ("made", "more", "error", "words"),
    [
        ({"val": 0}, {}, DataError, "validation images; to set some apart: detrkit data split"),
        ({"val": 3}, {}, DataError, "3 validation images have an object; at least 5"),
        ({"train": 12}, {}, DataError, r"the smallest part, 0\.25 of 12 images, has 3; at least 5 .*--fractions"),
        ({}, {"fractions": (0.5, 1.5)}, RecipeError, r"1\.5 is not in \(0, 1\]"),
        ({}, {"fractions": (0.99, 0.98)}, RecipeError, "at least two different numbers of images"),
        ({}, {"seeds": (1, 1)}, RecipeError, "different numbers"),
        ({}, {"minutes": 0.0}, RecipeError, "a time above 0"),
        ({}, {"overrides": {"data.sample_rate": 0.5}}, RecipeError, "draws its own parts"),
    ],
)
def test_what_can_show_nothing_ends_before_the_first_run(
    tmp_path: Path, made: dict[str, int], more: dict[str, Any], error: type[Exception], words: str
) -> None:
    root = data_of(tmp_path / "data", **made)
    with mock.patch.object(curve, "train", side_effect=AssertionError), pytest.raises(error, match=words):
        grow(root, tmp_path / "curve", **more)


def test_models_of_maps_have_no_curve_of_ap(tmp_path: Path) -> None:
    root = data_of(tmp_path / "data")
    with pytest.raises(RecipeError, match="mask_dape_lite0 is of task sem"):
        learning_curve({"model": {"name": "mask_dape_lite0", "task": "sem"}, "data": {"root": str(root)}})


def test_length_is_that_of_all_images_and_minutes_are_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_of(tmp_path / "data", rare=3)
    seen: list[Any] = []

    def note(recipe: Any, **_: Any) -> Any:
        seen.append(recipe)
        raise Interrupted(2, "enough")

    for more in ({"training.iterations": None, "training.epochs": 3}, {}):
        for minutes in (None, 30.0):
            with mock.patch.object(curve, "train", note), pytest.raises(Interrupted):
                grow(root, tmp_path / "curve", minutes=minutes, seeds=(0, 7), overrides=more)
    epochs, _, steps, clock = (recipe.training for recipe in seen)
    assert (epochs.iterations, epochs.epochs, epochs.minutes) == (3 * 11, None, None)
    assert (steps.iterations, clock.minutes) == (1, 5.0)
    assert "have no label of nut: AP 0 there" in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = data_of(tmp_path / "data"), tmp_path / "out"
    settings = {key: value for key, value in SETTINGS.items() if key not in ("training.device", "training.iterations")}
    words = ["learning-curve", str(root), *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    words += ["--fractions", "25,50%,100", "--steps", "1", "--out", str(out), "--device", "cpu"]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("      5 images, seed 0: AP 0.")
    assert "learned next to nothing" in lines[-1]
    assert lines[-2].startswith("Back-test: from 5 and 10 images alone it would have said ")
    table = (out / "learning_curve.csv").read_text().splitlines()
    assert table[0] == "images,fraction,seed,ap,deviation"
    assert [row.split(",")[:3] for row in table[1:]] == [["5", "0.25", "0"], ["10", "0.5", "0"], ["21", "1", "0"]]
    assert Image.open(out / "learning_curve.png").size[0] > 500
    assert run([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "learning_curve.json").read_text())
    assert printed["doubled"]["images"] == 42
    assert run([*words, "training.epochs=3"]) == 2
    assert "--steps and a setting of training say how long a run is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fractions", "10,half"], "give percents with commas"),
        (["--fractions", "0,100"], "0 % is not above 0 and at most 100"),
        (["--fractions", "50,120"], "120 % is not above 0 and at most 100"),
        (["--fractions", "0.5,1"], "give percents, here 50,100; really 1 % and less: 0.5%,1%"),
        (["--seeds", "a"], "give whole numbers with commas"),
        (["--steps", "5", "--minutes", "3"], "not both"),
        (["--minutes", "0"], "a time above 0"),
        (["--minutes", "inf"], "a time above 0"),
    ],
)
def test_unusable_options(tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["learning-curve", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
