"""Program for a launcher of two processes: runs on the tiny task, in subfolders of the given folder.

``plain`` has dropout 0, and in most steps one process has no boxes. ``whole`` and ``broken`` have dropout and EMA; the
second ends after step 5 and is resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from detrkit.training import train
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task, make_recipe

# a step with a single box would be normalised by 1 instead of 1/2 on each process, as in the official criterion
BOXES = (0, 0, 3, 0, 0, 2)
STEPS = {"epochs": 3, "batch_size": 1, "device": "auto"}
BREAKABLE = {"epochs": 3, "batch_size": 1, "device": "auto", "ema": 0.9, "checkpoint_every": 2}


def main(folder: Path) -> None:
    """All three runs."""
    with fake_task(folder / "plain", BOXES, dropout=0.0):
        train(make_recipe(folder / "plain", **STEPS))
    with fake_task(folder / "whole", BOXES):
        train(make_recipe(folder / "whole", **BREAKABLE))
    with fake_task(folder / "broken", BOXES):
        original = Trainer.train_step

        def train_step(self: Trainer, group: list[Any]) -> None:
            original(self, group)
            if self.step == 5:
                raise InterruptedError

        Trainer.train_step = train_step
        try:
            train(make_recipe(folder / "broken", **BREAKABLE))
        except InterruptedError:
            Trainer.train_step = original
        train(make_recipe(folder / "broken", **BREAKABLE), resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
