"""A mask head is one more module on the decoded states: it works with every detector without other changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.losses import Matched, Term, build_criterion
from detrkit.models import Architecture, DetectorConfig, entry, list_models, model_config
from detrkit.models.config import option_names
from detrkit.nn.backbone import FeatureMap
from detrkit.nn.tokens import Tokens
from detrkit.structures import QueryGroup, Target
from tests.models.tester import train_without_batch_statistics
from tests.small import small_options

SIZE, DIM = 64, 64


class Masks:
    """Products of queries (B, N, C) and pixels (B, C, h, w), computed on demand."""

    def __init__(self, queries: Tensor, pixels: Tensor) -> None:
        self.queries, self.pixels = queries, pixels

    def __getitem__(self, queries: slice) -> Masks:
        return Masks(self.queries[:, queries], self.pixels)

    def dense(self) -> Tensor:
        return torch.einsum("bnc,bchw->bnhw", self.queries, self.pixels)


class StubMaskHead(nn.Module):
    """Pixel features from a backbone map and the finest level of the memory; a linear map of the queries."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lateral, self.query = nn.Conv2d(channels, DIM, kernel_size=1), nn.Linear(DIM, DIM)

    def forward(self, hidden: Sequence[Tensor], memory: Tokens, maps: Sequence[FeatureMap]) -> list[Masks]:
        fine = self.lateral(maps[0].tensor)
        pixels = fine + F.interpolate(memory.maps()[0], size=fine.shape[-2:])
        return [Masks(self.query(states[-1]), pixels) for states in hidden]


class StubMaskTerm(Term):
    """Binary cross entropy of matched masks of the last layer."""

    name = "loss_mask"

    def reads(self, group: QueryGroup) -> tuple[Tensor, ...]:
        return () if group.masks is None else (group.masks.dense(),)

    def loss(self, matched: Matched, divisor: float) -> Tensor:
        (logits,), at = self.reads(matched.problem.group), matched.matches
        last = at.layer == matched.problem.layers - 1
        masks = torch.cat([target.masks for target in matched.problem.targets if target.masks is not None])
        wanted = F.interpolate(masks[at.target[last], None].float(), size=logits.shape[-2:])[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits[at.image[last], at.query[last]], wanted)
        return F.pad(loss[None] / divisor, (matched.problem.layers - 1, 0))


# One name per family; the other names differ in size and backbone.
NAMES = {entry(name).family: name for name in reversed(list_models("*_lite0"))} | {"dino++": "dino_pp_r50"}


@pytest.mark.parametrize("name", sorted(NAMES.values()))
def test_a_mask_head_of_a_few_lines_trains_on_every_family(name: str) -> None:
    config, found = model_config(name, **small_options(name)), entry(name)
    channels = found.build(config).get_submodule("backbone").channels[0]
    head = StubMaskHead(channels)
    torch.manual_seed(0)
    model = found.build(config, mask_head=head)
    train_without_batch_statistics(model)
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, :32, :32] = masks[1, 40:, 20:50] = True
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.55, 0.8, 0.47, 0.37]])
    targets = [Target(labels=torch.tensor([0, 1]), boxes=boxes, masks=masks)]
    criterion = build_criterion(config, extra_terms=[StubMaskTerm(weight=1.0)])
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    losses = []
    for seed in (0, 0):
        torch.manual_seed(seed)
        out = model(torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), None, targets)
        found_losses = criterion(out, criterion.prepare(targets))
        found_losses.total.backward()
        assert head.query.weight.grad is not None
        assert head.query.weight.grad.any()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found_losses.terms["loss_mask"]))
    assert losses[1] < losses[0]
    denoised = out.groups.get("denoising")
    assert denoised is None or denoised.masks is not None  # every set of queries has its masks
    with torch.no_grad():
        masks_of = model.eval()(torch.randn(1, 3, SIZE, SIZE)).masks
    assert masks_of is not None
    assert masks_of.dense().shape[:2] == (1, out.logits.shape[2])


def with_finer_map(config: DetectorConfig[Architecture]) -> DetectorConfig[Architecture]:
    """The same, of an architecture whose mask head reads one finer map than the detector."""
    given = config.architecture
    kind = type("WithFinerMap", (type(given),), {"finer_maps": 1})
    return replace(config, architecture=kind(**{name: getattr(given, name) for name in option_names(type(given))}))


@pytest.mark.parametrize("name", sorted(NAMES.values()))
def test_a_finer_map_for_a_mask_head_changes_nothing_in_the_detector(name: str) -> None:
    """The same random numbers, the same weights, the same boxes to the bit."""
    config, found = model_config(name, **small_options(name)), entry(name)
    torch.manual_seed(0)
    plain = found.build(config).eval()
    seen: list[FeatureMap] = []

    class Head(nn.Module):
        def forward(self, hidden: Sequence[Tensor], memory: Tokens, maps: Sequence[FeatureMap]) -> list[None]:
            seen.extend(maps)
            return [None for _ in hidden]

    torch.manual_seed(0)
    finer = found.build(with_finer_map(config), mask_head=Head()).eval()
    weights, others = plain.state_dict(), finer.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in weights.items())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in finer.parameters()]
    image = torch.randn(2, 3, 70, 96)
    with torch.no_grad():
        wanted, out = plain(image), finer(image)
    assert torch.equal(wanted.logits, out.logits)
    assert torch.equal(wanted.boxes, out.boxes)
    strides = plain.get_submodule("backbone").strides
    assert [level.stride for level in seen] == [strides[0] // 2, *strides]
