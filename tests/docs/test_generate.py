"""The generated sections of the documentation are up to date, and headers of recipes are read strictly."""

from __future__ import annotations

from pathlib import Path

import generate
import pytest
import yaml
from generator.configuration import attribute_docstrings
from generator.headers import HeaderError, read

import detrkit
from tests.workplace import ROOT

TRAIN = "#   detrkit train recipes/a/b.yaml\n#   detrkit eval recipes/a/b.yaml --checkpoint CHECKPOINT\n"


def test_every_generated_section_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_check_names_the_page_that_differs_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: one -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "SECTIONS", {"one": lambda: "new"})
    assert generate.main(["--check"]) == 1
    assert "docs/page.md" in capsys.readouterr().out
    assert "old" in page.read_text(encoding="utf-8")
    assert generate.main([]) == 0
    assert page.read_text(encoding="utf-8") == "before\n<!-- generated: one -->\n\nnew\n\n<!-- end -->\nafter\n"
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: two -->\n<!-- end -->\n", r"page\.md: there is no section 'two'"),
        ("<!-- generated: one -->\n", r"page\.md: every .* needs one '<!-- end -->'"),
        ("nothing\n", "no page has the section one"),
    ],
)
def test_a_page_with_a_wrong_marker_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "SECTIONS", {"one": lambda: "new"})
    with pytest.raises(SystemExit, match=message):
        generate.main([])


def header(folder: Path, lines: str) -> Path:
    path = folder / "b.yaml"
    path.write_text(f"# DETR R50, a variant, on COCO, 50 epochs.\n{lines}{TRAIN}model: {{}}\n", encoding="utf-8")
    return path


def test_a_header_is_read(tmp_path: Path) -> None:
    lines = (
        "# Published AP / S: 41.0 / 20.6 (DETR repository, model zoo).\n"
        "# Published configuration (Relation-DETR): some_name\n"
        "# Published command (DE-DETRs, branch detr, N=2, 300 epochs): --model detr --nms\n"
        "# Published command (DINO): bash train.sh\n"
        "# Ours: detrkit train recipes/a/b.yaml seed=1\n"
        "# Published evaluation (DINO): bash eval.sh X\n"
        "# It was published in 2020.\n"
    )
    found = read(header(tmp_path, lines))
    assert (found.title, found.data) == ("DETR R50, a variant", "COCO")
    (figure,) = found.figures
    assert (figure.values, figure.source, figure.detail) == ({"AP": "41.0", "S": "20.6"}, "DETR", "model zoo")
    assert found.configurations == [("Relation-DETR", "some_name")]
    first, second, evaluation = found.commands
    assert (first.repository, first.branch, first.processes, first.epochs) == ("DE-DETRs", "detr", 2, 300)
    assert (first.theirs, first.ours) == ("--model detr --nms", "detrkit train recipes/a/b.yaml")
    assert (second.theirs, second.ours) == ("bash train.sh", "detrkit train recipes/a/b.yaml seed=1")
    assert (evaluation.kind, evaluation.ours) == ("evaluation", "detrkit eval recipes/a/b.yaml --checkpoint X")


@pytest.mark.parametrize(
    "line",
    [
        "# Published AP: 41.0 (some blog).",
        "# Published AP / AP50: 41.0 (DETR repository).",
        "# Published AP / PQ: 41.0 / 40.0 (DETR repository).",
        "# Published AP: 41.0 (DETR repository)",
        "# Published command (YOLO): train",
        "# Published with pleasure.",
        "# Ours: detrkit train recipes/a/b.yaml",
        "# No figure is known.",
    ],
)
def test_a_line_that_is_not_understood_names_file_and_line(line: str, tmp_path: Path) -> None:
    path = header(tmp_path, f"# A remark.\n{line}\n")
    with pytest.raises(HeaderError, match=r"b\.yaml:3: .*"):
        read(path)


def test_a_recipe_of_a_user_may_have_any_comment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Published anything: whatever\n# Ours\nmodel: {name: detr_r50}\n", encoding="utf-8")
    assert detrkit.load_recipe(path).model.name == "detr_r50"


def test_meanings_are_read_from_the_string_below_a_field_and_from_attributes() -> None:
    class Part:
        """A part.

        Attributes:
            first, second: two at
                once.
        """

        first: int = 1
        second: int = 2
        third: int = 3
        """The string
        below."""

    assert attribute_docstrings(Part) == {
        "first": "two at once.",
        "second": "two at once.",
        "third": "The string\nbelow.",
    }


def test_the_python_page_names_everything_public() -> None:
    page = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
    shown = [line.removeprefix("::: detrkit.") for line in page.splitlines() if line.startswith(":::")]
    assert sorted(shown) == sorted(set(detrkit.__all__) - {"__version__"})


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(navigation)["nav"]
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 220
    assert max(map(len, lines)) <= 130
