"""Losses, costs and assignments of Mask2Former and MaskDINO, with the random points that were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.inference.postprocess import select
from detrkit.inference.segmentation import ImageMasks, PanopticRules, instance_masks, panoptic_segments, semantic_labels
from detrkit.losses import ClassTerm, Criterion, Focal, GIoUTerm, HungarianMatcher, L1Term, LabelAugmentation, Softmax
from detrkit.losses.mask_terms import DiceTerm, MaskTerm
from detrkit.losses.points import MaskPoints
from detrkit.losses.problem import Problem
from detrkit.losses.terms import Term
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import Predictions, QueryGroup, Target
from tests.golden.harness import Case

NAMES = {"loss_class": "loss_ce", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
BOXES = {"loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def masks_of(logits: Tensor) -> EmbeddedMasks:
    """Dense logits (L, B, N, h, w) as the product of themselves and one unit vector per pixel."""
    height, width = logits.shape[-2:]
    pixels = torch.eye(height * width).view(1, -1, height, width).expand(logits.shape[1], -1, -1, -1)
    return EmbeddedMasks(logits.flatten(3), pixels, "zeros")


def group_of(inputs: dict[str, Tensor], layer: int) -> Predictions:
    """One layer of the recorded predictions."""
    logits, boxes, masks = (inputs[name][layer : layer + 1] for name in PARTS)
    return Predictions(logits=logits, boxes=boxes, masks=masks_of(masks))


class RememberingMatcher(HungarianMatcher):
    """Keeps the costs that it matched by."""

    costs: Tensor

    def cost(self, problem: Problem) -> Tensor:
        self.costs = super().cost(problem)
        return self.costs


def criterion_of(case: Case, draws: Iterator[Tensor], *, dice: float = 5.0) -> Criterion:
    """The official terms and weights; points come from the recorded draws."""

    def recorded(*shape: int, device: torch.device) -> Tensor:
        drawn = next(draws)
        assert drawn.shape == shape
        return drawn

    points = MaskPoints(number=case.info["config"]["num_points"], border="zeros", uniform=recorded)
    dino = case.name == "op_mask_dino"
    weight = 4.0 if dino else 2.0
    terms: list[Term] = [
        ClassTerm(classes=Focal() if dino else Softmax(), weight=1.0, cost_weight=weight),
        MaskTerm(points=points, weight=1.0, cost_weight=5.0),
        DiceTerm(points=points, weight=1.0, cost_weight=dice),
    ]
    if dino:
        terms += [L1Term(weight=1.0, cost_weight=5.0), GIoUTerm(weight=1.0, cost_weight=2.0)]
    return Criterion(
        terms=terms,
        matcher=RememberingMatcher(terms=terms),
        num_queries=24,
        label_augmentation=LabelAugmentation(),
    )


def targets_of(case: Case) -> list[Target]:
    targets = []
    for image in range(2):
        labels, boxes, masks = (case.tensors[f"target.{image}.{name}"] for name in ("labels", "boxes", "masks"))
        targets.append(Target(labels=labels, boxes=boxes, masks=masks.bool()))
    return targets


def denoising_of(case: Case, part: str, targets: list[Target]) -> QueryGroup:
    """Denoising queries of one layer; every group has a place for each object of the fuller image."""
    groups, size = case.info["config"]["dn_groups"], case.info["config"]["dn_pad_size"]
    place = [
        (image, group * size // groups + index, start + index)
        for image, start in ((0, 0), (1, len(targets[0])))
        for group in range(groups)
        for index in range(len(targets[image]))
    ]
    logits, boxes, masks = (case.tensors[f"dn.{part}.pred_{name}"][None] for name in ("logits", "boxes", "masks"))
    pairs = tuple(torch.tensor(column) for column in zip(*place, strict=True))
    return QueryGroup(
        logits=logits, boxes=boxes, masks=masks_of(masks), pairs=(pairs[0], pairs[1], pairs[2]), normaliser=groups
    )


def draws_of(case: Case) -> Iterator[Tensor]:
    return (case.tensors[name] for name in sorted(case.tensors) if name.startswith("rand_call"))


PARTS = ("logits", "boxes", "masks")
CALLS = {  # in the order of the official code: the layer of the predictions, its suffix, the denoising part
    "op_mask2former": [(2, "", None), (1, "_0", None)],
    "op_mask_dino": [(2, "", "last"), (1, "_0", "aux0"), (0, "_interm", None)],
}


@pytest.mark.parametrize("name", CALLS)
def test_losses_costs_and_assignments(name: str, shared: Path, golden_count: dict[str, Any]) -> None:
    case = Case.read(shared, name, golden_count)
    targets, criterion = targets_of(case), criterion_of(case, draws_of(case))
    shown = NAMES | (BOXES if name == "op_mask_dino" else {})
    inputs = {part: case.tensors[f"pred_{part}"].clone().requires_grad_() for part in PARTS}
    for call, (layer, suffix, noised) in enumerate(CALLS[name]):
        predictions = group_of(inputs, layer)
        if noised is not None:
            predictions = replace(predictions, groups={"denoising": denoising_of(case, noised, targets)})
        output = criterion(predictions, targets)
        output.total.backward()
        for ours, theirs in shown.items():
            case.loss(f"{theirs}{suffix}", output.terms[ours], case.info["losses"][f"{theirs}{suffix}"])
            if noised is not None:
                noised_suffix = f"_dn{suffix}"
                value = output.terms[f"{ours}_denoising"]
                case.loss(f"{theirs}{noised_suffix}", value, case.info["losses"][f"{theirs}{noised_suffix}"])
        for image, offset in ((0, 0), (1, len(targets[0]))):
            query, index = output.matches.pairs(0, image, offset)
            name = f"matcher_cost.call{call}.image{image}"
            costs = criterion.matcher.costs[0, offset : offset + len(targets[image])].T
            case.match(name, costs, case.tensors[name], atol=case.tolerance(), rtol=case.tolerance("losses_rel"))
            expected = case.tensors[f"indices.call{call}.{image}"]
            case.match(f"queries {call} {image}", query, expected[0])
            case.match(f"objects {call} {image}", index, expected[1])
    for part in PARTS:
        if f"grad.pred_{part}" in case.tensors:
            assert inputs[part].grad is not None
            case.close(f"grad.pred_{part}", inputs[part].grad)


def test_a_perturbed_weight_is_noticed(shared: Path, golden_count: dict[str, Any]) -> None:
    case = Case.read(shared, "op_mask_dino", golden_count)
    criterion = criterion_of(case, draws_of(case), dice=5.5)
    inputs = {part: case.tensors[f"pred_{part}"] for part in PARTS}
    criterion(group_of(inputs, 2), targets_of(case))
    name = "matcher_cost.call0.image0"
    with pytest.raises(AssertionError, match=name):
        case.match(name, criterion.matcher.costs[0, :3].T, case.tensors[name], atol=case.tolerance(), rtol=1e-5)


class EveryClass(Softmax):
    """Mask2Former ranks all pairs of query and class, though classes exclude each other."""

    exclusive = False


def image_masks(case: Case) -> ImageMasks:
    size = tuple(case.info["inference_config"]["image_size"])
    return ImageMasks(masks_of(case.tensors["inference.mask_pred"][None, None]), 0, size, size, size)


@pytest.mark.parametrize("name", CALLS)
def test_inference(name: str, shared: Path, golden_count: dict[str, Any]) -> None:
    case = Case.read(shared, name, golden_count)
    config, logits, masks = case.info["inference_config"], case.tensors["inference.mask_cls"], image_masks(case)
    is_thing = torch.zeros(config["num_classes"], dtype=torch.bool)
    is_thing[config["thing_classes"]] = True
    for index, variant in enumerate(config["variants"]):
        prefix = f"inference.v{index}"
        temperature = 0.06 if variant.get("transform_eval") else None
        classes = Softmax() if name == "op_mask2former" else Focal(temperature=temperature)
        sums: list[Tensor] = []
        labels, _ = semantic_labels(masks, logits, classes=classes, scores=sums.append)
        case.close(f"{prefix}.semantic", torch.cat(sums))
        case.match("semantic labels", labels, case.tensors[f"{prefix}.semantic"].argmax(0))
        rules = PanopticRules(threshold=config["object_mask_threshold"], overlap=config["overlap_threshold"])
        found = panoptic_segments(masks, logits, classes=classes, is_thing=is_thing, rules=rules)
        assert found.labels == [row["category_id"] for row in case.info[f"{prefix}.segments_info"]]
        case.equal(f"{prefix}.panoptic_seg", found.ids)
        ranked = EveryClass() if name == "op_mask2former" else classes
        top = select(logits, torch.rand(len(logits), 4), classes=ranked, top_k=config["test_topk_per_image"])
        parts = list(instance_masks(masks, top.queries))
        inside, quality = torch.cat([part for _, part, _ in parts]), torch.cat([part for *_, part in parts])
        for things_only in (0, 1):
            kept = is_thing[top.labels] if things_only else torch.ones_like(top.labels, dtype=torch.bool)
            scores = (top.scores * quality)[kept]
            order = scores.argsort(descending=True)
            stored = f"{prefix}.panoptic_on{things_only}.instance"
            case.close(f"{stored}.scores", scores[order])
            case.equal(f"{stored}.classes", top.labels[kept][order])
            case.close(f"{stored}.mask_area", inside[kept][order].sum((1, 2)).float())
