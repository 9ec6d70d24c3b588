"""A new per-object field is one line: selection, repetition, concatenation and transfer include it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.losses import LabelAugmentation, Problem
from detrkit.nn.denoising import Denoising
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import Batch, Objects, QueryGroup, Target


@dataclass(frozen=True, kw_only=True)
class Weighed(Target):
    """A target with one more field per object, a weight."""

    weights: Tensor | None = None


def weighed(n: int, **facts: Any) -> Weighed:
    boxes = torch.arange(4.0 * n).view(n, 4) / (4 * n + 1)
    masks = torch.eye(n, dtype=torch.bool).view(n, n, 1)
    return Weighed(labels=torch.arange(n), boxes=boxes, masks=masks, weights=torch.arange(n) * 10.0, **facts)


def agree(target: Target, numbers: list[int]) -> bool:
    """Whether every field has the rows of these objects."""
    assert isinstance(target, Weighed)
    assert target.masks is not None
    assert target.weights is not None
    whole = weighed(target.masks.shape[1])  # one mask row per object
    assert whole.masks is not None
    return (
        torch.equal(target.boxes, whole.boxes[numbers])
        and torch.equal(target.masks, whole.masks[numbers])
        and target.weights.tolist() == [10.0 * number for number in numbers]
    )


def test_selection_includes_every_object_field_and_keeps_image_fields() -> None:
    facts = {"image_id": 7, "original_size": (3, 4), "negatives": torch.tensor([5, 6, 7, 8])}
    target = weighed(4, **facts)
    for index, numbers in (
        (torch.tensor([True, False, True, False]), [0, 2]),
        (torch.tensor([3, 0, 0]), [3, 0, 0]),
        (slice(1, None), [1, 2, 3]),
        ([2, 1], [2, 1]),
        (-1, [3]),
        (torch.zeros(4, dtype=torch.bool), []),
    ):
        chosen = target[index]
        assert chosen.labels.tolist() == numbers
        assert agree(chosen, numbers)
        assert (chosen.image_id, chosen.original_size) == (7, (3, 4))
        assert chosen.negatives is target.negatives
        assert chosen.is_thing is None
    assert [int(target[number].labels) for number in range(4)] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        target[4]


def test_label_augmentation_and_query_groups_include_every_field() -> None:
    target = weighed(3)
    (repeated,) = LabelAugmentation(repeat=2)([target], 5)
    assert agree(repeated, [0, 1, 2, 0, 1, 2])
    assert agree(repeated.originals(), [0, 1, 2])
    assert repeated.originals().is_copy is None
    backwards = LabelAugmentation(ratio=0.5, random_order=lambda n: torch.arange(n).flip(0))
    (drawn,) = backwards([target], 10)
    assert agree(drawn, [0, 1, 2, 2, 1])
    masks = EmbeddedMasks(torch.zeros(1, 1, 9, 2), torch.zeros(1, 2, 4, 4))
    group = QueryGroup(torch.zeros(1, 1, 9, 1), torch.zeros(1, 1, 9, 4), masks=masks, repeat=3, class_agnostic=True)
    (own,) = Problem.of(group, [drawn]).targets
    assert agree(own, [0, 1, 2] * 3)
    assert not own.labels.any()
    (boxes_only,) = Problem.of(replace(group, masks=None), [drawn]).targets
    assert boxes_only.masks is None, "masks that nothing is compared with are not repeated"
    assert len(boxes_only) == 9


def test_concatenation() -> None:
    first, second = weighed(2), weighed(2)[[1]]
    both = Weighed.cat([first, second])
    assert agree(both, [0, 1, 1])
    assert both.is_thing is None
    plain = Objects.cat([first, second])
    assert type(plain) is Objects
    assert plain.labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="weights: 1 of 2 parts have it"):
        Weighed.cat([first, replace(second, weights=None)])
    with pytest.raises(ValueError, match="list is empty"):
        Objects.cat([])


def test_to_and_pin_memory_include_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    target = weighed(2, negatives=torch.tensor([1]), image_id=3)
    moved = target.to("meta")
    assert {name for name, value in vars(moved).items() if isinstance(value, Tensor) and value.is_meta} == {
        "labels", "boxes", "masks", "weights", "negatives",
    }  # fmt: skip
    assert moved.image_id == 3
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)  # the real one needs a GPU
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool), [target])
    assert agree(batch.pin_memory().targets[0], [0, 1])
    assert target.weights is not None
    assert {target.weights.data_ptr(), batch.images.data_ptr()} < set(pinned)


def test_denoising_accepts_targets_with_more_fields() -> None:
    torch.manual_seed(0)
    denoising = Denoising(num_classes=3, dim=8, label_rows=3, number=2)
    queries = denoising([weighed(3), weighed(1)])
    assert queries is not None
    assert queries.pairs[2].tolist() == [0, 1, 2, 3] * 2
