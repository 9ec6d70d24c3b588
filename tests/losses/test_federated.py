"""Federated loss: random selection of classes, LVIS information per image, and the classes the criterion ignores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.losses import Criterion, FederatedClasses, build_criterion
from detrkit.models import model_config
from detrkit.structures import Predictions, QueryGroup, Target

CLASSES, QUERIES, LAYERS = 8, 5, 2


def target(*labels: int, negatives: list[int] | None = None, not_exhaustive: list[int] | None = None) -> Target:
    """A target with objects of these classes and the LVIS information of the image."""
    boxes = torch.tensor([[0.3 + 0.1 * index, 0.4, 0.2, 0.3] for index in range(len(labels))]).reshape(-1, 4)
    lists = [None if ids is None else torch.tensor(ids, dtype=torch.long) for ids in (negatives, not_exhaustive)]
    return Target(
        labels=torch.tensor(labels, dtype=torch.long), boxes=boxes, negatives=lists[0], not_exhaustive=lists[1]
    )


def indices(mask: Tensor) -> list[int]:
    return torch.nonzero(mask).flatten().tolist()


# --- selection --------------------------------------------------------------------------------------------------------


def test_the_classes_of_the_batch_count_and_others_up_to_the_minimum() -> None:
    torch.manual_seed(0)
    choose = FederatedClasses(image_counts=[5] * CLASSES, number=4)
    for _ in range(20):
        counted = choose([target(1, 1), target(6), target()])
        assert counted.shape == (3, CLASSES)
        assert counted.sum(1).tolist() == [4, 4, 4]
        assert counted[:, [1, 6]].all()
        assert (counted == counted[0]).all()
    assert indices(choose([target(0, 1, 2, 3, 4, 5)])[0]) == [0, 1, 2, 3, 4, 5], (
        "all classes of the batch, even if they are more"
    )
    assert FederatedClasses(image_counts=[5] * CLASSES, number=50)([target(1)]).all()


def test_classes_are_drawn_by_the_square_root_of_their_image_counts() -> None:
    """One class is drawn besides class 0, in proportion to the weights; never a class without images."""
    torch.manual_seed(0)
    images = torch.tensor([1000.0, 16.0, 4.0, 1.0, 0.0])
    choose = FederatedClasses(image_counts=images, number=2)
    draws = 6000
    drawn = torch.stack([choose([target(0)])[0] for _ in range(draws)]).float().mean(0)
    # four standard deviations of a mean over 6000 draws are at most 0.026
    torch.testing.assert_close(drawn, torch.tensor([1.0, 4 / 7, 2 / 7, 1 / 7, 0.0]), atol=0.026, rtol=0)


def test_two_draws_are_without_replacement() -> None:
    """P(both of two classes) = w1/W · w2/(W - w1) + w2/W · w1/(W - w2), for weights 2, 1, 1."""
    torch.manual_seed(0)
    choose = FederatedClasses(image_counts=[4.0, 1.0, 1.0], number=2)
    draws = [choose([target()])[0] for _ in range(4000)]
    both = sum(bool(mask[0] and mask[1]) for mask in draws) / len(draws)
    assert both == pytest.approx(2 / 4 * 1 / 2 + 1 / 4 * 2 / 3, abs=0.032)


def test_a_seed_repeats_the_selection() -> None:
    choose = FederatedClasses(image_counts=[5] * 100, number=10)
    torch.manual_seed(3)
    first = choose([target(1)])
    torch.manual_seed(3)
    again, other = choose([target(1)]), choose([target(1)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lvis_information_applies_to_its_own_image_only() -> None:
    choose = FederatedClasses(image_counts=[0] * CLASSES, number=4)  # nothing is drawn
    counted = choose([target(1, 2, negatives=[5, 7], not_exhaustive=[2]), target(3), target(negatives=[])])
    assert [indices(row) for row in counted] == [[1, 3, 5, 7], [1, 2, 3], [1, 2, 3]]


# --- the criterion ----------------------------------------------------------------------------------------------------


def criterion(federated: FederatedClasses | None = None, **options: Any) -> Criterion:
    config = model_config("deformable_detr_r50", num_classes=CLASSES, num_queries=QUERIES, **options)
    return build_criterion(config, federated=federated)


def predictions(seed: int = 0, *, images: int = 2) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, images, QUERIES, CLASSES, generator=generator).requires_grad_()
    boxes = (torch.rand(LAYERS, images, QUERIES, 4, generator=generator) * 0.4 + 0.2).requires_grad_()
    return Predictions(logits, boxes)


class Fixed(FederatedClasses):
    """A fixed selection of classes, the same for all images."""

    def __init__(self, *classes: int) -> None:
        self.classes = list(classes)

    def __call__(self, targets: list[Target]) -> Tensor:
        counted = torch.zeros(len(targets), CLASSES, dtype=torch.bool)
        counted[:, self.classes] = True
        return counted


@pytest.mark.parametrize("class_loss", ["focal", "varifocal"])
def test_only_counted_classes_and_matches_have_a_loss(class_loss: str) -> None:
    targets = [target(1, 2), target(4)]
    gradients, losses = [], []
    for federated in (None, Fixed(1, 6)):
        out = predictions()
        loss = criterion(federated, class_loss=class_loss)(out, targets)
        loss.total.backward()
        assert out.logits.grad is not None
        gradients.append(out.logits.grad)
        losses.append(loss)
    plain, federated_gradient = gradients
    matches = losses[1].matches
    kept = torch.zeros(LAYERS, 2, QUERIES, CLASSES, dtype=torch.bool)
    kept[..., [1, 6]] = True
    labels = torch.tensor([1, 2, 4])
    kept[matches.layer, matches.image, matches.query, labels[matches.target]] = True
    assert torch.equal(federated_gradient, plain * kept)
    assert (plain != 0).all()
    for name in ("loss_bbox", "loss_giou", "loss_bbox_0"):
        assert torch.equal(losses[0].terms[name], losses[1].terms[name])
    assert losses[1].terms["loss_class"] < losses[0].terms["loss_class"]


def test_all_classes_counted_is_the_plain_loss_bit_for_bit() -> None:
    targets = [target(1, 2), target()]
    everything = FederatedClasses(image_counts=[3] * CLASSES, number=CLASSES)
    assert torch.equal(criterion(everything)(predictions(), targets).total, criterion()(predictions(), targets).total)


def test_query_groups_ignore_the_same_classes_but_class_agnostic_groups_ignore_none() -> None:
    targets = [target(1), target(4)]
    pairs = (torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    gradients = {}
    for name, options in (("denoising", {"pairs": pairs}), ("encoder", {"class_agnostic": True})):
        for federated in (None, Fixed(6)):
            out, more = predictions(), predictions(1)
            out.groups[name] = QueryGroup(more.logits, more.boxes, **options)
            criterion(federated)(out, targets).total.backward()
            assert more.logits.grad is not None
            gradients[name, federated is None] = more.logits.grad
    assert torch.equal(gradients["encoder", True], gradients["encoder", False])
    kept = torch.zeros(LAYERS, 2, QUERIES, CLASSES, dtype=torch.bool)
    kept[..., 6] = True
    kept[:, 0, 0, 1] = kept[:, 1, 0, 4] = True
    assert torch.equal(gradients["denoising", False], gradients["denoising", True] * kept)


def test_copies_of_label_augmentation_do_not_change_the_selection() -> None:
    repeated = criterion(Fixed(1), repeat_label=2)
    targets = repeated.prepare([target(1, 2, negatives=[3]), target()])
    assert len(targets[0]) == 4
    assert targets[0].negatives is not None
    assert targets[0].negatives.tolist() == [3]
    assert torch.isfinite(repeated(predictions(), targets).total)


def test_a_batch_without_objects() -> None:
    loss = criterion(FederatedClasses(image_counts=[3] * CLASSES, number=3))(predictions(), [target(), target()])
    assert torch.isfinite(loss.total)
    assert loss.total > 0


def test_softmax_classification_is_refused() -> None:
    with pytest.raises(ValueError, match="the federated loss needs classification 'focal', not 'softmax'"):
        build_criterion(model_config("detr_r50"), federated=Fixed(1))
