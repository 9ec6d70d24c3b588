"""Words of the command line: options of other tools, names from files on a terminal, empty arguments."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from typer.main import get_command

from detrkit.cli.main import app, run
from detrkit.cli.spellings import _OPTIONS, option_meant
from detrkit.config import load_recipe
from detrkit.config.schema import SECTIONS
from detrkit.config.spellings import _ELSEWHERE, setting_meant
from detrkit.console import Console
from detrkit.errors import RecipeError, did_you_mean
from detrkit.terminal import one_line, printable


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["train", "--data", "d", "--epochs", "3"], "--epochs. Here it is training.epochs=VALUE"),
        (["train", "--imgsz", "640"], "--imgsz. Here it is data.short_sides=[N] and data.eval_short_side=N"),
        (["train", "--batch", "4"], "--batch. Here it is training.batch_size=VALUE"),
        (["train", "--batch_size=4"], "--batch_size. Here it is training.batch_size=VALUE"),
        (["train", "--lr", "1e-4"], "--lr. Here it is optimizer.lr=VALUE"),
        (["train", "--weights", "a.pth"], "--weights. Here it is model.init=VALUE"),
        (["train", "--coco_path", "d"], "--coco_path. Here it is --data DIR"),
        (["train", "--work-dir", "d"], "--work-dir. Here it is --output DIR"),
        (["predict", "a.jpg", "--conf", "0.5"], "--conf. Here it is --threshold SCORE"),
        (["predict", "a.jpg", "--weights", "b.pth"], "--weights. Here it is --model CKPT"),
        (["predict", "--source", "a.jpg"], "--source. Here it is a word without an option"),
        (["eval", "--weights", "b.pth"], "--weights. Here it is --checkpoint CKPT"),
        (["eval", "--imgsz", "640"], "--imgsz. Here it is data.eval_short_side=N"),
    ],
)
def test_options_of_other_tools_name_ours(words: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    error = capsys.readouterr().err
    assert f"No such option: {answer}" in error
    assert error.count("\n") == 1


def test_every_answer_exists() -> None:
    """An option or setting that an answer names is one of ours, and no option of ours is in the table."""
    commands = vars(get_command(app))["commands"]
    for command, table in _OPTIONS.items():
        own = {name for parameter in commands[command].params for name in parameter.opts + parameter.secondary_opts}
        for word, answer in table.items():
            assert f"--{word}" not in own, f"{command} --{word}"
            first = answer.split()[0].rstrip(",")
            assert not first.startswith("--") or first in own, f"{command}: {answer}"
    for answer in _ELSEWHERE.values():
        if answer.startswith("no setting"):
            continue
        for key in (word for word in answer.replace("=", " ").split() if "." in word):
            section, _, field = key.partition(".")
            assert field in SECTIONS[section].model_fields or section == "model", key


def test_settings_of_other_tools_name_ours() -> None:
    for word, key in (("imgsz", "data.short_sides"), ("batch", "training.batch_size"), ("lr0", "optimizer.lr")):
        with pytest.raises(RecipeError, match=rf"override '{word}': unknown key\. Here it is {key}"):
            load_recipe({}, [f"{word}=4"])
    with pytest.raises(RecipeError, match=r"model = 'yolo': should be a mapping of keys; .* model\.name=yolo"):
        load_recipe({}, ["model=yolo"])
    with pytest.raises(
        RecipeError, match=r"data = 'coco\.yaml': should be a mapping of keys; .* data\.root=coco\.yaml"
    ):
        load_recipe({}, ["data=coco.yaml"])
    assert setting_meant("--Weight-Decay") == "optimizer.weight_decay"
    assert setting_meant("nonsense") is None
    assert option_meant("score", "--epochs") is None


def test_one_wrong_name_among_many_names_the_nearest_ones() -> None:
    many = [f"model_{number}" for number in range(52)] + ["abcxyz"]
    assert did_you_mean("model_7x", many) == " Did you mean 'model_7'?"
    assert did_you_mean("zzzz", many).startswith(" The nearest of 53: ")
    assert did_you_mean("zzzz", many).count(",") == 2
    assert did_you_mean("zzzz", ["a", "b"]) == " Valid: a, b."
    assert did_you_mean("wbc", ["RBC", "WBC"]) == " Did you mean 'WBC'?", "letter case is no difference"


ESCAPES = "\x1b]0;owned\x07\x1b[2Jcell\x9b\u202e\udcff"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jcell\x9b\u202e\udcff"


def test_names_from_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(ESCAPES) == SHOWN
    assert printable("Zelle \u00e9\u96ea \U0001f9eb\tx\n") == "Zelle \u00e9\u96ea \U0001f9eb\tx\n"
    assert one_line("a\nb\x1b[1m\u2028c") == r"a b\x1b[1m c"
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=True)
    console.print(ESCAPES, markup=False)
    table = Table(ESCAPES)
    table.add_row(ESCAPES)
    console.print(table)
    assert "\x1b]0" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue().count("owned") == 3
    assert run(["predict", "no\x1b[2Jfile.jpg"]) == 2
    assert r"no\x1b[2Jfile.jpg: no such image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["predict", ""],
        ["predict", "a.jpg", "--model", ""],
        ["predict", "a.jpg", "--out="],
        ["eval", ""],
        ["train", "--data", ""],
    ],
)
def test_empty_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "an argument is empty (is a variable not set?)" in capsys.readouterr().err
