"""Resuming: the run folder says what the run is, wherever it lies, and other data or damaged files are noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from detrkit.config import load_recipe
from detrkit.data import DetectionDataset
from detrkit.errors import CheckpointError, DataError, RecipeError, RunError
from detrkit.files import remove_drafts
from detrkit.structures import Categories, Category
from detrkit.training import run as module
from detrkit.training import train
from detrkit.training.checkpoint import load_state
from detrkit.training.fingerprint import changed_annotations, changed_classes, changed_images, fingerprint
from detrkit.training.folder import locked
from detrkit.training.loggers import read_log
from detrkit.training.optimizer import frozen_norms, parameter_groups
from detrkit.training.resume import check_agreement, check_network
from detrkit.training.task import Task
from detrkit.weights import save
from tests.small import small_model
from tests.training.fakes import fake_task, last_state, make_images, make_recipe, make_task, scores

STEP = {"schedule": {"kind": "step"}, "evaluate_every": 0}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a task whose run has done two of its epochs (8 steps), with a step schedule."""
    folder = tmp_path_factory.mktemp("begun")
    with fake_task(folder):
        train(make_recipe(folder, epochs=2, **STEP))
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of that run in another place."""
    shutil.copytree(begun / "run", tmp_path / "moved")
    return tmp_path / "moved"


def steps(folder: Path) -> int:
    return int(last_state(folder)["position"]["step"])


def test_the_run_that_is_named_goes_on_where_it_lies(begun: Path, run: Path) -> None:
    for number, name in enumerate((run, run / "recipe.yaml"), start=3):
        with fake_task(begun):
            result = train(name, resume=True, epochs=number)
        assert result.folder == run
        assert steps(run) == 4 * number
        assert load_recipe(run).training.output == str(run)
    assert steps(begun / "run") == 8, "the run at the old place is another one"


def test_a_run_folder_is_not_started_again(begun: Path, run: Path) -> None:
    with fake_task(begun), pytest.raises(RecipeError, match=r"moved holds another run .*--resume"):
        train(run)


def test_files_to_start_from_are_not_needed_to_resume(begun: Path, run: Path) -> None:
    recipe = load_recipe(run, {"model.init": str(run / "lost.safetensors")})
    state = last_state(run)
    torch.save({**state, "recipe": recipe.to_dict()}, run / "last" / "state.pt")
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    for number, overrides in enumerate(({}, {"model.init": None}), start=3):
        with fake_task(begun):
            train(run, resume=True, epochs=number, **overrides)
        assert load_recipe(run).model.init == str(run / "lost.safetensors"), "what the run began with"
    assert steps(run) == 16


# ------------------------------------------------------------------------------------------------------------- length


def test_a_longer_run_keeps_its_drop(begun: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert last_state(run)["recipe"]["schedule"]["drop"] == [1.6]  # 80 % of two epochs
    with fake_task(begun):
        train(make_recipe(begun, epochs=4, output=str(run), **STEP), resume=True)  # the recipe gives no drop
    assert "16 optimizer steps instead of 8: the learning rate drops after epoch 1.6, as the run began" in (
        capsys.readouterr().err
    )
    rates = [row["lr"] for row in read_log(run / "log.jsonl") if row["event"] == "train"]
    assert rates[4] == pytest.approx(1e-2)
    assert rates[6:] == pytest.approx([1e-3] * 10)


def test_without_a_length_the_run_keeps_its_own(begun: Path, run: Path) -> None:
    recipe = make_recipe(begun, epochs=None, output=str(run), **STEP)
    assert recipe.training.epochs is None
    with fake_task(begun):
        train(recipe, resume=True)
    assert steps(run) == 8
    assert load_recipe(run).training.epochs == 2


def test_a_longer_cosine_ends_at_the_new_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, epochs=2, evaluate_every=0))
        capsys.readouterr()
        train(make_recipe(tmp_path, epochs=4, evaluate_every=0), resume=True)
    assert "16 optimizer steps instead of 8: the cosine now ends there" in capsys.readouterr().err
    rates = [row["lr"] for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    with fake_task(tmp_path / "whole"):
        train(make_recipe(tmp_path / "whole", epochs=4, evaluate_every=0))
    whole = [row["lr"] for row in read_log(tmp_path / "whole" / "run" / "log.jsonl") if row["event"] == "train"]
    assert rates[7] < whole[7], "the first 8 steps had the cosine of 8 steps"
    assert rates[8:] == pytest.approx(whole[8:])


# --------------------------------------------------------------------------------------------------------------- data


def data_of(folder: Path, boxes: tuple[int, ...] = (1, 2, 0, 3)) -> DetectionDataset:
    return make_images(folder / "images", boxes)


def renamed(data: DetectionDataset, *names: str) -> DetectionDataset:
    return DetectionDataset(records=data.records, categories=Categories(map(Category, (7, 9), names)), name="x")


def test_classes_images_and_annotations_are_compared(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    then = fingerprint(data)
    same = fingerprint(DetectionDataset(records=[*data.records, *data.records], categories=data.categories, name="x"))
    assert changed_classes(then, same) == changed_images(then, same) == ""
    assert changed_annotations(then, same) == []

    other = fingerprint(renamed(data, "blue", "red"))
    assert changed_classes(then, other) == "its classes are red, blue, those of the data now blue, red"
    grown = fingerprint(data_of(tmp_path / "grown", (1, 2, 0, 3, 1)))
    assert changed_images(then, grown) == "4 training images then, 5 now, 1 are new (ids 104)"
    assert changed_images(grown, then) == "5 training images then, 4 now, 1 are gone (ids 104)"
    turned = DetectionDataset(records=data.records[::-1], categories=data.categories, name="x")
    assert "another order" in changed_images(then, fingerprint(turned))
    moved = data.records[1].segments.boxes
    moved += np.array([1.0, 0, 0, 0])
    assert changed_annotations(then, fingerprint(data)) == [101]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "classes": ["blue", "red"]}, r"its classes are blue, red, .* now red, blue"),
        (lambda data: {**data, "images": data["images"][:-1]}, r"6 training images then, 7 now, 1 are new"),
        (lambda data: {**data, "images": data["images"].flip(0)}, r"come in another order"),
    ],
)
def test_other_data_are_refused_with_the_way_on(
    begun: Path, run: Path, change: Callable[[Any], Any], message: str
) -> None:
    state = last_state(run)
    torch.save({**state, "data": change(state["data"])}, run / "last" / "state.pt")
    with fake_task(begun), pytest.raises(DataError, match=message + r".*model\.init=.*moved"):
        train(run, resume=True, epochs=3)
    assert steps(run) == 8


def test_other_annotations_of_the_same_images_are_said(
    begun: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = last_state(run)
    state["data"]["images"][2, 1] += 1
    torch.save(state, run / "last" / "state.pt")
    with fake_task(begun):
        train(run, resume=True, epochs=3)
    assert "the annotations of 1 training images have changed since the run began" in capsys.readouterr().err
    assert steps(run) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:-1], "6 validation images then, 7 now, 1 are new (ids 106) since the run began: "),
        (lambda images: images + torch.tensor([0, 1]), "the annotations of 7 validation images have changed"),
        (lambda images: images.flip(0), None),
    ],
)
def test_other_validation_images_are_said(
    begun: Path, run: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], Any], message: str | None
) -> None:
    state = last_state(run)
    now = state["validation"]["images"]
    state["validation"]["images"] = change(now)
    torch.save(state, run / "last" / "state.pt")
    with fake_task(begun):
        train(run, resume=True, epochs=3)
    said = capsys.readouterr().err
    assert ("scores from here on cannot be compared" in said) is (message is not None)
    assert (message or "") in said
    assert steps(run) == 12
    assert torch.equal(last_state(run)["validation"]["images"], now)


def test_a_state_of_an_earlier_version_is_resumed(begun: Path, run: Path) -> None:
    state = last_state(run)
    del state["data"], state["validation"], state["best"]["stale"]
    del state["recipe"]["training"]["patience"]
    torch.save(state, run / "last" / "state.pt")
    (run / "last" / "previous.pt").unlink()
    with fake_task(begun):
        train(run, resume=True, epochs=3)
    assert steps(run) == 12


# ------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_a_flipped_byte_falls_back_to_the_state_before(
    begun: Path, run: Path, where: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = last_state(run)["model"]
    flip(run / "last" / "state.pt", where)
    with fake_task(begun):
        train(run, resume=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1
    assert lines[0].endswith("previous.pt, the state before it")
    assert all(torch.equal(value, last_state(run)["model"][key]) for key, value in whole.items()), "the step is redone"


def test_two_damaged_states_are_an_error(run: Path) -> None:
    for name in ("state.pt", "previous.pt"):
        flip(run / "last" / name)
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_state(run)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_best_weights_that_are_damaged_or_gone_do_not_stay_the_best(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"schedule": {"kind": "constant"}, "evaluate_every": 1}
    with fake_task(tmp_path, evaluate=scores(0.9)):
        train(make_recipe(tmp_path, epochs=1, **settings))
    damage(tmp_path / "run" / "best" / "model.safetensors")
    with fake_task(tmp_path, evaluate=scores(0.2)):
        result = train(make_recipe(tmp_path, epochs=2, **settings), resume=True)
    assert "the next evaluation counts as the best" in capsys.readouterr().err
    assert result.metrics["AP"] == 0.2
    assert result.best.is_file()


# ----------------------------------------------------------------------------------------------- lock, leftovers, end


def test_the_lock_is_taken_before_the_folder_is_looked_at(tmp_path: Path) -> None:
    """A second start that builds longer must not find an empty folder and delete what the first has written since."""
    seen: list[bool] = []
    recipe = make_recipe(tmp_path, epochs=1, evaluate_every=0)
    task = make_task(tmp_path, (1, 2))

    def build(given: Any) -> Task:
        with pytest.raises(RunError, match="another process trains there"), locked(tmp_path / "run"):
            pass
        seen.append(True)
        return task

    with mock.patch.object(module, "build_task", build):
        train(recipe)
    assert seen == [True]


def test_an_error_before_the_first_step_leaves_no_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "one"):
        assert (tmp_path / "runs" / "one" / ".lock").exists()
    assert not (tmp_path / "runs").exists()


def test_what_a_killed_process_left_is_removed(begun: Path, run: Path) -> None:
    (run / "best").mkdir()
    left = [run / ".recipe.yaml.ab12.draft", run / "best" / ".model.safetensors.x.draft", run / "last.new" / "state.pt"]
    left[2].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    (run / ".notes").write_text("mine", encoding="utf-8")
    with fake_task(begun):
        train(run, resume=True, epochs=3)
    assert not [path for path in left if path.exists()]
    remove_drafts(run)
    assert (run / ".notes").exists()


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"schedule": {"kind": "constant"}, "evaluate_every": 1, "epochs": 9}
    with fake_task(tmp_path, evaluate=scores(0.1, 0.3, 0.2, 0.3, 0.4)):
        result = train(make_recipe(tmp_path, patience=2, **settings))
        assert (result.metrics["AP"], steps(tmp_path / "run")) == (0.3, 16), "an equal score is not better"
        assert "the last 2 evaluations were not better (training.patience)" in capsys.readouterr().err
        assert train(make_recipe(tmp_path, patience=2, **settings), resume=True) == result
    with fake_task(tmp_path, evaluate=scores(0.4, 0.1)):
        result = train(make_recipe(tmp_path, patience=3, **settings), resume=True)  # more patience: it goes on
    assert (result.metrics["AP"], steps(tmp_path / "run")) == (0.4, 32)


def test_patience_without_evaluations_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = replace(make_task(tmp_path, (1, 2)), validation=None)
    with mock.patch.object(module, "build_task", return_value=task):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0, patience=2))
    assert "training.patience has no effect: this run is never evaluated" in capsys.readouterr().err


def test_a_frozen_backbone_keeps_its_statistics() -> None:
    model = small_model("detr_lite0", frozen_batch_norm=False)
    zero, some = (load_recipe({}, {"optimizer.lr_backbone": rate}).optimizer for rate in (0, 1e-5))
    parameter_groups(model, some)
    stem = frozen_norms(model)  # the layers that every recipe keeps as they are
    parameter_groups(model, zero)
    norms = frozen_norms(model)
    assert len(norms) > len(stem) + 10
    model.train()
    for norm in norms:
        norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("backbone.")}
    model(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    model.train()
    model(torch.rand(2, 3, 64, 64))
    assert not all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), "the check can fail"


def test_options_left_open_whose_default_has_changed_can_be_said(tmp_path: Path) -> None:
    """A run of DAPE from when codes were sampled by default: its recipe says nothing about that."""
    harmonized, standard = (small_model("dape_lite0", sampling=value) for value in ("harmonized", "standard"))
    save(harmonized, tmp_path / "last" / "model.safetensors")
    check_network(harmonized, harmonized.state_dict(), tmp_path)
    with pytest.raises(
        RecipeError, match=r"sampling: harmonized there, standard here.* give them: model\.sampling=harmo"
    ):
        check_network(standard, harmonized.state_dict(), tmp_path)
    begun = load_recipe({"model": {"name": "dape_lite0"}, "data": {"root": str(tmp_path)}})
    state: Any = {"recipe": begun.to_dict(), "processes": 1, "batches": 4}
    data: Any = None  # not looked at: the state has none
    agree = {"processes": 1, "batches": 4, "data": data}
    check_agreement(begun.updated(model={"sampling": "harmonized"}), state, tmp_path, **agree)
    with pytest.raises(RecipeError, match=r"model\.sampling: harmonized there, corrected here"):
        check_agreement(begun.updated(model={"sampling": "corrected"}), state, tmp_path, **agree)
