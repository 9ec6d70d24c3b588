"""Steps whose loss or gradient is not finite: they change no weight, and several in a row end the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from detrkit.errors import RunError
from detrkit.structures import Batch

if TYPE_CHECKING:
    from detrkit.training.trainer import Trainer

__all__ = ["skip_step"]

MAX_SKIPPED = 3  # consecutive optimizer steps that may be skipped


def skip_step(trainer: Trainer, group: list[Batch]) -> None:
    """Count a step with a loss or gradient that is not finite, and say so.

    Raises:
        RunError: too many such steps in a row.
    """
    trainer.skipped += 1
    row = trainer.meter.row()
    terms = {key: value for key, value in row.items() if key.startswith("loss")}
    images = sorted(gather_object([int(target.image_id) for batch in group for target in batch.targets]))
    trainer.log("skip", **terms, images=images)
    text = (
        f"step {trainer.step}: loss or gradient is not finite ("
        + ", ".join(f"{key} {value:.4g}" for key, value in terms.items() if "_" not in key[5:])
        + f"), images {', '.join(map(str, images))}"
    )
    if trainer.skipped >= MAX_SKIPPED:
        raise RunError(
            f"{text}; {trainer.skipped} steps in a row, giving up. Try a lower optimizer.lr, a longer schedule.warmup "
            "or training.precision=fp32; last/ holds the checkpoint before"
        )
    trainer.progress.print(f"{text}; step skipped")
