"""Points at which masks are compared: how many, which, and what their samples estimate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.losses.mask_terms import dice_loss
from detrkit.losses.points import MaskPoints, sample_masks
from detrkit.structures import Target

SIDE = 16


def disc(side: int = SIDE, centre: float = 0.45, radius: float = 0.3) -> Tensor:
    """Distance from a circle (h, w), positive inside: logits of a disc."""
    at = (torch.arange(side) + 0.5) / side - centre
    return (radius - (at[:, None].square() + at.square()).sqrt()) * 20


def cell_centres(side: int = SIDE) -> Tensor:
    """(1, side², 2) as x and y in [0, 1]."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack((at.expand(side, -1), at[:, None].expand(-1, side)), dim=-1).view(1, -1, 2)


def test_three_quarters_are_the_least_certain_of_three_times_as_many() -> None:
    """The published numbers: of 37632 points 9408, and 3136 fresh ones."""
    drawn: list[Tensor] = []

    def uniform(*shape: int, device: torch.device) -> Tensor:
        drawn.append(torch.rand(*shape, generator=torch.Generator().manual_seed(len(drawn)), device=device))
        return drawn[-1]

    points, logits = MaskPoints(uniform=uniform), torch.stack((disc(), -disc(centre=0.6)))
    chosen = points.uncertain(logits)
    assert [part.shape for part in drawn] == [(2, 37632, 2), (2, 3136, 2)]
    assert chosen.shape == (2, 12544, 2)
    assert torch.equal(chosen[:, 9408:], drawn[1])
    certainty = points.sample(logits, drawn[0]).abs()
    kept = points.sample(logits, chosen[:, :9408]).abs()
    torch.testing.assert_close(kept.sort(1).values, certainty.sort(1).values[:, :9408])


def test_with_full_importance_there_are_no_fresh_points() -> None:
    assert MaskPoints(number=10, importance=1.0).uncertain(disc()[None]).shape == (1, 10, 2)


def test_points_at_all_cells_give_the_dense_losses() -> None:
    logits, target = disc()[None], disc(centre=0.5)[None] > 0
    points, centres = MaskPoints(), cell_centres()
    sampled = points.sample(logits, centres)
    wanted = sample_masks(target, centres)
    torch.testing.assert_close(sampled, logits.flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted, target.flatten(1).float(), atol=1e-5, rtol=0)
    for found, dense in (
        (
            F.binary_cross_entropy_with_logits(sampled, wanted),
            F.binary_cross_entropy_with_logits(logits, target.float()),
        ),
        (dice_loss(sampled, wanted), dice_loss(logits.flatten(1), target.flatten(1).float())),
    ):
        torch.testing.assert_close(found, dense, atol=1e-5, rtol=0)


def test_uniform_points_are_unbiased_and_uncertain_ones_weigh_the_outline() -> None:
    """The mean of 200 draws is within three standard errors of the mean over a fine grid; importance raises it."""
    logits, target = disc(64)[None], disc(64, centre=0.48)[None] > 0
    fine = cell_centres(512)

    def loss(points: MaskPoints, at: Tensor) -> Tensor:
        sampled = points.sample(logits, at)
        return F.binary_cross_entropy_with_logits(sampled, sample_masks(target, at))

    torch.manual_seed(0)
    points = MaskPoints(number=400)
    dense = loss(points, fine)
    uniform = torch.stack([loss(points, points.shared(1, logits.device)) for _ in range(200)])
    assert (uniform.mean() - dense).abs() < 3 * uniform.std() / 200**0.5
    assert loss(points, points.uncertain(logits)) > 1.5 * dense


@pytest.mark.parametrize("border", ["border", "zeros"])
def test_masks_of_objects_are_sampled_at_their_own_points(border: str) -> None:
    torch.manual_seed(0)
    targets = [
        Target(labels=torch.zeros(n, dtype=torch.long), boxes=torch.rand(n, 4), masks=torch.rand(n, 8, 8) > 0.5)
        for n in (3, 0, 2)
    ]
    masks = torch.cat([target.masks for target in targets if target.masks is not None])
    points = replace(MaskPoints(number=7), border=border)
    index, image, at = torch.tensor([4, 0, 2, 3, 0]), torch.tensor([2, 0, 0, 2, 0]), torch.rand(5, 7, 2)
    found = points.of_objects(targets, image, index, at)
    torch.testing.assert_close(found, points.sample(masks[index].float(), at))


def test_more_masks_than_are_converted_at_once() -> None:
    torch.manual_seed(0)
    masks, shared = torch.rand(40, 8, 8) > 0.5, torch.rand(1, 9, 2)
    torch.testing.assert_close(
        sample_masks(masks, shared), MaskPoints().sample(masks.float(), shared.expand(40, -1, -1))
    )
    assert sample_masks(masks[:0], shared).shape == (0, 9)
