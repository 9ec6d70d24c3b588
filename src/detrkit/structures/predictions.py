"""The output of a detector: decoded queries of every decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from detrkit.structures.objects import Target

__all__ = ["Heatmap", "MaskView", "Predictions", "QueryGroup"]


class MaskView(Protocol):
    """Lazily computed masks of N queries in each of L layers."""

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that masks are computed from."""
        ...

    def __getitem__(self, queries: slice) -> MaskView:
        """The same view for some of the queries."""
        ...

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits (M, h, w) of the masks that three index vectors (M,) choose; best with ``image`` on the host."""
        ...

    def of_image(self, image: int, layers: Iterable[int], points: Tensor) -> Iterator[Tensor]:
        """Logits (N, P) float32 of all masks of an image, layer by layer, at points (P, 2) in [0, 1] of the canvas."""
        ...

    def dense(self) -> Tensor:
        """Mask logits of the last layer (B, N, H/4, W/4)."""
        ...


@dataclass
class QueryGroup:
    """Decoded queries of every decoder layer, first to last, and how they are matched in training.

    Attributes:
        logits: (L, B, N, C), C = K, or K + 1 with no-object last.
        boxes: (L, B, N, 4) cxcywh in [0, 1] of the valid area.
        masks: lazy masks of the same queries, or None.
        hidden: (L, B, N, C) states that a mask head makes masks of, for proposals whose masks are learned; else None.
        pairs: fixed matches as (image, query, object) index vectors, for denoising; ``object`` indexes the objects of
            the whole batch. None: the matcher decides.
        repeat: number of times that the matcher gets every object (one-to-many).
        class_agnostic: all objects have class 0.
        ignored: (B, N) bool, queries without a loss, or None.
        normaliser: factor on the number of objects that the losses are divided by.
    """

    logits: Tensor
    boxes: Tensor
    masks: MaskView | None = None
    hidden: Tensor | None = None
    pairs: tuple[Tensor, Tensor, Tensor] | None = None
    repeat: int = 1
    class_agnostic: bool = False
    ignored: Tensor | None = None
    normaliser: float = 1.0

    @property
    def takes_originals(self) -> bool:
        """Whether the group is matched with the original objects, without copies of label augmentation."""
        return self.pairs is not None or self.repeat > 1


@dataclass
class Heatmap:
    """A dense prediction of training, with one logit per cell and a sigmoid focal loss.

    Attributes:
        logits: (B, S).
        make_target: maps the targets of a batch to the target of ``logits.sigmoid()``, (B, S) in [0, 1].
        weight: weight of the loss, which is divided by the number of cells with a target above 0.
    """

    logits: Tensor
    make_target: Callable[[list[Target]], Tensor]
    weight: float = 1.0


@dataclass
class Predictions(QueryGroup):
    """The matching queries, the same in training and evaluation, and the additional outputs of training.

    Attributes:
        groups: further query groups with their own losses: ``"encoder"``, ``"denoising"``, ``"one_to_many"``,
            ``"one_to_many_encoder"``, ``"group1"``, ….
        heatmaps: dense predictions with their own losses, by name (``"salience"``).
    """

    groups: dict[str, QueryGroup] = field(default_factory=dict)
    heatmaps: dict[str, Heatmap] = field(default_factory=dict)
