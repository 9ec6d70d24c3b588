"""Lazy masks are the dense product, whichever way they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from detrkit.nn.backbone import FeatureMap
from detrkit.nn.masks import Border, EmbeddedMasks, PixelEmbedding, positions_by_image, sample_points

LAYERS, IMAGES, QUERIES, DIM, HEIGHT, WIDTH = 3, 2, 5, 16, 6, 9
BORDERS = ("border", "zeros")


def factors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(LAYERS, IMAGES, QUERIES, DIM, generator=generator)
    pixels = torch.randn(IMAGES, DIM, HEIGHT, WIDTH, generator=generator)
    return queries.requires_grad_(), pixels.requires_grad_()


def product(queries: Tensor, pixels: Tensor) -> Tensor:
    """All masks of all layers: (L, B, N, h, w)."""
    return torch.einsum("lbnc,bchw->lbnhw", queries, pixels)


def assert_same_with_gradients(found: Tensor, wanted: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad((value * weights).sum(), inputs) for value in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("border", BORDERS)
def test_sampling_the_pixels_first_equals_sampling_the_product(border: Border) -> None:
    """To 1e-4, also beyond the centres of the outermost cells; gradients of both factors as well."""
    queries, pixels = factors()
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(2))
    points[:8] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0], [0, 0.5], [0.999, 0.3], [0.02, 0.98]])
    lazy = torch.stack(list(EmbeddedMasks(queries, pixels, border).of_image(1, range(LAYERS), points)))
    dense = sample_points(product(queries, pixels)[:, 1], points.expand(LAYERS, -1, -1), border=border)
    assert_same_with_gradients(lazy, dense, (queries, pixels))


@pytest.mark.parametrize(
    "image", [(1, 0, 0, 1, 0), (0, 0, 0, 0, 0), (1, 1, 1, 1, 1)], ids=["mixed", "the first", "the second"]
)
def test_rows_are_those_of_the_product(image: tuple[int, ...]) -> None:
    queries, pixels = factors()
    place = torch.tensor([0, 2, 1, 2, -1]), torch.tensor(image), torch.tensor([4, 0, 1, 0, 3])
    assert_same_with_gradients(
        EmbeddedMasks(queries, pixels).rows(*place), product(queries, pixels)[place], (queries, pixels)
    )


def test_no_rows_stay_in_the_graph() -> None:
    """As distributed training requires of a process without objects."""
    queries, pixels = factors()
    nothing = torch.zeros(0, dtype=torch.long)
    rows = EmbeddedMasks(queries, pixels).rows(nothing, nothing, nothing)
    assert rows.shape == (0, HEIGHT, WIDTH)
    gradients = torch.autograd.grad(rows.sum(), (queries, pixels))
    assert not any(gradient.any() for gradient in gradients)


def test_dense_is_the_last_layer_and_a_slice_some_of_its_queries() -> None:
    queries, pixels = factors()
    masks, wanted = EmbeddedMasks(queries, pixels), product(queries, pixels)[-1]
    assert_same_with_gradients(masks.dense(), wanted, (queries, pixels))
    torch.testing.assert_close(masks[1:3].dense(), wanted[:, 1:3])
    assert masks[1:3].border == masks.border


def test_points_of_half_precision_masks_do_not_move() -> None:
    """Coordinates in bfloat16 would be off by up to half a cell."""
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    points = torch.rand(1, 1000, 2, generator=torch.Generator().manual_seed(3))
    sampled = sample_points(ramp.bfloat16(), points)
    torch.testing.assert_close(sampled, sample_points(ramp, points), atol=1e-2, rtol=0)
    assert sampled.dtype == torch.float32


def test_border_continues_maps_as_resizing_does() -> None:
    maps = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(4))
    height, width = 20, 28
    y, x = (torch.arange(side).add(0.5) / side for side in (height, width))
    centres = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).view(1, -1, 2)
    resized = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    sampled = sample_points(maps, centres.expand(2, -1, -1)).view(2, 3, height, width)
    torch.testing.assert_close(sampled, resized)


def test_positions_by_image() -> None:
    found = positions_by_image(torch.tensor([2, 0, 2, 2]))
    assert [(index, position.tolist()) for index, position in found] == [(0, [1]), (2, [0, 2, 3])]
    assert positions_by_image(torch.zeros(0, dtype=torch.long)) == []


@pytest.mark.parametrize("step", [1, 2, 4])
def test_the_embedding_of_an_image_does_not_depend_on_padding(step: int) -> None:
    """Sides that are no multiples of the step between both maps included."""
    torch.manual_seed(0)
    embedding = PixelEmbedding(in_dim=8, dim=32)
    fine, memory, mask = (
        torch.randn(1, 8, 9, 13),
        torch.randn(1, 32, -(-9 // step), -(-13 // step)),
        torch.ones(1, 16, 24),
    )
    mask[:, :9, :13] = 0
    padded, coarse = torch.zeros(1, 8, 16, 24), torch.zeros(1, 32, 16 // step, 24 // step)
    padded[..., :9, :13] = fine
    coarse[..., : memory.shape[-2], : memory.shape[-1]] = memory
    alone = embedding(FeatureMap(fine, torch.zeros(1, 9, 13, dtype=torch.bool), 4), memory)
    together = embedding(FeatureMap(padded, mask.bool(), 4), coarse)
    torch.testing.assert_close(together[..., :9, :13], alone, atol=1e-5, rtol=1e-5)


class DenseBranch(nn.Module):
    """The dense masks of one layer of queries, from tensors: fine map at 1/4, memory at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = PixelEmbedding(in_dim=8, dim=32)

    def forward(self, queries: Tensor, fine: Tensor, padding_mask: Tensor, memory: Tensor) -> Tensor:
        """(B, N, C), (B, 8, h, w), (B, h, w) bool, (B, C, h / 2, w / 2) -> (B, N, h, w)."""
        pixels = self.pixels(FeatureMap(fine, padding_mask, 4), memory)
        return EmbeddedMasks(queries[None], pixels).dense()


def test_exported_the_branch_takes_batches_of_any_size() -> None:
    """The lazy masks exist while tracing only; the program has their product."""

    def inputs(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        mask = torch.zeros(batch, 2 * height, 2 * width, dtype=torch.bool)
        mask[0, -3:] = True
        fine = torch.randn(batch, 8, 2 * height, 2 * width)
        return torch.randn(batch, 5, 32), fine, mask, torch.randn(batch, 32, height, width)

    torch.manual_seed(0)
    branch = DenseBranch().eval()
    free, half = {axis: Dim.DYNAMIC for axis in (0, 2, 3)}, {axis: Dim.DYNAMIC for axis in (0, 1, 2)}
    shapes = {"queries": {0: Dim.DYNAMIC}, "fine": free, "padding_mask": half, "memory": free}
    with torch.no_grad():
        program = export(branch, inputs(3, 5, 6), dynamic_shapes=shapes).module()
        for batch, height, width in ((1, 8, 4), (2, 7, 9)):
            example = inputs(batch, height, width)
            torch.testing.assert_close(program(*example), branch(*example))
