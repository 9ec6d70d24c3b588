"""What to do next: the advice that comes first on good data, and on data and runs that are spoilt in a known way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from detrkit.config import load_recipe
from detrkit.data.formats import find_source
from detrkit.data.open import load_source
from detrkit.report.advice import Advice
from detrkit.report.data_rules import boxes_beside_edges
from detrkit.report.facts import data_facts, read_facts
from detrkit.report.run_folder import open_run, with_kept_detections
from tests.report.runs import log_rows
from tests.report.spoilt import NAMES, SIDE, SPOILT, Case


def written(root: Path, case: Case) -> Path:
    """The data of a case, and the folder of a run on it."""
    data, run = root / "data", root / "run"
    for split, content, shade in (("train", case.train, 90), ("val", case.val, 120)):
        folder = data / "images" / split
        folder.mkdir(parents=True)
        for row in content["images"]:
            case.picture(content, row["id"], shade).save(folder / row["file_name"])
        (data / "annotations").mkdir(exist_ok=True)
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for number in range(1, case.copied + 1):
        shutil.copy(data / "images" / "train" / f"{number}.png", data / "images" / "val" / f"{number}.png")
    (run / "best").mkdir(parents=True)
    recipe = {"model": {"name": "dape_lite0"}, "data": {"root": str(data)}, "training": {"epochs": 8}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = log_rows(list(case.scores), steps=case.steps, classes=list(NAMES))
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "best" / "predictions.json").write_text(json.dumps(case.results))
    train, val = (load_source(find_source(data, split)) for split in ("train", "val"))
    sides = {"short_side": case.short_side, "max_side": 10 * SIDE, "queries": 100, "short_steps": 1500}
    facts = data_facts(train, val, look=40, **sides)
    (run / "facts.json").write_text(json.dumps(facts.to_json()))
    return run


def advice_for(root: Path, case: Case) -> list[Advice]:
    run = with_kept_detections(open_run(written(root, case)))
    assert run is not None
    return run.advice


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("fault", SPOILT)
def test_the_fault_comes_first(tmp_path: Path, fault: str, seed: int) -> None:
    spoil, expected = SPOILT[fault]
    case = Case(seed)
    spoil(case)
    found = advice_for(tmp_path, case)
    assert found[0].kind == expected, [(one.kind, one.urgency, one.reason) for one in found[:3]]
    assert any(character.isdigit() for character in found[0].reason)
    for one in found:
        load_recipe({}, [word for word in one.command.split() if "=" in word and not word.startswith("-")])


def test_good_data_get_no_urgent_advice(tmp_path: Path) -> None:
    found = advice_for(tmp_path, Case(0))
    assert [one.kind for one in found if one.urgency >= 50] == []
    assert found[-1].kind in ("threshold", "few validation images")


def test_facts_are_kept_as_they_are(tmp_path: Path) -> None:
    case = Case(1)
    SPOILT["boxes off by 20 pixels"][0](case)
    run = written(tmp_path, case)
    values: dict[str, Any] = json.loads((run / "facts.json").read_text())
    facts = read_facts(run)
    assert facts is not None
    assert json.loads(json.dumps(facts.to_json())) == values
    assert facts.train.offset == pytest.approx((-20, -20), abs=2)
    for offset, said in (((-20.0, 3.0), "by (-20, +3) px (x, y)"), ((32.0, 3.0), "by (+32, +3) px or more (x, y)")):
        moved: Any = SimpleNamespace(
            facts=replace(facts, train=replace(facts.train, offset=offset), val=None), data="d"
        )
        advice = boxes_beside_edges(moved)
        assert advice is not None
        assert f"the training images {said}" in advice.reason
    assert read_facts(tmp_path) is None


def test_a_run_of_few_steps_is_too_short_also_where_it_finds_something(tmp_path: Path) -> None:
    case = Case(0)
    case.steps, case.scores = 43, (0.063,)
    found = advice_for(tmp_path, case)
    assert found[0].kind == "too short"
    assert "43 optimizer steps" in found[0].reason
