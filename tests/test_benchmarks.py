"""The benchmark of AP against training images: its grid is trainable, its report says what the results say."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detrkit.config import load_recipe
from detrkit.models import create_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_efficiency", ROOT / "benchmarks" / "data_efficiency.py")
    assert spec is not None
    assert spec.loader is not None
    import sys

    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def data(folder: Path) -> Path:
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 8} for number in range(8)]
    boxes = [{"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 4, 4]} for number in range(8)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    (folder / "splits").mkdir()
    (folder / "splits" / "train_25pct_seed0.txt").write_text("3.jpg\n5.jpg\n")
    return folder


def test_a_cell_trains_on_the_listed_images_only(benchmark: ModuleType, tmp_path: Path) -> None:
    cell = benchmark.Cell("blood_cells", "de_detr_lite0", 25, 0, 100, 320)
    path, count = benchmark.subset(data(tmp_path / "data"), cell, tmp_path / "out")
    content = json.loads(path.read_text())
    assert count == 2
    assert [image["file_name"] for image in content["images"]] == ["3.jpg", "5.jpg"]
    assert [box["image_id"] for box in content["annotations"]] == [3, 5]


def test_every_model_of_the_grid_builds_and_the_rest_of_the_recipe_is_the_same(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    rest = []
    for model in benchmark.TITLES:
        cell = benchmark.Cell("blood_cells", model, 100, 0, 100, 320)
        recipe = load_recipe(benchmark.recipe(cell, tmp_path, tmp_path / "a.json", 8))
        with torch.device("meta"):
            create_model(recipe.model.name, num_classes=3, **recipe.model.overrides)
        tree = recipe.to_dict()
        tree.pop("model")
        rest.append(tree)
    assert all(tree == rest[0] for tree in rest)


def row(model: str, seed: int, ap: float | None, images: int = 8) -> str:
    metrics = {"AP": ap, "AP50": ap, "AP75": ap}
    cell = {"data": "cells", "model": model, "percent": 100, "seed": seed, "iterations": 9, "size": 320}
    return json.dumps({**cell, "images": images, "metrics": metrics})


def test_the_report_means_over_seeds_and_leaves_undefined_apart(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [row("detr_lite0", 0, 0.1), row("detr_lite0", 1, 0.3), row("de_detr_lite0", 0, None)]
    lines += [row("walk3_no_roi", 0, 0.2), row("dela_detr_lite0", 0, 0.5, images=2), '{"cut": ']
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    benchmark.report(argparse.Namespace(results=tmp_path / "results.jsonl", images=tmp_path / "images"))
    printed = capsys.readouterr().out
    assert "| DETR | – | 0.200 ± 0.141 / 0.200 ± 0.141 (n = 2) |" in printed
    assert "| DE-DETR | – | – / – |" in printed
    assert "| DELA-DETR | 0.500 / 0.500 | – |" in printed
    assert "| − RoIAlign | 0.200 / 0.200 |" in printed
    assert "0.200" in (tmp_path / "images" / "data_efficiency_cells_walk.svg").read_text()
    assert (tmp_path / "images" / "data_efficiency_cells.svg").read_text().count("<circle") == 2


def test_the_figures_in_the_documentation_are_the_recorded_ones(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = ROOT / "docs" / "results" / "data_efficiency.jsonl"
    benchmark.report(argparse.Namespace(results=recorded, images=tmp_path))
    page = (ROOT / "docs" / "results.md").read_text()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) >= 4
    for line in rows:
        assert line in page
    for picture in tmp_path.glob("*.svg"):
        assert (ROOT / "docs" / "images" / picture.name).read_text() == picture.read_text()
