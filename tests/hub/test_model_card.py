"""The card of a model: its numbers are those of the run, nothing is invented, and names are only text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import detrkit
from detrkit.hub import repository_files
from detrkit.hub.citations import PAPERS
from detrkit.metrics import score_coco
from detrkit.models import list_models
from detrkit.models.presets import PRESETS
from detrkit.report.run_folder import open_run, with_kept_detections
from detrkit.structures import Categories, Category, Thresholds
from tests.report.runs import write_run
from tests.report.sets import simulated
from tests.small import small_model

ROOT = Path(__file__).resolve().parents[2]


def card_of(checkpoint: Path, folder: Path, **options: str) -> str:
    return repository_files(checkpoint, "me/cells", folder, **options)[1].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on simulated data, with small weights."""
    folder = write_run(tmp_path_factory.mktemp("card"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    truth, _ = simulated(seed=0, images=20)
    names = [row["name"] for row in truth["categories"]]
    model = small_model("dape_lite0", num_classes=len(names))
    model.categories = Categories([Category(id=row["id"], name=row["name"]) for row in truth["categories"]])
    model.thresholds = Thresholds(overall=0.41, per_class=(0.37, *[None] * (len(names) - 1)))
    detrkit.save(model, folder / "best" / "model.safetensors", recipe=recipe)
    return folder


def cells(card: str, name: str) -> list[list[str]]:
    """The rows of tables that begin with a name."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == name]


def test_numbers_and_intervals_are_those_of_the_run(run_folder: Path, tmp_path: Path) -> None:
    card = card_of(run_folder, tmp_path)
    truth, results = simulated(seed=0, images=20)
    score = score_coco(truth, results)
    found = with_kept_detections(open_run(run_folder))
    assert found is not None
    assert found.analysis is not None
    overall = found.analysis.intervals.overall
    assert overall is not None
    assert cells(card, "AP") == [["AP", f"{score.metrics['AP']:.3f}", f"{overall.low:.2f}–{overall.high:.2f}"]]
    assert cells(card, "AP50")[0][1] == f"{score.metrics['AP50']:.3f}"
    for name, numbers in score.per_class.items():
        assert [row[1] for row in cells(card, name) if "–" in row[-1]] == [f"{numbers['AP']:.3f}"]
    front = yaml.safe_load(card.split("---")[1])
    values = {one["type"]: one["value"] for one in front["model-index"][0]["results"][0]["metrics"]}
    assert values["AP"] == pytest.approx(score.metrics["AP"], abs=1e-4)
    assert front["pipeline_tag"] == "object-detection"
    assert "license" not in front


def test_data_thresholds_limits_and_papers(run_folder: Path, tmp_path: Path) -> None:
    card = card_of(run_folder, tmp_path)
    facts = json.loads((run_folder / "facts.json").read_text(encoding="utf-8"))
    train = facts["train"]
    assert cells(card, "training") == [["training", *(str(train[key]) for key in ("images", "objects", "most"))]]
    assert "Score 0.41, of the highest F1" in card
    first = next(iter(train["classes"]))
    assert [first, "0.37"] in cells(card, first)
    assert "a reconstruction from its published description" in card
    assert PAPERS["relation_detr"] in card
    assert "has not said under which licence" in card
    assert str(run_folder.parent) not in card
    assert 'Predictor("hf://me/cells")' in card


def test_without_the_data_the_log_has_the_numbers(run_folder: Path, tmp_path: Path) -> None:
    """No intervals are printed where none can be computed."""
    facts = run_folder / "facts.json"
    text = facts.read_text(encoding="utf-8")
    facts.unlink()
    try:
        card = card_of(run_folder, tmp_path)
    finally:
        facts.write_text(text, encoding="utf-8")
    assert cells(card, "AP") == [["AP", "0.360"]]
    assert "–" not in card.split("## Numbers")[1].split("## ")[0]


def test_a_checkpoint_alone(tmp_path: Path) -> None:
    path = detrkit.save(small_model("detr_lite0"), tmp_path / "x" / "model.safetensors")
    card = card_of(path, tmp_path / "out")
    assert "The data are not recorded." in card
    assert "No evaluation is recorded." in card
    assert "None was chosen; detrkit uses 0.3" in card
    assert PAPERS["detr"] in card


def test_names_are_only_text(tmp_path: Path) -> None:
    model = small_model("detr_lite0", num_classes=2)
    model.categories = Categories([Category(id=1, name="a|b\n## c"), Category(id=2, name="<img src=x> [d](http://e)")])
    model.thresholds = Thresholds(overall=0.5, per_class=(0.5, 0.5))
    recipe = {"model": {"init": "detr_r50"}, "data": {"root": "x\n---\n```"}}
    path = detrkit.save(model, tmp_path / "model.safetensors", recipe=recipe)
    card = card_of(path, tmp_path / "out")
    assert "\n## c" not in card
    assert "<img" not in card
    assert "[d]" not in card.replace("\\[d\\]", "")
    assert len(re.findall("^```", card, re.MULTILINE)) % 2 == 0
    assert "`detr\\_r50` of https://github.com/facebookresearch/detr, published under Apache-2.0" in card.replace(
        "`detr_r50`", "`detr\\_r50`"
    ), "where the weights come from is said"


def test_the_papers_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert all(text in page for family, text in PAPERS.items() if family != "dape")
    from detrkit.hub.citations import papers_of

    families = {PRESETS[name].family for name in list_models()}
    assert [family for family in sorted(families) if not papers_of(family)] == []
