"""What the architecture page and CONTRIBUTING name is there, where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_house import ROOT, SOURCE

PAGES = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]
TABLE = PAGES[0].read_text(encoding="utf-8").split("## Where is …?")[1].split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| ")][
    1:
]


def paths(text: str) -> list[Path]:
    """Files and folders below src/detrkit that a text names; those with a placeholder are left out."""
    named = re.findall(r"`((?:[a-z_]+/)*(?:[a-z_]+\.py|[a-z_]+/))`", text)
    return [
        SOURCE / name
        for name in named
        if not name.startswith(("src/", "docs/", "tests/", "benchmarks/", "recipes/", "best/"))
    ]


def is_defined(name: str, files: list[Path]) -> bool:
    """Whether one of the files (or a file of one of the folders) defines a class, function or constant of that name."""
    first, *rest = name.split(".")
    found = rf"^(?:class|def) {first}\b|^{first}\b.* = "
    sources = [file for path in files for file in ([path] if path.is_file() else path.rglob("*.py"))]
    texts = [file.read_text(encoding="utf-8") for file in sources]
    return any(
        re.search(found, text, re.MULTILINE)
        and all(re.search(rf"^    def {one}\b", text, re.MULTILINE) for one in rest)
        for text in texts
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = paths(page.read_text(encoding="utf-8"))
    assert len(named) > 10
    assert not [str(path) for path in named if not path.exists()]


@pytest.mark.parametrize(("question", "files", "names"), ROWS, ids=[row[0] for row in ROWS])
def test_every_name_is_defined_in_its_file(question: str, files: str, names: str) -> None:
    where = paths(files)
    assert where or "<" in files
    for name in re.findall(r"`([\w.]+)`", names):
        assert is_defined(name, where), f"{question} {name} is not in {files}"


def test_the_check_can_fail() -> None:
    assert not is_defined("NoSuchThing", [SOURCE / "models"])
    assert not is_defined("DINO.no_such_method", [SOURCE / "models" / "dino.py"])
    assert is_defined("DINO.network", [SOURCE / "models" / "dino.py"])
