"""The notebook runs from top to bottom on the images of the package, and its numbers follow from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import detrkit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "own_images_to_a_deployed_model.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    for text in cells("code"):
        compile(text, NOTEBOOK.name, "exec")


@pytest.mark.slow  # trains, exports and compares
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETRKIT_EXAMPLES", str(EXAMPLES / "serve"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "app", raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    for text in cells("code"):
        exec(compile(text, NOTEBOOK.name, "exec"), names)
    again = detrkit.evaluate(names["trained"].best, "my_data")["metrics"]["AP"]
    assert names["after"] == pytest.approx(again, abs=1e-3)
    assert names["before"] > 0.5
    assert (tmp_path / "run" / "report.html").is_file()
    rows = names["answer"]["objects"]
    assert [row["name"] for row in rows] == list(names["found"].names)
    assert len(rows) > 3
