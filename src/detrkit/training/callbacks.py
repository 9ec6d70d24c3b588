"""Callbacks: what happens beside a training, at five of its moments. Loggers, tables and pictures are callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.data import DetectionDataset
from detrkit.metrics import Metric, Score
from detrkit.structures import Batch
from detrkit.training.task import Validation

if TYPE_CHECKING:
    from detrkit.inference.tasks import Answer
    from detrkit.report import ScoredSet
    from detrkit.training.trainer import Trainer

__all__ = ["Callback", "Evaluation", "Row", "Step"]

Row = Mapping[str, object]
"""A row of the log: ``event`` (start, resume, train, eval, skip, data, plan, end), ``step``, ``epoch``, ``time`` (Unix
seconds), numbers."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Attributes:
        number: how many steps have been done, this one included.
        loss: total loss, the mean over all processes.
        batches: what the model saw on this process, one batch per micro-batch; images are normalised.
    """

    number: int
    loss: float
    batches: Sequence[Batch]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on the validation images.

    Attributes:
        score: its numbers, overall and per class.
        better: whether it is the best so far, so that its weights are now in ``best/``.
        seconds: how long it took.
        of: the validation images and their protocol.
        answers: by image id, the detections in every image of all processes; of the tasks sem and pan the maps of the
            first few images, because all would not fit into memory.
        objects: the detections with the ground truth, for :mod:`detrkit.report`; None for maps.
    """

    score: Score
    better: bool
    seconds: float
    of: Validation
    answers: Mapping[int, Answer]
    objects: ScoredSet | None

    @property
    def data(self) -> DetectionDataset:
        """The validation images."""
        return self.of.data

    @property
    def metric(self) -> Metric[Any]:
        """Their protocol with its ground truth."""
        return self.of.metric


class Callback:
    """Base class of callbacks: override the moments you need. Of several processes only the first calls them.

    Methods get the trainer: its ``recipe``, ``folder``, ``model``, ``task`` (data and criterion), ``step``,
    ``total_steps``, ``current_epoch`` and ``best`` are to be read, ``stop(reason)`` ends the run. The random states are
    restored after each call, so that a callback changes no weight by drawing numbers. An exception ends the run.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step, also of a resumed run."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """After an optimizer step."""

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """After an evaluation; the best weights are already in ``best/``."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """After ``last/`` (``folder``) was written."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """At the end of the run.

        Args:
            trainer: the trainer.
            error: why it ended early (``Interrupted`` after Ctrl-C); None: it is finished.
        """

    def on_log(self, row: Row) -> None:
        """For every row of ``log.jsonl``: loggers need nothing else."""

    def acts(self, moment: str) -> bool:
        """Whether the class has something to do at a moment (``"on_step"``)."""
        return getattr(type(self), moment) is not getattr(Callback, moment)
