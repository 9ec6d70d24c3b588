"""Figures of the source code count correctly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import imported_script


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    with imported_script("house") as module:
        yield module


def test_imports_that_go_up_or_sideways_are_found(figures: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "detrkit"
    files = {
        "__init__.py": "from detrkit.training import train\n",
        "errors.py": "from . import structures\n",
        "structures/__init__.py": "def draw():\n    from detrkit.inference import drawing\n",
        "losses/criterion.py": "if TYPE_CHECKING:\n    from detrkit.models.config import A, B\n",
        "losses/terms.py": "import torch\nfrom detrkit.ops import boxes\nfrom .criterion import C\n",
        "nn/head.py": "from ..structures import Target\nfrom detrkit import Predictor, __version__\n",
        "training/trainer.py": "import detrkit.inference.loop\n",
    }
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for room in ("inference", "models", "ops"):
        (package / room).mkdir()
    assert figures.wrong_imports(package) == [
        "errors.py:1 errors -> structures",
        "losses/criterion.py:2 losses -> models",
        "nn/head.py:2 nn -> __init__",
        "structures/__init__.py:2 structures -> inference",
    ]
    (package / "basement").mkdir()
    (package / "basement" / "a.py").touch()
    with pytest.raises(SystemExit, match="room 'basement'"):
        figures.wrong_imports(package)


@dataclass
class Input:
    mean: float = 0.0
    std: float = 1.0


@dataclass
class Config:
    queries: int = 100
    input: Input = field(default_factory=Input)


def test_fields_of_a_configuration_are_counted_by_part(figures: ModuleType) -> None:
    assert figures.config_fields(Config()) == {"flat": 1, "input": 2}
    assert figures.config_fields(Input()) == {"flat": 2}


def test_sizes_of_source_files(figures: ModuleType, tmp_path: Path) -> None:
    for name, text in {"data/coco.py": "Any\nx: Any\nAny_\n", "metrics/coco.py": "\n", "errors.py": "a\nb\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = figures.source_figures(tmp_path)
    assert (found["lines"], found["files"], found["median file"], found["lines with Any"]) == (6, 3, 2, 2)
    assert found["longest file"] == "3 (data/coco.py)"
    assert found["details"]["names"] == ["coco.py"]
