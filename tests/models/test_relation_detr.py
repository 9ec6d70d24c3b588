"""Relation-DETR: the one-to-many branch, the fused memory, and copies to the host per step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.losses import Problem, build_criterion
from detrkit.models import create_model
from detrkit.structures import Target
from tests.decoding import memory_of

TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "num_classes": 3,
    "num_queries": 12,
    "one_to_many_queries": 15,
    "hidden_dim": 64,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 32,
}


def targets(*counts: int) -> list[Target]:
    generator = torch.Generator().manual_seed(0)
    return [Target(labels=torch.arange(n) % 3, boxes=torch.rand(n, 4, generator=generator) * 0.3 + 0.2) for n in counts]


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("relation_detr_r50", **{**TINY, **options}).train()


def predictions(model: Any, *counts: int) -> Any:
    torch.manual_seed(1)
    return model(torch.randn(len(counts), 3, 64, 96), None, targets(*counts))


def test_one_to_many_queries_do_not_affect_the_other_queries() -> None:
    """Same weights and noise with and without the branch: matching and denoising queries predict the same."""
    model = build()
    other = build(one_to_many_queries=0)
    other.load_state_dict(model.state_dict(), strict=False)
    with_branch, without = predictions(model, 2, 1), predictions(other, 2, 1)
    assert set(with_branch.groups) - set(without.groups) == {"one_to_many", "one_to_many_encoder"}
    torch.testing.assert_close(with_branch.logits, without.logits)
    torch.testing.assert_close(with_branch.boxes, without.boxes)
    torch.testing.assert_close(with_branch.groups["denoising"].boxes, without.groups["denoising"].boxes)


def test_one_to_many_gives_every_object_several_queries() -> None:
    model = build(one_to_many_repeat=4)
    objects = targets(2, 1)
    matches = build_criterion(model.config)(predictions(model, 2, 1), objects).groups["one_to_many"]
    for layer in range(3):
        assert matches.pairs(layer, 0).shape == (2, 2 * 4)
        assert matches.pairs(layer, 1).shape == (2, 1 * 4)


def test_without_objects_the_branch_is_divided_by_one() -> None:
    """The repeated objects are counted before "at least one" (spec B), so an empty batch is not divided by 6."""
    one, six = (build(one_to_many_repeat=repeat) for repeat in (1, 6))
    losses = [
        build_criterion(m.config)(predictions(m, 0), targets(0)).terms["loss_class_one_to_many"] for m in (one, six)
    ]
    torch.testing.assert_close(*losses)


def test_memory_is_fused_from_all_layers() -> None:
    model = build()
    fusion = model.encoder.memory_fusion
    assert fusion[0].in_features == 3 * 64
    seen: list[list[Tensor]] = []
    fusion.register_forward_pre_hook(lambda module, args: seen.append(list(args[0])))
    memory = memory_of(model, torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    (contents,) = seen
    assert len(contents) == 3
    torch.testing.assert_close(memory.content, fusion(contents))
    assert build(memory_fusion=False).encoder.memory_fusion is None


def test_all_assignments_of_a_step_cost_one_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers, encoder and one-to-many branch: 2 * (layers + 1) assignments, one copy of the costs."""
    model = build()
    out, objects, criterion = predictions(model, 2, 1), targets(2, 1), build_criterion(model.config)
    copies = []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or original(tensor))
    output = criterion(out, objects)
    assert len(copies) == 1
    found = [output.matches, *(output.groups[name] for name in ("encoder", "one_to_many", "one_to_many_encoder"))]
    assert sum(int(matches.layer.max()) + 1 for matches in found) == 2 * (3 + 1)


def test_layers_are_matched_one_by_one_if_there_are_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    out, objects, criterion = predictions(model, 4, 1), targets(4, 1), build_criterion(model.config)
    problem = Problem.of(out, objects)
    whole = criterion.matcher.cost(problem)
    monkeypatch.setattr("detrkit.losses.matcher.MAX_PAIRS", 1)
    torch.testing.assert_close(criterion.matcher.cost(problem), whole)


def test_evaluation_needs_neither_branch_nor_noise() -> None:
    model = build().eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, 64, 64))
    assert out.groups == {}
    assert out.logits.shape == (3, 1, 12, 3)


@pytest.mark.parametrize(
    ("option", "value"), [("one_to_many_queries", -1), ("one_to_many_repeat", 0), ("query_selection", "pure")]
)
def test_wrong_values_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        build(**{option: value})


def test_starting_values_are_the_published_ones() -> None:
    """Spec A.12: boxes start at their reference, classes at 1 %, learned content from a normal distribution."""
    model = build(num_queries=200, relation="none")
    assert model.tgt_embed.weight.detach().std() == pytest.approx(1, abs=0.05)
    for head in (*model.bbox_embed, model.enc_bbox_embed, model.one_to_many_bbox_embed):
        assert not head.layers[-1].weight.any()
        bound = (6 / (64 + 64)) ** 0.5
        assert 0.9 * bound < head.layers[0].weight.detach().abs().max() <= bound
        assert not any(layer.bias.any() for layer in head.layers)
    for head in (*model.class_embed, model.enc_class_embed, model.one_to_many_class_embed):
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))


def test_plain_denoising_marks_every_query() -> None:
    model = build(denoising="plain", denoising_groups=2)
    out = predictions(model, 2, 1)
    assert out.groups["one_to_many"].logits.shape[2] == 15
    assert build_criterion(model.config)(out, targets(2, 1)).total.isfinite()


def test_one_decoder_layer_trains_every_parameter() -> None:
    """Relation and query scale start in the second layer, so a single layer has neither."""
    model = build(decoder_layers=1)
    build_criterion(model.config)(predictions(model, 2, 1), targets(2, 1)).total.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not idle


@pytest.mark.parametrize(
    "name", ["relation_detr_r50", "dape_r50", "dino_pp_r50", "dab_deformable_detr_pp_r50", "deformable_detr_pp_r50"]
)
def test_heads_start_as_in_the_repository(name: str) -> None:
    """Spec A.12: Xavier weights, no bias; boxes start at their reference."""
    options = {key: value for key, value in TINY.items() if key != "one_to_many_queries" or "pp" not in name}
    model: Any = create_model(name, **options)
    first, _, last = model.bbox_embed[1].layers
    assert not any(layer.bias.any() for layer in model.bbox_embed[1].layers)
    assert not last.weight.any()
    torch.testing.assert_close(first.weight.std(), torch.tensor((2 / 128) ** 0.5), rtol=0.05, atol=0)
