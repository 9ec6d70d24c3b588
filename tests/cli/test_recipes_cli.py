"""``detrkit recipes`` and ``detrkit data fetch``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.cli.main import run
from detrkit.config import list_recipes, load_recipe
from detrkit.data.formats import find_source
from detrkit.data.open import load_source


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list"]) == 0
    assert capsys.readouterr().out.split() == list_recipes()
    assert run(["recipes", "list", "dape/blood*", "--json"]) == 0
    assert "dape/blood_cells/dape_lite0" in json.loads(capsys.readouterr().out)
    assert run(["recipes", "list", "DAPE/Blood"]) == 0
    assert "dape/blood_cells/dape_lite0" in capsys.readouterr().out
    assert run(["recipes", "list", "dappe"]) == 2
    assert "no recipe matches 'dappe'" in capsys.readouterr().err


def test_show_is_the_whole_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "dape/blood_cells/dape_lite0"
    assert run(["recipes", "show", name]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load_recipe(tmp_path / "shown.yaml").to_dict() == load_recipe(name).to_dict()
    assert run(["recipes", "show", "dape_lite9"]) == 2


@pytest.mark.parametrize("name", ["dape/blood_cells/dape_lite0", "de_detr/coco/de_detr_r50_coco_50ep"])
def test_a_copy_is_the_same_recipe_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "copy", name]) == 0
    path = Path(f"{name.rpartition('/')[2]}.yaml")
    assert "extends:" not in path.read_text()
    assert path.read_text().startswith("#")
    assert load_recipe(path).to_dict() == load_recipe(name).to_dict()
    assert run(["recipes", "copy", name]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    assert run(["recipes", "copy", name, "mine"]) == 0
    assert (tmp_path / "mine" / path).is_file()


def test_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cells"
    assert run(["data", "fetch", "blood_cells", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "train 9 images, val 3 images" in said
    assert "BCCD" in said
    sets = {split: load_source(find_source(out, split)) for split in ("train", "val")}
    assert {split: len(data) for split, data in sets.items()} == {"train": 9, "val": 3}
    assert sum(len(record.labels) for data in sets.values() for record in data.records) == 186
    assert sets["val"].read_image(2).size == (640, 480)
    assert run(["data", "fetch", "blood_cells", "--out", str(out)]) == 2
    assert run(["data", "fetch", "blood_cells", "--out", str(out), "--force"]) == 0
    assert run(["data", "fetch", "coco8"]) == 2
    assert "'coco8': no such set comes with the package" in capsys.readouterr().err
