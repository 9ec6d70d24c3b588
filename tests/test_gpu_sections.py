"""gpu.sh: every section writes a line, even if others fail; results of an interrupted section are kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import imported_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
LIMITS = {name: int(seconds) for name, seconds in re.findall(r'^    "(\w+) (\d+)"$', SCRIPT.read_text(), re.MULTILINE)}
SECTIONS = list(LIMITS)


@pytest.fixture(scope="module")
def gpu_section() -> Iterator[ModuleType]:
    with imported_script("gpu_section") as module:
        yield module


def run(out: Path, *sections: str, **env: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, lines and output of gpu.sh, run with ``true`` or ``false`` instead of Python."""
    command = [str(SCRIPT), str(out), *sections]
    ended = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    file = out / "sections.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return ended.returncode, rows, ended.stdout + ended.stderr


def test_every_section_runs_and_writes_a_line(tmp_path: Path) -> None:
    code, rows, printed = run(tmp_path, PYTHON="true")
    assert code == 0
    assert [(row["section"], row["outcome"]) for row in rows] == [(name, "passed") for name in SECTIONS]
    assert (tmp_path / "log.txt").read_text() == printed


def test_a_failed_section_does_not_stop_the_next(tmp_path: Path) -> None:
    code, rows, _ = run(tmp_path, PYTHON="false")
    assert code == 1
    assert [row["outcome"] for row in rows] == ["failed"] * len(SECTIONS)


def test_sections_without_time_left_are_out_of_time(tmp_path: Path) -> None:
    code, rows, _ = run(tmp_path, "dense", "speed", PYTHON="true", TOTAL="0")
    assert code == 1
    assert [(row["section"], row["outcome"]) for row in rows] == [("speed", "out of time"), ("dense", "out of time")]


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    code, rows, printed = run(tmp_path, "sped", PYTHON="true")
    assert (code, rows) == (2, [])
    assert "no section 'sped', only: kernels step" in printed


def test_the_most_important_sections_come_first_and_all_are_short() -> None:
    assert SECTIONS[:2] == ["kernels", "step"]
    assert max(LIMITS.values()) <= 120
    assert sum(LIMITS.values()) <= 530
    (total,) = re.findall(r"TOTAL:-(\d+)", SCRIPT.read_text())
    assert int(total) <= 540


def test_results_of_an_interrupted_section_are_kept(gpu_section: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "check.jsonl").write_text('{"name": "a"}\n{"name": ')
    (tmp_path / "speed.json").write_text('{"timings": [')
    (tmp_path / "relation.json").write_text('{"rows":\n {}}\n')
    row = gpu_section.section("check", 124, 60, tmp_path)
    assert row["outcome"] == "out of time"
    assert row["files"] == {"check.jsonl": [{"name": "a"}], "relation.json": {"rows": {}}, "speed.json": None}
