"""What a checkpoint keeps of a run besides its evaluated weights, and how a trainer goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.structures import Thresholds
from detrkit.training.checkpoint import RunState
from detrkit.training.resume import check_network, kept_best
from detrkit.training.rng import restore_rng

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["restore_run", "run_state"]

POSITION = ("epoch", "batch", "step", "skipped", "evaluated_step")


def run_state(trainer: Trainer, rng: list[dict[str, object]]) -> RunState:
    """The state from which a resumed run equals, bit for bit on the same machine, an uninterrupted one.

    Args:
        trainer: the trainer of the first process.
        rng: the random states of all processes.
    """
    scaler = trainer.accelerator.scaler
    state: RunState = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "ema": None if trainer.ema is None else trainer.ema.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "rng": rng,
        "position": {name: getattr(trainer, name) for name in POSITION},
        "best": trainer.best.state(),
        "processes": trainer.accelerator.num_processes,
        "batches": trainer.batches,
        "recipe": trainer.recipe.to_dict(),
        "data": trainer.data,
    }
    if trainer.validation is not None:
        state["validation"] = trainer.validation
    if trainer.evaluated_model.thresholds is not None:
        state["thresholds"] = trainer.evaluated_model.thresholds.to_json()
    if trainer.clock is not None and trainer.clock.planned:
        state["clock"] = trainer.clock.state()
    return state


def restore_run(trainer: Trainer, state: RunState) -> None:
    """Restore :func:`run_state`.

    Raises:
        RecipeError: the network of the recipe is not that of the run.
    """
    check_network(trainer.model, state["model"], trainer.folder)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.ema is not None and state["ema"] is not None:
        trainer.ema.load_state_dict(state["ema"])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    for name, value in state["position"].items():
        setattr(trainer, name, value)
    if trainer.clock is not None and "clock" in state:
        trainer.clock.load_state(state["clock"])
    if "thresholds" in state:
        trainer.evaluated_model.thresholds = Thresholds.from_json(state["thresholds"])
    trainer.best = kept_best(state, trainer.folder)
    restore_rng(state["rng"][trainer.accelerator.process_index])
