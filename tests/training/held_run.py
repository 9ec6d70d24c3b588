"""Program for a subprocess that is interrupted: ``detrkit train`` on the tiny task, which waits in one step."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from detrkit.cli.main import run
from detrkit.training.trainer import Trainer
from tests.training.fakes import fake_task

SETTINGS = {"ema": 0.9, "workers": 2, "epochs": 5, "checkpoint_every": 3, "evaluate_every": 2}


def main(folder: Path, steps: int, *arguments: str) -> int:
    """The exit code of ``detrkit train folder/recipe.yaml ARGUMENTS``.

    After ``steps`` steps it writes the file ``held`` and waits for a file ``go``.
    """
    original = Trainer.train_step

    def train_step(self: Trainer, group: list[Any]) -> None:
        if self.step == steps:
            (folder / "held").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        original(self, group)

    Trainer.train_step = train_step
    with fake_task(folder):
        return run(["train", str(folder / "recipe.yaml"), *arguments])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
