"""``train``: the run folder, resuming, seeds, defaults that follow the data."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock

from detrkit.config import Recipe, load_recipe
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.errors import DataError, RecipeError, RunError
from detrkit.training import checkpoint, run, train
from detrkit.training.folder import run_folder
from detrkit.training.loggers import JsonLines, build_loggers, read_log
from detrkit.training.task import resolve
from detrkit.training.trainer import Trainer
from detrkit.weights import read_info
from tests.training.fakes import CATEGORIES, fake_task, last_state, make_recipe, make_task, scores


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_a_run_folder(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1, 0.3, 0.2)):
        result = train(make_recipe(tmp_path))
    folder = tmp_path / "run"
    assert result.folder == folder
    assert file_names(folder) == ["best", "last", "log.jsonl", "metrics.csv", "recipe.yaml"]
    assert file_names(folder / "last") == ["model.safetensors", "previous.pt", "state.pt"]
    assert file_names(folder / "best") == ["model.safetensors"]
    recipe = load_recipe(folder)
    assert recipe.training.epochs == 6
    info = read_info(result.best)
    assert info.categories == CATEGORIES
    assert info.recipe == recipe.to_dict()
    rows = read_log(folder / "log.jsonl")
    assert [row["event"] for row in rows][:2] == ["start", "train"]
    assert rows[-1] | {"time": 0} == {"event": "end", "epoch": 6, "step": 24, "time": 0, "best": 0.3}
    train_row = next(row for row in rows if row["event"] == "train")
    assert {
        "loss",
        "loss_class",
        "loss_bbox",
        "loss_giou",
        "lr",
        "lr_backbone",
        "grad_norm",
        "images_per_second",
    } <= set(train_row)
    assert train_row["lr"] == pytest.approx(1e-2 / 3)
    evaluation = next(row for row in rows if row["event"] == "eval")
    assert evaluation["per_class"] == {"red": 0.1, "blue": 0.1}
    assert (evaluation["AP"], evaluation["best"], evaluation["epoch"]) == (0.1, True, 2)


def test_a_second_process_in_the_folder(tmp_path: Path) -> None:
    """Two runs in one folder would mix their logs and delete each other's half-written checkpoints."""
    recipe = make_recipe(tmp_path, epochs=1, evaluate_every=0)
    with fake_task(tmp_path):
        train(recipe)
        files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        lock = FileLock(tmp_path / "run" / ".lock")
        with lock:
            for options in ({"resume": True}, {"overwrite": True}):
                with pytest.raises(RunError, match=r"run: another process trains there; .*training\.output"):
                    train(recipe, **options)
            assert {path: path.read_bytes() for path in files} == files
        train(recipe, overwrite=True)
    assert file_names(tmp_path / "run") == ["last", "log.jsonl", "metrics.csv", "recipe.yaml"]


def test_another_run_in_the_folder(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, epochs=1, evaluate_every=0)
    with fake_task(tmp_path):
        train(recipe)
        before = (tmp_path / "run" / "log.jsonl").read_bytes()
        with pytest.raises(
            RecipeError, match=r"holds another run \(last, [^()]*\): continue.*--resume.*--overwrite"
        ) as caught:
            train(recipe)
        assert caught.value.exit_code == 2
        assert (tmp_path / "run" / "log.jsonl").read_bytes() == before
        (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
        train(make_recipe(tmp_path, epochs=2, evaluate_every=0), overwrite=True)
    assert [row["event"] for row in read_log(tmp_path / "run" / "log.jsonl")].count("start") == 1
    assert file_names(tmp_path / "run") == ["last", "log.jsonl", "metrics.csv", "notes.txt", "recipe.yaml"]
    assert load_recipe(tmp_path / "run").training.epochs == 2


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    with fake_task(tmp_path), pytest.raises(RecipeError, match="is a file, not a folder"):
        train(make_recipe(tmp_path))


def test_never_evaluated_gives_the_last_weights(tmp_path: Path) -> None:
    with fake_task(tmp_path):
        result = train(make_recipe(tmp_path, epochs=1, evaluate_every=0))
    assert result.best == tmp_path / "run" / "last" / "model.safetensors"
    assert result.best.is_file()
    assert result.metrics == {}


def test_resuming_a_finished_run_returns_its_result(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1, 0.4, 0.2)):
        first = train(make_recipe(tmp_path))
        before = last_state(tmp_path / "run")["model"]
        again = train(tmp_path / "run", resume=True)
    assert again == first
    assert all(torch.equal(before[key], value) for key, value in last_state(tmp_path / "run")["model"].items())


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    with fake_task(tmp_path):
        result = train(make_recipe(tmp_path, epochs=1, evaluate_every=0), resume=True)
    assert result.best.is_file()


def test_resume_without_a_state_deletes_no_weights(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.3)):
        train(make_recipe(tmp_path, epochs=2))
        shutil.rmtree(tmp_path / "run" / "last")
        with pytest.raises(RecipeError, match=r"no last/ to continue from; --overwrite"):
            train(make_recipe(tmp_path, epochs=2), resume=True)
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_resume_with_another_recipe_names_the_differences(tmp_path: Path) -> None:
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0))
        with pytest.raises(RecipeError, match=r"cannot be resumed.*optimizer\.lr: 0\.01 there, 0\.5 here") as caught:
            train(make_recipe(tmp_path, epochs=1, lr=0.5, seed=3), resume=True)
        assert "training.seed: 0 there, 3 here" in str(caught.value)


def test_resume_may_change_what_does_not_change_the_numbers(tmp_path: Path) -> None:
    settings = {"schedule": {"kind": "step", "drop": [5]}, "evaluate_every": 0}
    with fake_task(tmp_path / "long"):
        train(make_recipe(tmp_path / "long", epochs=4, **settings))
    with fake_task(tmp_path / "short"):
        train(make_recipe(tmp_path / "short", epochs=2, **settings))
        moved = tmp_path / "elsewhere"
        (tmp_path / "short" / "run").rename(moved)
        changes = {"epochs": 4, "workers": 1, "output": str(moved), "logging.every": 5, "checkpoint_every": 3}
        train(make_recipe(tmp_path / "short", **settings | changes), resume=True)
    wanted, got = (last_state(folder)["model"] for folder in (tmp_path / "long" / "run", moved))
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_resume_after_the_data_changed(tmp_path: Path) -> None:
    with fake_task(tmp_path, (1, 1, 1, 1)):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0))
    with fake_task(tmp_path, (1, 1)), pytest.raises(DataError, match="an epoch had 2 batches and now has 1"):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0), resume=True)


def test_full_disk_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, epochs=3, evaluate_every=0)
    original, calls = checkpoint._write_state, []

    def full(state: dict[str, Any], path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, path)

    with fake_task(tmp_path):
        monkeypatch.setattr(checkpoint, "_write_state", full)
        with pytest.raises(RunError, match=r"disk is full; the previous checkpoint is intact.*--resume") as caught:
            train(recipe)
        assert caught.value.exit_code == 1
        assert last_state(tmp_path / "run")["position"]["step"] == 4
        train(recipe, resume=True)
    assert last_state(tmp_path / "run")["position"]["step"] == 12


def test_seeds_give_mean_and_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1, 0.2, 0.6)):
        result = train(make_recipe(tmp_path, seeds=[0, 1, 5], evaluate_every=6))
    folder = tmp_path / "run"
    assert result.folder == folder
    assert file_names(folder) == ["seed0", "seed1", "seed5", "seeds.json"]
    assert result.best == folder / "seed5" / "best" / "model.safetensors"
    assert result.metrics["mean"]["AP"] == pytest.approx(0.3)
    assert result.metrics["std"]["AP"] == pytest.approx(0.2645751)  # n - 1
    assert result.metrics["seeds"]["1"]["AP"] == 0.2
    assert json.loads((folder / "seeds.json").read_text(encoding="utf-8")) == result.metrics
    assert "0.300 ± 0.265" in capsys.readouterr().out
    weights = [last_state(folder / f"seed{seed}")["model"]["bbox_embed.weight"] for seed in (0, 1, 5)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert load_recipe(folder / "seed5").training.seed == 5
    assert load_recipe(folder / "seed5").training.seeds is None


def test_one_seed_of_several_equals_that_seed_alone(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1)):
        train(make_recipe(tmp_path, seeds=[2, 3], epochs=2))
        train(make_recipe(tmp_path, seed=3, epochs=2, output=str(tmp_path / "alone")))
    together, alone = (last_state(tmp_path / name)["model"] for name in ("run/seed3", "alone"))
    assert all(torch.equal(together[key], alone[key]) for key in alone)


def test_seeds_resume(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1, 0.2)):
        first = train(make_recipe(tmp_path, seeds=[0, 1], evaluate_every=6))
    with fake_task(tmp_path, evaluate=scores(0.9)):
        assert train(make_recipe(tmp_path, seeds=[0, 1], evaluate_every=6), resume=True).metrics == first.metrics


def test_undefined_metrics_stay_undefined_over_seeds() -> None:
    mean, std = run._mean_std([{"AP": 0.5, "APl": None}, {"AP": 0.7, "APl": 0.2}])
    assert mean == {"AP": pytest.approx(0.6), "APl": None}
    assert std == {"AP": pytest.approx(0.1414213), "APl": None}


def test_defaults_follow_the_data() -> None:
    def resolved(batches: int, **overrides: Any) -> Recipe:
        return resolve(load_recipe({}, overrides), batches_per_epoch=batches, folder=Path("out"))

    small = resolved(10)
    assert small.training.epochs == 300  # 3000 steps
    assert small.training.evaluate_every == 10  # 100 steps
    assert small.schedule.drop == [240]
    assert small.training.output == "out"
    large = resolved(1000)
    assert (large.training.epochs, large.training.evaluate_every, large.schedule.drop) == (50, 1, [40])
    assert resolved(10, accumulate=5).training.epochs == 1500
    assert resolved(10, epochs=7, evaluate_every=2).training.epochs == 7
    by_steps = resolved(10, iterations=250)
    assert (by_steps.training.epochs, by_steps.training.iterations, by_steps.schedule.drop) == (None, 250, [20])
    again = resolve(small, batches_per_epoch=10, folder=Path("out"))
    assert again.flat() == small.flat()


def test_batches_are_padded_to_the_size_divisor(tmp_path: Path) -> None:
    recipe, task = make_recipe(tmp_path), make_task(tmp_path, (1, 2, 1))
    for divisor, side in ((1, 32), (24, 48)):
        task.model.config = task.model.config.replace(size_divisor=divisor)
        trainer = Trainer(
            recipe=recipe,
            task=task,
            sampler=AspectRatioBatchSampler(length=3, batch_size=2),
            accelerator=Accelerator(cpu=True),
            folder=tmp_path,
            callbacks=[],
        )
        batch = next(iter(trainer.loader))
        assert batch.images.shape[2:] == (side, side)
        assert int((~batch.padding_mask).sum()) == len(batch) * 32 * 32


def test_a_run_of_version_0_1_is_resumed_with_its_best(tmp_path: Path) -> None:
    """Its state has the value of the deciding metric: {"AP", "epoch", "metrics"}."""
    settings = {"schedule": {"kind": "step", "drop": [5]}, "evaluate_every": 1}
    with fake_task(tmp_path, evaluate=scores(0.3, 0.1)):
        first = train(make_recipe(tmp_path, epochs=2, **settings))
        state = last_state(tmp_path / "run")
        state["best"] = {"AP": 0.3, "epoch": 1, "metrics": first.metrics}
        torch.save(state, tmp_path / "run" / "last" / "state.pt")
    with fake_task(tmp_path, evaluate=scores(0.2)):
        result = train(make_recipe(tmp_path, epochs=4, **settings), resume=True)
    assert (result.metrics, result.headline[0]) == (first.metrics, "AP")
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["best"] for row in rows if row["event"] == "eval"] == [True, False, False, False]
    assert rows[-1]["best"] == 0.3


def test_iterations_end_within_an_epoch(tmp_path: Path) -> None:
    with fake_task(tmp_path, evaluate=scores(0.1)):
        train(make_recipe(tmp_path, iterations=6, epochs=None, evaluate_every=1))
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows if row["event"] == "eval"] == [4, 6]
    assert last_state(tmp_path / "run")["position"]["step"] == 6


def test_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    """Four batches per epoch, three per step: two steps, the second with the remaining batch."""
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, accumulate=3, epochs=2, evaluate_every=0))
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 1), (1, 2), (2, 3), (2, 4)]


def test_default_folder_names() -> None:
    assert run_folder(load_recipe({"data": {"root": "data/x"}})) == Path("runs/dape_lite0-x")
    assert run_folder(load_recipe("dela_detr_lite0", {"data.root": "/a/b"})) == Path("runs/dela_detr_lite0-b")
    assert run_folder(load_recipe({}, {"output": "here"})) == Path("here")


def test_short_schedules_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0))
    assert "warning: 4 optimizer steps are too short for a detection transformer" in capsys.readouterr().err


def test_more_objects_than_queries_warns_once_and_trains(tmp_path: Path) -> None:
    with fake_task(tmp_path, (3, 4, 1, 5), num_queries=2), pytest.warns(UserWarning, match="only 2 queries") as caught:
        train(make_recipe(tmp_path, epochs=3, evaluate_every=0))
    assert len([warning for warning in caught if "queries" in str(warning.message)]) == 1
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if row["event"] == "train"]
    assert len(rows) == 6
    assert all(row["loss"] > 0 for row in rows)


def test_devices_and_precisions_that_are_not_available(tmp_path: Path) -> None:
    with fake_task(tmp_path):
        if not torch.cuda.is_available():
            with pytest.raises(RecipeError, match=r"training\.device = cuda:1: device 'cuda:1' is not there"):
                train(make_recipe(tmp_path, device="cuda:1"))
        with pytest.raises(RecipeError, match=r"training\.precision = fp16: .*bf16"):
            train(make_recipe(tmp_path, precision="fp16"))
    assert not (tmp_path / "run").exists()


def test_a_launcher_that_starts_only_one_process_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``accelerate launch --cpu --num_processes 2`` sets just these variables."""
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with fake_task(tmp_path):
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0))
        assert "torchrun --nproc_per_node N -m detrkit train" in capsys.readouterr().err
        monkeypatch.delenv("MASTER_ADDR")
        train(make_recipe(tmp_path, epochs=1, evaluate_every=0), overwrite=True)
    assert "torchrun" not in capsys.readouterr().err


def test_log_file_survives_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "tr', encoding="utf-8")
    log = JsonLines(path)
    log.log({"event": "resume", "step": 1})
    log.log({"event": "train", "step": 2, "loss": float("nan")})
    log.close()
    assert [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        "train",
        "resume",
        "train",
    ]
    assert read_log(path)[-1]["loss"] is None


def test_log_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"event": "train", "step": step} for step in (1, 2, 3)] + [{"event": "resume", "step": 2}]
    rows += [{"event": "train", "step": step} for step in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["step"] for row in read_log(path) if row["event"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_logger_packages_are_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with fake_task(tmp_path), pytest.raises(RunError, match=f"needs the package {name}: pip install {name}"):
        train(make_recipe(tmp_path, **{f"logging.{name}": True}))
    assert not (tmp_path / "run" / "last").exists()


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with fake_task(tmp_path, evaluate=scores(0.25)):
        train(make_recipe(tmp_path, epochs=2, **{"logging.tensorboard": True}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    assert events.Scalars("eval/AP")[0].value == 0.25


def test_wandb_gets_the_numbers_and_keeps_its_id(tmp_path: Path) -> None:
    wandb = mock.MagicMock()
    recipe = make_recipe(tmp_path, **{"logging.wandb": True})
    with mock.patch.dict(sys.modules, {"wandb": wandb}):
        for _ in range(2):
            loggers = build_loggers(tmp_path, recipe)
            loggers[1].log({"event": "train", "step": 3, "time": 1.0, "loss": 2.0})
            loggers[1].log({"event": "start", "step": 0, "images": 5})
            for logger in loggers:
                logger.close()
    ids = [call.kwargs["id"] for call in wandb.init.call_args_list]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert ids[0]
    assert wandb.init.return_value.log.call_args_list == [mock.call({"train/loss": 2.0}, step=3)] * 2
