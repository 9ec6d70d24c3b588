"""Timing two checkouts in turns: order of the questions, ratio, and that each side runs its own package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import imported_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import detrkit
from interleaved import serve


def value():
    print("this is no answer")
    return {"value": detrkit.VALUE}


serve({"value": value})
"""


@pytest.fixture(scope="module")
def interleaved() -> Iterator[ModuleType]:
    with imported_script("interleaved") as module:
        yield module


def test_sides_take_turns_and_no_side_is_always_first(interleaved: ModuleType) -> None:
    asked = []

    def answer(side: str, value: float) -> dict[str, float]:
        asked.append(side)
        return {"value": value * len(asked)}  # the machine becomes slower with every call

    found = interleaved.in_turns(lambda _: answer("old", 1.0), lambda _: answer("new", 2.0), "step", 4)
    assert "".join(side[0] for side in asked) == "onnoonno"
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx((2 * 7 / 8 + 2 * 6 / 5) / 2)  # median of the four ratios


def test_each_side_runs_the_package_of_its_checkout(interleaved: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.append({str(ROOT / 'benchmarks')!r})\n{SCRIPT}")
    sides = []
    for value in (3.0, 5.0):
        package = tmp_path / str(value) / "src" / "detrkit"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"VALUE = {value}\n")
        sides.append(package.parents[1])
    with interleaved.side(sides[0], script, []) as old, interleaved.side(sides[1], script, []) as new:
        found = interleaved.in_turns(old, new, "value", 2)
    assert (found.old, found.new) == (3.0, 5.0)
    with pytest.raises(FileNotFoundError, match="is no checkout"), interleaved.side(tmp_path, script, []):
        pass
