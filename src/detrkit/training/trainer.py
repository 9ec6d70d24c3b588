"""The training loop, to be read from top to bottom: what happens to a batch, and when a run is evaluated and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from detrkit import weights
from detrkit.config import Recipe
from detrkit.data import build_loader
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.errors import DataError
from detrkit.losses import Normalisers
from detrkit.models import Detector
from detrkit.structures import Batch
from detrkit.training import checkpoint
from detrkit.training.best import Best
from detrkit.training.callbacks import Callback, Evaluation, Step
from detrkit.training.checkpoint import RunState
from detrkit.training.chosen_thresholds import choose_thresholds, scored_answers
from detrkit.training.clock import RunClock
from detrkit.training.cost import plan_run
from detrkit.training.ema import EMA
from detrkit.training.fingerprint import Fingerprint, fingerprint
from detrkit.training.interrupt import Interrupt, Interrupted
from detrkit.training.memory import memory_in_use
from detrkit.training.meters import Meter, contents
from detrkit.training.optimizer import build_optimizer, frozen_norms, parameter_groups, set_learning_rate
from detrkit.training.progress import TrainingProgress
from detrkit.training.rng import preserved_rng, rng_state, seed_everything
from detrkit.training.schedule import build_schedule, length_in_steps
from detrkit.training.skip import skip_step
from detrkit.training.state import restore_run, run_state
from detrkit.training.task import Task, Validation
from detrkit.training.validate import validate

__all__ = ["Trainer"]


class Trainer:
    """One run of a resolved recipe.

    Args:
        recipe: resolved recipe (``detrkit.training.task.resolve``).
        task: model, criterion, data sets.
        sampler: batches of this process per epoch.
        accelerator: device, precision and processes.
        folder: folder of the checkpoints.
        callbacks: loggers and other callbacks; only those of the main process are called.
        data: fingerprint of the training data, to be stored with every state.
        validation: fingerprint of the validation data, likewise.
        state: result of :func:`detrkit.training.checkpoint.load_state`, to resume a run exactly.
        clock: plans the number of steps of a run of so many minutes; None: the recipe says how many.
        quiet: print nothing.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        task: Task,
        sampler: AspectRatioBatchSampler,
        accelerator: Accelerator,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        data: Fingerprint | None = None,
        validation: Fingerprint | None = None,
        state: RunState | None = None,
        clock: RunClock | None = None,
        quiet: bool = False,
    ) -> None:
        self.recipe, self.task, self.sampler, self.quiet = recipe, task, sampler, quiet
        self.accelerator, self.folder = accelerator, folder
        self.callbacks = list(callbacks) if accelerator.is_main_process else []
        self.data = fingerprint(task.train_data) if data is None else data
        self.validation = validation
        section = recipe.training
        self.accumulate = section.accumulate
        self.batches = len(sampler)  # per epoch and process
        self.loader = build_loader(
            task.train_data, sampler, workers=section.workers, size_divisor=task.model.config.input.size_divisor
        )
        self.steps_per_epoch = per_epoch = math.ceil(self.batches / self.accumulate)
        self.total_steps = length_in_steps(section, batches=self.batches)
        self.schedule = build_schedule(recipe.schedule, steps_per_epoch=per_epoch, total_steps=self.total_steps)
        self.clock = clock

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
        self.frozen_norms = frozen_norms(self.model)
        if section.compile:
            self.model.compile()  # after the copy for the average, which is only evaluated
        self.wrapped = accelerator.prepare_model(self.model)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(groups, recipe.optimizer))

        self.epoch = self.batch = self.step = 0  # batch: number of batches used in this epoch
        self.skipped = 0  # consecutive steps without an update
        self.evaluated_step = -1
        self.unreadable = 0  # number of damaged training images reported so far
        self.stop_reason, self.stopped = "", False  # what a callback asked for, and whether all processes know it
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
        self.progress = TrainingProgress(
            self.total_steps,
            done=self.step,
            best=self.best,
            enabled=self.accelerator.is_main_process and not self.quiet,
            name=self.folder.name,
        )
        finishing = "finishing step {}, then saving; a second Ctrl-C stops at once"
        answer = (lambda: finishing.format(self.step + 1)) if self.accelerator.is_main_process else None
        error: BaseException | None = None
        with Interrupt(answer) as self.interrupt, self.progress:
            self.notify("on_train_start")
            try:
                plan_run(self)
                self.train()
            except BaseException as caught:
                error = caught
                raise
            finally:
                self.notify("on_end", error)
        return self.best

    def follow_clock(self) -> None:
        """Take the number of steps that is planned now."""
        if self.clock is not None and self.clock.planned:
            self.total_steps = self.progress.total = self.clock.total

    def of_first(self, value: float) -> float:
        """A measured value of the first process, on all of them."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast_object_list([value])[0])

    def train(self) -> None:
        """Train, evaluate and save, epoch by epoch."""
        every = self.recipe.training.evaluate_every or 0
        while True:
            if not self.finished and self.batch < self.batches:
                self.train_epoch()
            due = every > 0 and (self.finished or (self.epoch + 1) % every == 0)
            if due and self.task.validation is not None and self.evaluated_step != self.step:
                self.save()  # nothing is lost if the evaluation is interrupted
                with self.interrupt.immediate():
                    self.evaluate(self.task.validation)
            if self.batch >= self.batches:
                self.epoch, self.batch = self.epoch + 1, 0
            self.save()
            if self.finished:
                if self.why_early:
                    self.progress.print(f"stopped after step {self.step} of {self.total_steps}: {self.why_early}")
                self.log("end", best=self.best.value)
                return

    @property
    def finished(self) -> bool:
        """Whether no step is left to do."""
        return self.step >= self.total_steps or self.out_of_patience or self.stopped

    @property
    def why_early(self) -> str:
        """Why the run ends before its last step; empty where it does not."""
        if self.out_of_patience:
            return f"the last {self.best.stale} evaluations were not better (training.patience)"
        return self.stop_reason if self.stopped else ""

    @property
    def out_of_patience(self) -> bool:
        """Whether so many evaluations in a row as ``training.patience`` allows have not been better."""
        return self.best.stale >= (self.recipe.training.patience or math.inf)

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        self.training_mode()
        for group in self.micro_batches():
            self.train_step(group)
            checkpoint_every = self.recipe.training.checkpoint_every
            if checkpoint_every and self.step % checkpoint_every == 0:
                self.save()
            if self.finished:
                break
        skipped = self.task.train_data.skipped_images  # only with data.on_error = skip
        if len(skipped) > self.unreadable:
            self.progress.print(f"{len(skipped)} training images cannot be read and are skipped: {', '.join(skipped)}")
            self.log("data", skipped_images=skipped)
            self.unreadable = len(skipped)

    def training_mode(self) -> None:
        """All modules train, but for norms that are frozen."""
        self.wrapped.train()
        for norm in self.frozen_norms:
            norm.eval()

    def groups(self) -> Iterator[list[Batch]]:
        """This epoch's batches from the current position on, ``accumulate`` at a time."""
        self.task.train_data.set_epoch(self.recipe.training.seed, self.epoch)
        self.sampler.set_epoch(self.epoch, start_batch=self.batch)
        with preserved_rng():
            batches = iter(self.loader)
        while group := list(islice(batches, self.accumulate)):
            yield group

    def micro_batches(self) -> Iterator[list[Batch]]:
        """:meth:`groups`; an image that cannot be read ends the run with everything saved."""
        try:
            yield from self.groups()
        except DataError as error:
            if self.accelerator.num_processes > 1:  # other processes would wait for this one to save
                raise
            self.save()
            raise DataError(f"{error}. Step {self.step} is saved: mend it, then continue with --resume") from error

    def train_step(self, group: list[Batch]) -> None:
        """One optimizer step on one or several micro-batches."""
        factor = self.schedule(self.step) if self.clock is None else self.clock.factor(self.schedule, self.step)
        rates = set_learning_rate(self.optimizer, factor)
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
                row["memory_gb"] = round(memory_in_use(self.accelerator.device) / 1e9, 3)
                self.log("train", **row)
                self.progress.line(self.step, self.current_epoch, row | contents(group))
        else:
            skip_step(self, group)
        self.notify("on_step", Step(number=self.step, loss=loss, batches=group))
        if self.interrupted:
            self.save()
            raise Interrupted(
                self.interrupt.signum or 2, f"stopped after step {self.step}; --resume continues from there"
            )

    def backward(self, group: list[Batch]) -> Tensor:
        """Gradients of the mean loss over the micro-batches of all processes; returns the loss of this process.

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
        return total

    def forward_backward(self, group: list[Batch]) -> tuple[float, float, bool]:
        """:meth:`backward` with clipped gradients: (loss of all processes, gradient norm, both finite?)."""
        total, world = self.backward(group), self.accelerator.num_processes
        # one exchange per step: all processes must take the same decision
        now = self.clock.seconds if self.clock is not None and self.accelerator.is_main_process else 0.0
        known = total.new_tensor([self.interrupt.requested, self.stop_reason != "", now])
        flags = torch.cat([torch.stack([total, (~torch.isfinite(total)).float()]), known])
        loss, infinite, interrupted, stopped, now = self.accelerator.reduce(flags, reduction="sum").tolist()
        self.interrupted, self.stopped = interrupted > 0, stopped > 0
        if self.clock is not None and self.clock.planned:
            self.clock.tick(self.step + 1, now)
            self.follow_clock()
        if infinite:
            return loss / world, math.nan, False
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.recipe.training.clip_norm or math.inf))
        # overflows are normal in fp16: the gradient scaler skips the step and lowers its scale
        return loss / world, norm, math.isfinite(norm) or self.recipe.training.precision == "fp16"

    # ------------------------------------------------------------------------------------ evaluation, log, state

    def evaluate(self, validation: Validation) -> None:
        """Evaluate on the validation data; save the weights if they are the best so far."""
        start = time.monotonic()
        score, answers = validate(self, validation)
        self.evaluated_step, objects = self.step, None
        if self.accelerator.is_main_process:  # which writes the weights
            model, objects = self.evaluated_model, scored_answers(validation.metric, answers)
            model.thresholds = choose_thresholds(model, validation.data, objects)
        better = self.best.beaten_by(score)
        self.best = replace(self.best, stale=self.best.stale + 1)
        if better:
            self.best = Best(epoch=self.epoch + 1, metrics=dict(score.metrics), headline=score.headline)
            if self.accelerator.is_main_process:
                checkpoint.save_best(self.folder, self.save_model)
        column = validation.metric.class_columns[0]
        per_class = {name: numbers.get(column) for name, numbers in score.per_class.items()}
        seconds = time.monotonic() - start
        self.log("eval", **score.metrics, per_class=per_class, best=better, seconds=round(seconds, 2))
        self.progress.evaluated(self.epoch + 1, score, self.best, validation.metric.class_columns)
        done = Evaluation(score=score, better=better, seconds=seconds, of=validation, answers=answers, objects=objects)
        self.notify("on_evaluate", done)
        seconds = time.monotonic() - start
        self.meter.pause(seconds)
        if self.clock is not None:
            self.clock.evaluated(self.of_first(seconds))

    @property
    def evaluated_model(self) -> Detector:
        """The model that is evaluated and kept: the average when EMA is on."""
        return self.model if self.ema is None else cast(Detector, self.ema.module)

    @property
    def evaluation_batch(self) -> int:
        """Images of a batch in evaluations; without masked padding, others in a batch change a prediction slightly."""
        return self.recipe.training.batch_size if self.model.config.architecture.mask_backbone_padding else 1

    @property
    def current_epoch(self) -> int:
        """The current epoch, counted from 1; between two epochs, the completed one."""
        return self.epoch + (self.batch > 0 or self.step == 0)

    def log(self, event: str, **numbers: object) -> None:
        """Send a row to every logger."""
        row = {"event": event, "epoch": self.current_epoch, "step": self.step, "time": round(time.time(), 2), **numbers}
        for callback in self.callbacks:
            callback.on_log(row)

    def notify(self, moment: str, *details: Any) -> None:
        """Call the callbacks that have something to do at this moment; what they draw at random changes nothing."""
        if called := [callback for callback in self.callbacks if callback.acts(moment)]:
            with preserved_rng():
                for callback in called:
                    getattr(callback, moment)(self, *details)

    def stop(self, reason: str) -> None:
        """End the run after this step, with an evaluation; of several processes, after the next one.

        Resuming goes on from there.
        """
        self.stop_reason, self.stopped = reason, self.accelerator.num_processes == 1

    def save_model(self, path: Path) -> None:
        """Write the evaluated weights (the average when EMA is on) with the recipe."""
        weights.save(self.evaluated_model, path, recipe=self.recipe.to_dict())

    def save(self) -> None:
        """Write ``last/``. All processes call this, because each has its own random states."""
        states = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            checkpoint.save_last(self.folder, run_state(self, states), self.save_model)
            self.notify("on_checkpoint", self.folder / "last")
        self.accelerator.wait_for_everyone()

    def load_state(self, state: RunState) -> None:
        """Go on where the run was when the state was saved."""
        restore_run(self, state)
