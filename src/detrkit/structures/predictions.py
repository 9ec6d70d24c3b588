"""What a detector returns: decoded queries of every decoder layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from detrkit.structures.objects import Target

__all__ = ["Heatmap", "MaskView", "Predictions", "QueryGroup"]


class MaskView(Protocol):
    """Masks of queries that are computed when they are asked for, L layers of N queries each."""

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that masks are computed from."""
        ...

    def __getitem__(self, queries: slice) -> MaskView:
        """The same view of a part of the queries."""
        ...

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits (M, h, w) of the masks that three index vectors (M,) choose."""
        ...

    def of_image(self, image: int, layer: int, points: Tensor) -> Tensor:
        """Logits (N, P) of all masks of one layer and image at points (P, 2), x and y in [0, 1] of the canvas."""
        ...

    def dense(self) -> Tensor:
        """Logits of the last layer's masks (B, N, H/4, W/4)."""
        ...


@dataclass
class QueryGroup:
    """Decoded queries of every decoder layer, first to last, and how they find their objects in training.

    Attributes:
        logits: (L, B, N, C), C = K, or K + 1 with no-object last.
        boxes: (L, B, N, 4) cxcywh in [0, 1] of the valid area.
        masks: lazy masks of the same queries, or None.
        pairs: (image, query, object) index vectors of one length where the assignment is fixed (denoising; objects are
            counted through the batch); None where it is matched.
        repeat: every object is given so many times to the matcher (one-to-many).
        class_agnostic: every object is of class 0.
        ignored: (B, N) bool, queries without a loss, or None.
        normaliser: the losses are divided by the number of objects times this.
    """

    logits: Tensor
    boxes: Tensor
    masks: MaskView | None = None
    pairs: tuple[Tensor, Tensor, Tensor] | None = None
    repeat: int = 1
    class_agnostic: bool = False
    ignored: Tensor | None = None
    normaliser: float = 1.0

    @property
    def takes_originals(self) -> bool:
        """Whether it takes the objects as they are, not as label augmentation repeats them."""
        return self.pairs is not None or self.repeat > 1


@dataclass
class Heatmap:
    """A prediction for every cell of the image that only training has, learned with a sigmoid focal loss.

    Attributes:
        logits: (B, S) of the cells.
        goal: maps the targets to what the logits should be after a sigmoid, (B, S) in [0, 1].
        weight: of the loss, which is divided by the number of cells with a goal above 0.
    """

    logits: Tensor
    goal: Callable[[list[Target]], Tensor]
    weight: float = 1.0


@dataclass
class Predictions(QueryGroup):
    """The matching queries, the same in training and evaluation, and what only training has.

    Attributes:
        groups: further queries with losses of their own: ``"encoder"``, ``"denoising"``, ``"one_to_many"``,
            ``"one_to_many_encoder"``, ``"group1"``, ….
        heatmaps: dense predictions with losses of their own, by name (``"salience"``).
    """

    groups: dict[str, QueryGroup] = field(default_factory=dict)
    heatmaps: dict[str, Heatmap] = field(default_factory=dict)
