"""The report of a run: its numbers, and that the file stands alone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from detrkit.cli.main import run as command
from detrkit.metrics import score_coco
from detrkit.report.page_tables import ERRORS
from detrkit.report.run_folder import open_run, with_kept_detections
from detrkit.structures import Categories
from tests.cli.test_first_touch import HEAVY, PROGRAM
from tests.cli.test_main import SOURCE
from tests.report.runs import write_run
from tests.report.sets import simulated
from tests.report.test_analysis import judged
from tests.runtime.planted_files import planted_info, planted_onnx

NASTY = "<b>red & \"raw\"</b> '{{ 7 * 7 }}'"


def page_of(run: Path) -> str:
    assert command(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


class Cells(HTMLParser):
    """The cells of all tables, row by row, and the elements that would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.scripts = 0
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._cell = self._cell or tag in ("td", "th")
        self.scripts += tag in ("script", "iframe", "object", "embed") or any(
            name.startswith("on") for name, _ in attrs
        )
        if tag == "small" and self._cell:
            self.rows[-1][-1] += " "
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def read(text: str) -> Cells:
    cells = Cells()
    cells.feed(text)
    return cells


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report"))


def test_the_detections_of_an_exported_model(run: Path, tmp_path: Path) -> None:
    truth, _ = simulated(seed=0, images=20)
    rows = [{**row, "isthing": 1} for row in truth["categories"]]
    model = planted_onnx(tmp_path / "model.onnx", planted_info(categories=Categories.from_json(rows)))
    page = tmp_path / "exported.html"
    assert command(["report", str(run), "--checkpoint", str(model), "--out", str(page), "--device", "cpu"]) == 0
    assert page.read_text(encoding="utf-8") != page_of(run)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"none")
    assert command(["report", str(run), "--checkpoint", str(broken), "--out", str(page)]) == 2


def test_the_numbers_are_those_of_score_and_of_hotcoco(run: Path) -> None:
    """AP and AP50 of every class, AR, and what errors cost, as printed."""
    truth, results = simulated(seed=0, images=20)
    score = score_coco(truth, results)
    rows = read(page_of(run)).rows
    heading = next(row for row in rows if row[:1] == ["class"])
    for name in ("AP", "AP50", "AR100"):
        column = heading.index(name)
        for class_name, numbers in [*score.per_class.items(), ("all", score.metrics)]:
            (row,) = (row for row in rows if row[:1] == [class_name] and len(row) == len(heading))
            assert row[column] == f"{numbers[name]:.3f}"
    tide = judged(truth, results).tide_errors()
    for kind, words in ERRORS.items():
        assert [words, f"{tide['delta_ap'][kind]:.3f}", str(tide["counts"][kind])] in rows
    confusion = with_kept_detections(open_run(run))
    assert confusion is not None
    assert confusion.analysis is not None
    counts = confusion.analysis.confusion.counts
    (first,) = (row for row in rows if row[:1] == ["class 0"] and len(row) == 5)
    assert [cell.split()[0] for cell in first[1:]] == [str(count) for count in counts[0]]


def test_it_needs_neither_network_nor_scripts(run: Path) -> None:
    text = page_of(run)
    found = read(text)
    assert found.scripts == 0
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in found.loads)
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(text.encode()) < 5_000_000
    assert text.startswith("<!DOCTYPE html>")
    opened = with_kept_detections(open_run(run))
    assert opened is not None
    assert opened.analysis is not None
    assert text.count("data:image/jpeg") == len(opened.analysis.worst) > 0
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_names_are_text(tmp_path: Path) -> None:
    """Class names, file names and paths with characters of HTML and of templates."""
    truth, results = simulated(seed=1, images=4)
    truth["categories"][0]["name"] = NASTY
    truth["images"][0]["file_name"] = "<i>&.png"
    run = write_run(tmp_path / "a <u>&", truth=truth, results=results)
    text = page_of(run)
    assert html.escape("<b>red &", quote=False) in text
    assert "<b>red" not in text
    assert "<i>" not in text.split("</style>")[1].replace('<i class="key', "").replace('<i style="background', "")
    assert "{{ 7 * 7 }}" in html.unescape(text)
    assert any(NASTY in row for row in read(text).rows)


def test_without_detections_it_has_the_training_alone(tmp_path: Path, run: Path) -> None:
    """As for panoptic and semantic maps, or where the run kept none and has no weights."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "facts.json").unlink()
    record = open_run(other)
    assert with_kept_detections(record) is None
    assert record.log.best is not None
    assert record.log.best.scores["AP"] == 0.36


def test_a_folder_that_is_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["report", str(tmp_path)]) == 2
    assert "not a run folder, it has no recipe.yaml" in capfd.readouterr().err
    assert command(["report", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capfd.readouterr().err


def test_data_that_are_gone_are_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert command(["report", str(run)]) == 2
    assert "say where they are with --data DIR" in capfd.readouterr().err


def test_kept_detections_of_other_images_are_not_used(tmp_path: Path) -> None:
    """The validation images were renamed since."""
    run = write_run(tmp_path)
    facts = json.loads((run / "facts.json").read_text())
    (run / "facts.json").write_text(json.dumps({**facts, "val_digest": "0", "of_a_later_version": 1}))
    assert with_kept_detections(open_run(run)) is None


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_a_browser_shows_it(run: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """Headless Chromium draws the page at the width of a desk and of a phone, in both colour schemes."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium")
    page_of(run)
    shot = screenshot(browser, run / "report.html", tmp_path / "shot.png", width=width, dark=scheme == "dark")
    picture = Image.open(shot).convert("L")
    assert picture.width == width
    background = picture.getpixel((2, 2))
    assert isinstance(background, int)
    assert background < 60 if scheme == "dark" else background > 200
    assert len(set(picture.resize((100, 100)).getdata())) > 20  # something is drawn


def screenshot(browser: str, page: Path, shot: Path, *, width: int, height: int = 3000, dark: bool = False) -> Path:
    """A picture of the page as the browser draws it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={shot.parent / 'profile'}", f"--window-size={width},{height}", f"--screenshot={shot}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    return shot


def test_it_loads_no_torch(run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    program = PROGRAM.format(heavy=HEAVY)
    found = subprocess.run(
        [sys.executable, "-c", program, "report", str(run)], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
    assert "loaded:\n" in found.stderr
