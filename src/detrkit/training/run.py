"""``train``: from a recipe to a finished run folder, for one seed or several."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from rich.table import Table

from detrkit.backends import missing_for_compiling
from detrkit.config import Recipe, load_recipe
from detrkit.console import Console
from detrkit.data.once import read_once
from detrkit.devices import resolve_device
from detrkit.errors import DetrkitError, RecipeError
from detrkit.files import write_json
from detrkit.terminal import say
from detrkit.training.batch_fit import fit_batch
from detrkit.training.callbacks import Callback
from detrkit.training.clock import RunClock
from detrkit.training.fingerprint import fingerprint
from detrkit.training.folder import locked, open_folder, run_folder, start_folder
from detrkit.training.frozen_parts import trainable_words
from detrkit.training.interrupt import Interrupt
from detrkit.training.memory import freed_memory_kept
from detrkit.training.pictures import RunPictures
from detrkit.training.progress import format_metric
from detrkit.training.resume import as_begun, check_agreement, length_remark, validation_remark, without_start
from detrkit.training.rng import seed_everything
from detrkit.training.run_report import RunReport
from detrkit.training.table import MetricsTable
from detrkit.training.task import build_task, epoch_sampler, require_backbone, resolve
from detrkit.training.trainer import Trainer
from detrkit.training.watch import Watch

__all__ = ["RunResult", "train"]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: folder of the run; with several seeds, the folder of ``seed0``, ``seed1``, ….
        best: path of the best weights; with several seeds, of the best seed.
        metrics: their metrics; with several seeds ``{"mean": {…}, "std": {…}, "seeds": {"0": {…}, …}}``.
        headline: names of the metrics for a summary; the first one decides which weights are best.
    """

    folder: Path
    best: Path
    metrics: dict[str, Any]
    headline: tuple[str, ...] = ()


@read_once()
def train(
    recipe: str | Path | Mapping[str, object] | Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    **overrides: object,
) -> RunResult:
    """Train a model.

    Args:
        recipe: a YAML file, a recipe's name, a run folder, or a mapping of sections.
        resume: continue the run in the output folder exactly where it stopped; start a new one where there is none.
        overwrite: delete the run in the output folder.
        callbacks: what else happens during the run (:class:`detrkit.training.Callback`), after the loggers.
        overrides: recipe keys, without the section where only one section has the key (``epochs=3``), else as
            ``**{"training.epochs": 3}``; a mapping gives several keys of a section (``model={"num_queries": 50}``).

    Raises:
        RecipeError: unknown recipe, key, or value; an output folder that holds another run.
        DataError: images or annotations cannot be used.
        CheckpointError: weights to start from cannot be used.
        RunError: loss not finite, or disk full.
        Interrupted: Ctrl-C (a KeyboardInterrupt); a resumable checkpoint is written.
        TypeError: a callback is no object of :class:`detrkit.training.Callback`.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks are objects of detrkit.training.Callback, as Backup() is; got {callback!r}")
    loaded = load_recipe(recipe, overrides)
    if loaded.training.seeds is not None:
        return _train_seeds(loaded, loaded.training.seeds, resume=resume, overwrite=overwrite, callbacks=callbacks)
    return _train_one(loaded, resume=resume, overwrite=overwrite, callbacks=callbacks)


def accelerator_of(recipe: Recipe) -> Accelerator:
    """Device, precision and processes of a recipe.

    Raises:
        RecipeError: the machine does not have them.
    """
    section = recipe.training
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        # accelerate keeps device and precision until the process ends; another run may need different ones
        AcceleratorState._reset_state(reset_partial_state=True)
    cuda = torch.cuda.is_available()
    if section.device != "auto":
        try:
            chosen = resolve_device(section.device)
        except DetrkitError as error:
            raise RecipeError(f"training.device = {section.device}: {error}") from error
        if chosen.index is not None:
            torch.cuda.set_device(chosen)
    precision = "no" if section.precision == "fp32" else section.precision
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print(
            "warning: accelerate launch was asked for several processes, but without GPUs it starts one; add "
            "--multi_gpu (it works on CPUs too), or use torchrun --nproc_per_node N -m detrkit train …",
            file=sys.stderr,
        )
    # without cpu=True, accelerate treats each of several CPU processes as a run of its own
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=section.device == "cpu" or (several and not cuda))
    except ValueError as error:
        raise RecipeError(f"training.precision = {section.precision}: {error}") from error
    if section.device != "auto" and accelerator.device.type != section.device.split(":")[0]:
        raise RecipeError(f"training.device = {section.device}: this run would use {accelerator.device.type}")
    if section.precision == "fp16" and accelerator.device.type != "cuda":
        raise RecipeError("training.precision = fp16: needs a CUDA device; bf16 or fp32 run anywhere")
    if section.compile and (missing := missing_for_compiling(accelerator.device.type)):
        raise RecipeError(f"training.compile = true is impossible here: {missing}")
    return accelerator


@contextlib.contextmanager
def _locked_by_first(folder: Path) -> Iterator[None]:
    """The lock of a folder, which the first process holds before any looks into the folder."""
    with locked(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        yield


def _train_one(recipe: Recipe, *, resume: bool, overwrite: bool, callbacks: Sequence[Callback] = ()) -> RunResult:
    folder, began = run_folder(recipe), time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stack.enter_context(Interrupt()).immediate())  # until the trainer has something to save
        stack.enter_context(_locked_by_first(folder))
        state = open_folder(folder, resume=resume, overwrite=overwrite)
        if state is None:
            require_backbone(recipe)
        accelerator = accelerator_of(recipe)
        stack.enter_context(freed_memory_kept(accelerator.device))
        seed_everything(recipe.training.seed)  # the same initial weights on every process
        if state is not None:
            recipe = as_begun(recipe, state)
        task = build_task(recipe if state is None else without_start(recipe))
        if recipe.training.auto_batch:
            recipe = fit_batch(recipe, task, accelerator)
        sampler = epoch_sampler(recipe, task.train_data, accelerator)
        batches = len(sampler)
        recipe = resolve(recipe, batches_per_epoch=batches, folder=folder)
        data = fingerprint(task.train_data)
        validation = None if task.validation is None else fingerprint(task.validation.data)
        if state is not None:
            check_agreement(recipe, state, folder, processes=accelerator.num_processes, batches=batches, data=data)
            if validation is None:  # evaluation is off for now
                validation = state.get("validation")
            elif remark := validation_remark(state, validation, folder):
                say(remark)
            if remark := length_remark(recipe, state, batches=batches):
                say(remark)
        accelerator.wait_for_everyone()  # all processes have read the folder before one writes to it
        watching: list[Callback] = []
        if accelerator.is_main_process:
            loggers = start_folder(folder, recipe, resumed=state is not None)
            for logger in loggers:
                stack.callback(logger.close)
            watching = [
                *loggers,
                MetricsTable(),
                Watch(),
                *([RunPictures(), RunReport()] if recipe.logging.plots else []),
                *callbacks,
            ]
        trainer = Trainer(
            recipe=recipe,
            task=task,
            sampler=sampler,
            accelerator=accelerator,
            folder=folder,
            callbacks=watching,
            data=data,
            validation=validation,
            state=state,
            clock=None if recipe.training.minutes is None else RunClock(recipe.training.minutes, began=began),
        )
        del state
        if accelerator.is_main_process:
            _announce(trainer, folder)
        best = trainer.fit()
    weights = folder / "best" / "model.safetensors"
    if not weights.exists():
        weights = folder / "last" / "model.safetensors"  # never evaluated
    return RunResult(folder, weights, dict(best.metrics), best.headline)


def _announce(trainer: Trainer, folder: Path) -> None:
    data, validation, model = trainer.task.train_data, trainer.task.validation, trainer.model
    notes = {"training": data.load_errors, "validation": [] if validation is None else validation.data.load_errors}
    trainer.log(
        "resume" if trainer.step else "start",
        total_steps=trainer.total_steps,
        images=len(data),
        left_out=len(notes["training"]),
        left_out_val=len(notes["validation"]),
    )
    console = Console(stderr=True)
    for part, lines in notes.items():
        if lines:
            text = f"{len(lines)} boxes or images left out of the {part} data, the first: {lines[0]}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    minutes = trainer.recipe.training.minutes
    length = f"{trainer.total_steps} optimizer steps" if minutes is None else f"{minutes:g} minutes"
    trained = trainable_words(model, sum(parameter.numel() for parameter in trainer.parameters), trainer.recipe)
    images = len({record.image_id for record in data.records})
    times = f" {len(data) // images} times per epoch" if len(data) > images else ""
    if data.chances is not None:
        times = f" ({math.ceil(data.chances.sum())} per epoch, those of rare classes several times)"
    console.print(
        f"{getattr(model, 'name', 'model')}: {trained}, {images} images{times}, {length} -> {folder}",
        highlight=False,
        soft_wrap=True,
    )
    if validation is None and trainer.recipe.training.patience is not None:
        console.print("training.patience has no effect: this run is never evaluated", highlight=False)
    if trainer.step:
        console.print(f"continuing after step {trainer.step}", highlight=False)


# ---------------------------------------------------------------------------------------------------- several seeds


class _Seeds(TypedDict):
    mean: dict[str, float | None]
    std: dict[str, float | None]
    seeds: dict[str, dict[str, float | None]]


def _train_seeds(
    recipe: Recipe, seeds: Sequence[int], *, resume: bool, overwrite: bool, callbacks: Sequence[Callback] = ()
) -> RunResult:
    folder = run_folder(recipe)
    results: dict[int, RunResult] = {}
    with _locked_by_first(folder):
        for seed in seeds:
            training = {"seed": seed, "seeds": None, "output": str(folder / f"seed{seed}")}
            one = recipe.updated(training=training)
            results[seed] = _train_one(one, resume=resume, overwrite=overwrite, callbacks=callbacks)
        mean, std = _mean_std([result.metrics for result in results.values()])
        metrics: _Seeds = {"mean": mean, "std": std, "seeds": {str(seed): one.metrics for seed, one in results.items()}}
        if PartialState().is_main_process:
            write_json(folder / "seeds.json", metrics, force=True)
            _print_seeds(metrics)
    best = max(results.values(), key=_quality)
    return RunResult(folder, best.best, dict(metrics), best.headline)


def _quality(result: RunResult) -> float:
    """The value by which the best seed is chosen."""
    value: float | None = result.metrics.get(result.headline[0]) if result.headline else None
    return value or -math.inf


def _mean_std(rows: list[dict[str, float | None]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) of each metric; None where it is undefined in one run."""
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        numbers = [value for value in values if value is not None]
        defined = len(numbers) == len(values)
        mean[name] = statistics.fmean(numbers) if defined else None
        std[name] = (statistics.stdev(numbers) if len(numbers) > 1 else 0.0) if defined else None
    return mean, std


def _print_seeds(metrics: _Seeds) -> None:
    table = Table(title="mean ± standard deviation over seeds")
    table.add_column("seed")
    names = list(metrics["mean"])[:6]
    for name in names:
        table.add_column(name, justify="right")
    for seed, row in metrics["seeds"].items():
        table.add_row(seed, *(format_metric(row.get(name)) for name in names))
    table.add_section()
    table.add_row(
        "all", *(f"{format_metric(metrics['mean'][name])} ± {format_metric(metrics['std'][name])}" for name in names)
    )
    Console().print(table)
