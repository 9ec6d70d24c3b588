"""Program for a launcher of two processes: runs on the tiny task, in subfolders of the given folder.

``plain`` has dropout 0, and in most steps one process has no boxes. ``whole`` and ``broken`` have dropout and EMA; the
second ends after step 5 and is resumed. ``miniatures`` holds what the steps of published models are made of.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from detrkit.training import train
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task, make_recipe
from tests.training.miniatures import MODELS, train_miniature, tree

# a step with a single box would be normalised by 1 instead of 1/2 on each process, as in the official criterion
BOXES = (0, 0, 3, 0, 0, 2)
STEPS = {"epochs": 3, "batch_size": 1, "device": "auto"}
BREAKABLE = {"epochs": 3, "batch_size": 1, "device": "auto", "ema": 0.9, "checkpoint_every": 2}


def main(folder: Path) -> None:
    """All runs."""
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
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            tree(folder / "miniatures" / "data")
    for name in MODELS:
        for fixed in (True, False):
            steps = train_miniature(folder / "miniatures", name, fixed=fixed, batch_size=2, device="auto")
            if state.is_main_process:
                torch.save(steps, folder / "miniatures" / f"{name}-{fixed}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
