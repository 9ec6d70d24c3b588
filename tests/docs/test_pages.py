"""What README and documentation say is true: every command line and every Python block runs, on data in miniature."""

from __future__ import annotations

import importlib.machinery
import json
import re
import shlex
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from detrkit.config import load_recipe
from tests.workplace import ROOT, SMALL_RUN, TINY_MODEL, detrkit_cli, make_workplace

pytestmark = pytest.mark.xdist_group("readme")  # one working folder

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

SMALL_MODEL = {f"model.{key}": value for key, value in TINY_MODEL.items()} | {"model.num_queries": 10}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """Every command line of ours that a page shows: lines of bash blocks, and code in table cells."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    lines += re.findall(r"\| `([^`]+)`", "\n".join(line for line in text.splitlines() if line.startswith("|")))
    for line in lines:
        command = re.sub(r"\s+#.*|^CUDA_VISIBLE_DEVICES=\S+ ", "", line).strip()
        if re.match(r"(detrkit|(accelerate launch|python) (.* )?-m detrkit) ", command):
            yield command


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def arguments(command: str) -> list[str]:
    """What comes after ``detrkit``, however it is launched."""
    words = shlex.split(command)
    if words[0] == "detrkit":
        return words[1:]
    place = words.index("detrkit")
    assert words[place - 1] == "-m", command
    return words[place + 1 :]


def label(command: str) -> str:
    """A short name for the report: the words that matter, without paths."""
    words = arguments(command)
    shown = [re.sub(r".*/", "", word).removesuffix(".yaml") for word in words if not word.startswith(("--", "runs/"))]
    return "-".join([*shown, *(word.strip("-") for word in words if word in ("--json", "--wandb", "--force"))])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("readme"))


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the package wandb (which needs an account) and notes what is called."""
    calls: list[str] = []

    class Run:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: calls.append(name)

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)  # accelerate looks whether it is installed

    def init(*_: Any, **__: Any) -> Run:
        calls.append("init")
        return Run()

    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def miniature(words: list[str], output: Path) -> list[str]:
    """The same command made small: only overrides are added, and the table's placeholder X is filled."""
    if words[-1] == "X":
        model = Path(words[1]).name.split("_r50")[0]
        words = [*words[:-1], f"{model}.safetensors"]
    if words[0] == "train":
        small = (
            SMALL_RUN if any(word.startswith(("model.init=", "--init")) for word in words) else SMALL_RUN | SMALL_MODEL
        )
        if not words[1].startswith("--") and load_recipe(words[1]).model.init is not None:
            small |= {"model.init": None}  # of another size
        return [*words, *as_overrides(small | {"training.output": str(output)})]
    if words[0] == "eval":
        small = {key: value for key, value in SMALL_RUN.items() if key.startswith("data.eval")}
        return [*words, "--workers", "0", *as_overrides(small)]
    return words


def make_room(words: list[str]) -> None:
    """Commands refuse to replace files; annotations that are there make room for those that are converted."""
    targets = {
        "data/cityscapes": "data/CocoFormatAnnos/cityscapes_*.json",
        "BCCD_Dataset/BCCD": "data/blood_cells_det/annotations/*.json",
    }
    if words[:2] == ["data", "convert"] and words[2] in targets:
        for path in Path().glob(targets[words[2]]):
            path.unlink()


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 20
    shown = {arguments(command)[0] for command in COMMANDS}
    assert {"demo", "predict", "train", "eval", "score", "data", "models", "env"} <= shown


TRAININGS = [command for command in COMMANDS if arguments(command)[0] == "train"]


@pytest.mark.parametrize("command", TRAININGS, ids=label)
def test_training_commands_run(command: str, here: Path, tmp_path: Path, wandb: list[str]) -> None:
    """One optimizer step and one evaluation of every training command, through the real reader, model and trainer."""
    output = tmp_path / "run"
    code, text = detrkit_cli(miniature(arguments(command), output))
    assert code == 0, text
    assert (output / "best" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines
    assert ("init" in wandb) == ("--wandb" in command)


OTHERS = [
    pytest.param(command, marks=[pytest.mark.slow] * (arguments(command)[0] == "export"))  # converting takes its time
    for command in COMMANDS
    if command not in TRAININGS
]


@pytest.mark.parametrize("command", OTHERS, ids=label)
def test_other_commands_run(command: str, here: Path) -> None:
    words = miniature(arguments(command), here / "unused")
    make_room(words)
    code, text = detrkit_cli(words)
    assert code == 0, text
    if "score coco" in command and "--json" in command:
        assert set(json.loads(text)) >= {"protocol", "iou_type", "metrics", "per_class"}


def test_prediction_writes_what_the_page_says(here: Path, tmp_path: Path) -> None:
    words = ["predict", "photos/", "--model", "runs/mine/best/model.safetensors", "--threshold", "0", "--out", "found"]
    code, text = detrkit_cli(words)
    assert code == 0, text
    result = json.loads((here / "found" / "predictions.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in result["images"]] == ["a.jpg", "sub/b.png"]
    assert {row["category_id"] for row in result["annotations"]} <= {1, 7}
    assert (here / "found" / "images" / "sub" / "b.png").is_file()
    assert json.loads((here / "found" / "results.json").read_text(encoding="utf-8"))
    assert "broken.jpg" in (here / "found" / "skipped.json").read_text(encoding="utf-8")


PYTHON = [(page.name, number, code) for page in PAGES for number, code in enumerate(blocks(page.read_text(), "python"))]


@pytest.mark.parametrize("code", [code for *_, code in PYTHON], ids=[f"{page}-{number}" for page, number, _ in PYTHON])
def test_python_blocks_run(code: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import detrkit

    train = detrkit.train
    small = SMALL_RUN | SMALL_MODEL | {"training.output": str(tmp_path / "run")}
    monkeypatch.setattr(detrkit, "train", lambda recipe, **own: train(recipe, **(own | small)))
    exec(compile(code, "README.md", "exec"), {})


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links may name behind ``#`` of a page: its headings, as GitHub and MkDocs spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = (heading.strip().lower() for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}#{anchor}"
    for label in re.findall(r"\[[^\]]+\]\[([^\]]+)\]", text):
        assert re.search(rf"^\[{re.escape(label)}\]: ", text, re.MULTILINE), f"{page.name}: [{label}]"
