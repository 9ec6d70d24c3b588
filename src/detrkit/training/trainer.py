"""The training loop, to be read from top to bottom: what happens to a batch, and when a run is evaluated and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from detrkit import weights
from detrkit.config import Recipe
from detrkit.data import build_loader
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.errors import DataError, RunError
from detrkit.evaluation.loop import evaluate_model
from detrkit.losses import Normalisers
from detrkit.structures import Batch
from detrkit.training import checkpoint
from detrkit.training.best import Best
from detrkit.training.checkpoint import RunState
from detrkit.training.ema import EMA
from detrkit.training.fingerprint import Fingerprint, fingerprint
from detrkit.training.interrupt import Interrupt, Interrupted
from detrkit.training.loggers import Logger
from detrkit.training.meters import Meter
from detrkit.training.optimizer import build_optimizer, frozen_norms, parameter_groups, set_learning_rate
from detrkit.training.progress import TrainingProgress
from detrkit.training.resume import kept_best
from detrkit.training.rng import preserved_rng, restore_rng, rng_state, seed_everything
from detrkit.training.schedule import build_schedule, length_in_steps
from detrkit.training.task import Task, Validation

__all__ = ["Trainer"]

MAX_SKIPPED = 3  # consecutive optimizer steps that may be skipped because loss or gradient is not finite


class Trainer:
    """One run of a resolved recipe.

    Args:
        recipe: resolved recipe (``detrkit.training.task.resolve``).
        task: model, criterion, data sets.
        sampler: batches of this process per epoch.
        accelerator: device, precision and processes.
        folder: folder of the checkpoints.
        loggers: loggers of the main process; empty on other processes.
        data: fingerprint of the training data, to be stored with every state.
        validation: fingerprint of the validation data, likewise.
        state: result of :func:`detrkit.training.checkpoint.load_state`, to resume a run exactly.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        task: Task,
        sampler: AspectRatioBatchSampler,
        accelerator: Accelerator,
        folder: Path,
        loggers: list[Logger],
        data: Fingerprint | None = None,
        validation: Fingerprint | None = None,
        state: RunState | None = None,
    ) -> None:
        self.recipe, self.task, self.sampler = recipe, task, sampler
        self.accelerator, self.folder, self.loggers = accelerator, folder, loggers
        self.data = fingerprint(task.train_data) if data is None else data
        self.validation = validation
        section = recipe.training
        self.accumulate = section.accumulate
        self.batches = len(sampler)  # per epoch and process
        self.loader = build_loader(
            task.train_data, sampler, workers=section.workers, size_divisor=task.model.config.input.size_divisor
        )
        steps_per_epoch = math.ceil(self.batches / self.accumulate)
        self.total_steps = length_in_steps(section, batches=self.batches)
        self.schedule = build_schedule(recipe.schedule, steps_per_epoch=steps_per_epoch, total_steps=self.total_steps)

        # a third faster on CPUs; on other devices the default layout is as fast in float32
        self.layout = torch.channels_last if accelerator.device.type == "cpu" else torch.contiguous_format
        self.model = task.model.to(accelerator.device).to(memory_format=self.layout)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            # statistics over the whole batch, not over the one or two images of a process (Salience-DETR's neck)
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.ema = EMA(self.model, section.ema) if section.ema else None
        total_batch = section.batch_size * section.accumulate * accelerator.num_processes
        groups = parameter_groups(self.model, recipe.optimizer, total_batch=total_batch)
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.frozen_norms = frozen_norms(self.model, recipe.optimizer)
        self.wrapped = accelerator.prepare_model(self.model)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(groups, recipe.optimizer))

        self.epoch = self.batch = self.step = 0  # batch: number of batches used in this epoch
        self.skipped = 0  # consecutive steps without an update
        self.evaluated_step = -1
        self.unreadable = 0  # number of damaged training images reported so far
        self.best = Best()
        self.meter = Meter(accelerator)
        seed_everything(1000 * section.seed + accelerator.process_index + 1)
        if state is not None:
            self.load_state(state)

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> Best:
        """Train to the end; returns the best evaluation.

        Raises:
            RunError: the loss is not finite several times in a row, or a checkpoint cannot be written.
            Interrupted: Ctrl-C; ``last/`` is written.
        """
        every = self.recipe.training.evaluate_every or 0
        self.progress = TrainingProgress(
            self.total_steps,
            done=self.step,
            best=self.best,
            enabled=self.accelerator.is_main_process,
            name=self.folder.name,
        )
        finishing = "finishing step {}, then saving; a second Ctrl-C stops at once"
        answer = (lambda: finishing.format(self.step + 1)) if self.accelerator.is_main_process else None
        with Interrupt(answer) as self.interrupt, self.progress:
            while True:
                if not self.finished and self.batch < self.batches:
                    self.train_epoch()
                finished = self.finished
                due = every > 0 and (finished or (self.epoch + 1) % every == 0)
                if due and self.task.validation is not None and self.evaluated_step != self.step:
                    self.save()  # nothing is lost if the evaluation is interrupted
                    with self.interrupt.immediate():
                        self.evaluate(self.task.validation)
                if self.batch >= self.batches:
                    self.epoch, self.batch = self.epoch + 1, 0
                self.save()
                if self.finished:
                    if self.out_of_patience:
                        self.progress.print(
                            f"stopped after step {self.step} of {self.total_steps}: the last {self.best.stale} "
                            "evaluations were not better (training.patience)"
                        )
                    return self.best

    @property
    def finished(self) -> bool:
        """Whether no step is left to do."""
        return self.step >= self.total_steps or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        """Whether so many evaluations in a row as ``training.patience`` allows have not been better."""
        return self.best.stale >= (self.recipe.training.patience or math.inf)

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        self.wrapped.train()
        for norm in self.frozen_norms:
            norm.eval()
        for group in self.micro_batches():
            self.train_step(group)
            checkpoint_every = self.recipe.training.checkpoint_every
            if checkpoint_every and self.step % checkpoint_every == 0:
                self.save()
            if self.step >= self.total_steps:
                break
        skipped = self.task.train_data.skipped_images  # only with data.on_error = skip
        if len(skipped) > self.unreadable:
            self.progress.print(f"{len(skipped)} training images cannot be read and are skipped: {', '.join(skipped)}")
            self.log("data", skipped_images=skipped)
            self.unreadable = len(skipped)

    def micro_batches(self) -> Iterator[list[Batch]]:
        """This epoch's batches from the current position on, ``accumulate`` at a time."""
        self.task.train_data.set_epoch(self.recipe.training.seed, self.epoch)
        self.sampler.set_epoch(self.epoch, start_batch=self.batch)
        with preserved_rng():
            batches = iter(self.loader)
        try:
            while group := list(islice(batches, self.accumulate)):
                yield group
        except DataError as error:
            if self.accelerator.num_processes > 1:  # other processes would wait for this one to save
                raise
            self.save()
            raise DataError(f"{error}. Step {self.step} is saved: mend it, then continue with --resume") from error

    def train_step(self, group: list[Batch]) -> None:
        """One optimizer step on one or several micro-batches."""
        rates = set_learning_rate(self.optimizer, self.schedule(self.step))
        loss, norm, finite = self.forward_backward([batch.to(self.accelerator.device) for batch in group])
        if finite:
            self.optimizer.step()
            if self.ema is not None and not self.accelerator.optimizer_step_was_skipped:
                self.ema.update(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.batch += len(group)
        self.step += 1
        self.progress.step(self.step, self.epoch + 1, loss)
        if finite:
            self.skipped = 0
            if self.step % self.recipe.logging.every == 0 or self.step == self.total_steps:
                row = self.meter.row() | {"lr": rates.get("default", max(rates.values())), "grad_norm": norm}
                row |= {f"lr_{name}": rate for name, rate in rates.items() if name != "default"}
                self.log("train", **row)
                self.progress.line(self.step, self.current_epoch, row)
        else:
            self.skip(group)
        if self.stop:
            self.save()
            raise Interrupted(
                self.interrupt.signum or 2, f"stopped after step {self.step}; --resume continues from there"
            )

    def forward_backward(self, group: list[Batch]) -> tuple[float, float, bool]:
        """Gradients of the mean loss over the micro-batches of all processes: (loss, gradient norm, both finite?).

        The losses' normalisers count the objects of the whole accumulated batch on all processes, so that the
        split of a batch does not matter; DDP averages gradients, hence the division by the number of processes.
        """
        criterion, world = self.task.criterion, self.accelerator.num_processes
        targets = [criterion.prepare(batch.targets) for batch in group]
        counts = sum((criterion.count(target) for target in targets), start=Normalisers())
        if world > 1:
            everywhere = self.accelerator.reduce(counts.tensor().to(self.accelerator.device), reduction="sum")
            counts = Normalisers.from_tensor(everywhere) / world
        total = torch.zeros((), device=self.accelerator.device)
        for index, (batch, target) in enumerate(zip(group, targets, strict=True)):
            last = index == len(group) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                images = batch.images.contiguous(memory_format=self.layout)
                predictions = self.wrapped(images, batch.padding_mask, batch.targets)
                losses = criterion(predictions, target, counts=counts)
                anchored = losses.total if world == 1 else losses.total + criterion.anchor(predictions)
                self.accelerator.backward(anchored)
            total += losses.total.detach()
            self.meter.add(losses.terms, share=1 / len(group))
        self.meter.step(total, images=sum(len(batch) for batch in group))

        # one exchange per step: all processes must take the same decision
        flags = torch.stack([total, (~torch.isfinite(total)).float(), total.new_tensor(self.interrupt.requested)])
        loss, infinite, stop = self.accelerator.reduce(flags, reduction="sum").tolist()
        self.stop = stop > 0
        if infinite:
            return loss / world, math.nan, False
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.recipe.training.clip_norm or math.inf))
        # overflows are normal in fp16: the gradient scaler skips the step and lowers its scale
        return loss / world, norm, math.isfinite(norm) or self.recipe.training.precision == "fp16"

    def skip(self, group: list[Batch]) -> None:
        """Count a step with a loss or gradient that is not finite.

        Raises:
            RunError: too many such steps in a row.
        """
        self.skipped += 1
        row = self.meter.row()
        terms = {key: value for key, value in row.items() if key.startswith("loss")}
        images = sorted(gather_object([int(target.image_id) for batch in group for target in batch.targets]))
        self.log("skip", **terms, images=images)
        text = (
            f"step {self.step}: loss or gradient is not finite ("
            + ", ".join(f"{key} {value:.4g}" for key, value in terms.items() if "_" not in key[5:])
            + f"), images {', '.join(map(str, images))}"
        )
        if self.skipped >= MAX_SKIPPED:
            raise RunError(
                f"{text}; {self.skipped} steps in a row, giving up. Try a lower optimizer.lr, a longer schedule.warmup "
                "or training.precision=fp32; last/ holds the checkpoint before"
            )
        self.progress.print(f"{text}; step skipped")

    # ------------------------------------------------------------------------------------ evaluation, log, state

    def evaluate(self, validation: Validation) -> None:
        """Evaluate on the validation data, with the averaged weights when EMA is on; save the best weights so far."""
        start = time.monotonic()
        section = self.recipe.training
        model = self.model if self.ema is None else self.ema.module
        # without masked padding, other images in a batch change a prediction slightly: use batches of one
        batch_size = section.batch_size if self.task.model.config.architecture.mask_backbone_padding else 1
        with preserved_rng():
            score = evaluate_model(
                model,
                validation.data,
                metric=validation.metric,
                batch_size=batch_size,
                workers=section.workers,
                device=self.accelerator.device,
                progress=self.progress.evaluating,
                precision=section.precision,
                accelerator=self.accelerator,
            )
        self.evaluated_step = self.step
        better = self.best.beaten_by(score)
        self.best = replace(self.best, stale=self.best.stale + 1)
        if better:
            self.best = Best(epoch=self.epoch + 1, metrics=dict(score.metrics), headline=score.headline)
            if self.accelerator.is_main_process:
                checkpoint.save_best(self.folder, self.save_model)
        column = validation.metric.class_columns[0]
        per_class = {name: numbers.get(column) for name, numbers in score.per_class.items()}
        seconds = time.monotonic() - start
        self.meter.pause(seconds)
        self.log("eval", **score.metrics, per_class=per_class, best=better, seconds=round(seconds, 2))
        self.progress.evaluated(self.epoch + 1, score, self.best)

    @property
    def current_epoch(self) -> int:
        """The current epoch, counted from 1; between two epochs, the completed one."""
        return self.epoch + (self.batch > 0 or self.step == 0)

    def log(self, event: str, **numbers: object) -> None:
        """Send a row to every logger."""
        row = {"event": event, "epoch": self.current_epoch, "step": self.step, "time": round(time.time(), 2), **numbers}
        for logger in self.loggers:
            logger.log(row)

    def save_model(self, path: Path) -> None:
        """Write the evaluated weights (the average when EMA is on) with the recipe."""
        weights.save(self.model if self.ema is None else self.ema.module, path, recipe=self.recipe.to_dict())

    def save(self) -> None:
        """Write ``last/``. All processes call this, because each has its own random states."""
        states = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            checkpoint.save_last(self.folder, self.state(states), self.save_model)
        self.accelerator.wait_for_everyone()

    def state(self, rng: list[dict[str, object]]) -> RunState:
        """The state from which a resumed run equals, bit for bit on the same machine, an uninterrupted one."""
        scaler = self.accelerator.scaler
        state: RunState = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": rng,
            "position": {name: getattr(self, name) for name in _POSITION},
            "best": self.best.state(),
            "processes": self.accelerator.num_processes,
            "batches": self.batches,
            "recipe": self.recipe.to_dict(),
            "data": self.data,
        }
        if self.validation is not None:
            state["validation"] = self.validation
        return state

    def load_state(self, state: RunState) -> None:
        """Restore :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, value in state["position"].items():
            setattr(self, name, value)
        self.best = kept_best(state, self.folder)
        restore_rng(state["rng"][self.accelerator.process_index])


_POSITION = ("epoch", "batch", "step", "skipped", "evaluated_step")
