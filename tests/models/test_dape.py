"""Properties of harmonised sampling and low-rank relation that hold for any weights (spec dape.md)."""

from __future__ import annotations

import itertools
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import detrkit
from detrkit.losses import build_criterion
from detrkit.models import create_model
from detrkit.nn import deformable
from detrkit.nn.deformable import MSDeformAttn
from detrkit.nn.harmonized import (
    CodedTokens,
    CoSamplingAttn,
    HarmonizedEncoder,
    HarmonizedEncoderLayer,
    PositionCode,
    PositionCorrection,
)
from detrkit.nn.relation import LowRankRelation, PositionRelation
from detrkit.nn.tokens import Tokens
from detrkit.structures import Target

DIM, HEADS, RANK = 32, 4, 8
TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "num_classes": 3,
    "num_queries": 12,
    "one_to_many_queries": 15,
    "hidden_dim": DIM,
    "num_heads": HEADS,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "ffn_dim": 32,
}


def tokens(*shapes: tuple[int, int], padded: int = 0, batch: int = 2) -> CodedTokens:
    """Return random tokens on levels of these shapes; the last ``padded`` columns of the first level are padding."""
    number = sum(height * width for height, width in shapes)
    mask = torch.zeros(batch, number, dtype=torch.bool)
    height, width = shapes[0]
    mask[:, : height * width].view(batch, height, width)[:, :, width - padded :] = padded > 0
    valid = torch.tensor([[[float(w - padded * (level == 0)), float(h)] for level, (h, w) in enumerate(shapes)]])
    level_embed = torch.randn(len(shapes), DIM).repeat_interleave(torch.tensor([h * w for h, w in shapes]), dim=0)
    position, code = torch.randn(batch, number, DIM), torch.randn(batch, number, RANK)
    return CodedTokens(
        content=torch.randn(batch, number, DIM),
        position=position,
        padding_mask=mask,
        shapes=shapes,
        valid_cells=valid.expand(batch, -1, -1),
        level_embed=level_embed,
        code=code,
        own_code=code,
        own_position=position,
        encoding=PositionCode(dim=DIM, rank=RANK),
    )


def attention(levels: int = 1, points: int = 1) -> CoSamplingAttn:
    """Build attention that samples at the reference point."""
    attn = CoSamplingAttn(dim=DIM, num_heads=HEADS, num_levels=levels, num_points=points)
    torch.nn.init.zeros_(attn.sampling_offsets.bias)
    return attn


def centre(memory: CodedTokens, index: int) -> Tensor:
    """Return the centre of a token on the map of the first level (B, 1, 1, 2)."""
    height, width = memory.shapes[0]
    point = torch.tensor([(index % width + 0.5) / width, (index // width + 0.5) / height])
    return point.expand(len(memory.content), 1, 1, 2)


def test_one_point_on_a_cell_returns_its_code() -> None:
    torch.manual_seed(0)
    memory = tokens((4, 6))
    for index in (0, 7, 23):
        _, code = attention()(torch.zeros(2, 1, DIM), centre(memory, index), memory)
        torch.testing.assert_close(code, memory.code[:, index : index + 1])


def test_content_and_code_are_sampled_at_the_same_points_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    operator = deformable.ms_deform_attn
    monkeypatch.setattr(deformable, "ms_deform_attn", lambda *args: calls.append(args) or operator(*args))
    torch.manual_seed(0)
    memory = tokens((4, 6), (2, 3), padded=2)
    attn = CoSamplingAttn(dim=DIM, num_heads=HEADS, num_levels=2, num_points=3)
    plain = MSDeformAttn(dim=DIM, num_heads=HEADS, num_levels=2, num_points=3)
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter)
    plain.load_state_dict(attn.state_dict())
    query, reference = torch.randn(2, 5, DIM), torch.rand(2, 5, 2, 4)
    content, _ = attn(query, reference, memory)
    (call,) = calls  # one call for both
    assert call[0].shape[-1] == (DIM + RANK) // HEADS
    alone = plain(query, reference, memory)
    torch.testing.assert_close(content, alone)
    assert all(torch.equal(a, b) for a, b in zip(calls[0][2:], calls[1][2:], strict=True))  # locations and weights


def test_without_offsets_a_token_keeps_its_own_code() -> None:
    torch.manual_seed(0)
    memory = tokens((3, 5))
    code = PositionCode(dim=DIM, rank=RANK)
    options: dict[str, Any] = {"dim": DIM, "num_heads": HEADS, "num_levels": 1, "num_points": 1}
    layer = HarmonizedEncoderLayer(**options, ffn_dim=16, dropout=0.0, attention=CoSamplingAttn)
    torch.nn.init.zeros_(layer.self_attn.sampling_offsets.bias)
    plain = {field.name: getattr(memory, field.name) for field in fields(Tokens)}
    out = HarmonizedEncoder([layer], code)(Tokens(**plain))
    torch.testing.assert_close(out.code, code.of_cells(memory))
    torch.testing.assert_close(out.position, code(code.of_cells(memory)) + memory.level_embed)


def test_padding_and_points_outside_contribute_nothing() -> None:
    torch.manual_seed(0)
    memory = tokens((4, 6), padded=3)
    attn = attention()
    attn.value_proj.bias.data.fill_(7.0)
    outside = torch.full((2, 1, 1, 2), 3.0)
    for reference in (centre(memory, 5), outside):
        content, code = attn(torch.zeros(2, 1, DIM), reference, memory)
        assert not code.any()
        torch.testing.assert_close(content, attn.output_proj(torch.zeros(2, 1, DIM)))


def scene(counts: tuple[int, ...] = (2, 0)) -> list[Target]:
    """Return one target per count, with that number of random boxes."""
    generator = torch.Generator().manual_seed(1)
    return [
        Target(
            labels=torch.randint(0, 3, (count,), generator=generator),
            boxes=torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        )
        for count in counts
    ]


def run(model: Any, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Return loss and gradients of one step."""
    torch.manual_seed(seed)
    images = torch.randn(2, 3, 64, 96)
    out = model.train()(images, None, scene())
    total = build_criterion(model.config)(out, scene()).total
    total.backward()
    return total.detach(), [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def test_with_standard_options_it_is_relation_detr_to_the_last_bit() -> None:
    parent = create_model("relation_detr_r50", **TINY)
    model = create_model("dape_r50", **TINY, sampling="standard", relation="full")
    model.load_state_dict(parent.state_dict())
    (ours, gradients), (theirs, expected) = run(model), run(parent)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


NEW_AT_ZERO = (
    {"sampling": "corrected"},
    {"sampling": "corrected", "sampling_in": "encoder"},
    {"sampling": "corrected", "sampling_in": "decoder"},
    {"sampling": "standard", "position_in_value": True},
)


@pytest.mark.parametrize("options", NEW_AT_ZERO, ids=str)
def test_what_starts_at_zero_starts_as_relation_detr(options: dict[str, Any]) -> None:
    """Equal loss, and equal gradients of all that Relation-DETR has: the new part is exactly zero, but is trained.

    Wider samples may be summed in another order, so gradients are equal up to rounding.
    """
    torch.manual_seed(0)
    parent = create_model("relation_detr_r50", **TINY)
    for name, parameter in parent.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):  # zero: blind to positions
            torch.nn.init.normal_(parameter, std=0.02)
    model = create_model("dape_r50", **TINY, relation="full", **options)
    missing, unexpected = model.load_state_dict(parent.state_dict(), strict=False)
    assert not unexpected
    assert all("encoder.code." in name or "value_position" in name for name in missing)
    (ours, _), (theirs, _) = run(model), run(parent)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    expected = dict(parent.named_parameters())
    new = {name: parameter for name, parameter in model.named_parameters() if name not in expected}
    for name, parameter in model.named_parameters():
        if name in expected and expected[name].grad is not None:
            scale = float(expected[name].grad.abs().max())
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5 * scale)
    assert any(parameter.grad.any() for parameter in new.values())


def test_a_correction_sees_only_what_was_sampled_from_elsewhere() -> None:
    torch.manual_seed(0)
    encoding = PositionCorrection(dim=DIM, rank=RANK)
    torch.nn.init.normal_(encoding.up.weight)
    memory = replace(tokens((4, 6)), encoding=encoding)
    assert torch.equal(encoding.token_positions(memory), memory.own_position)
    moved = replace(memory, code=memory.code + 1.0)
    torch.testing.assert_close(
        encoding.token_positions(moved) - memory.own_position, encoding.up.weight.sum(1).expand_as(memory.own_position)
    )
    position, boxes = torch.randn(2, 3, DIM), torch.rand(2, 3, 4)
    assert torch.equal(encoding.query_positions(position, boxes, encoding.of_boxes(boxes)), position)


def test_a_box_as_large_as_a_proposal_at_a_cell_has_the_code_of_that_cell() -> None:
    torch.manual_seed(0)
    memory = tokens((4, 6), (2, 3), padded=2)
    encoding = PositionCorrection(dim=DIM, rank=RANK)
    sides = (0.05 * 2.0 ** memory.levels())[None, :, None].expand(2, -1, 2)
    boxes = torch.cat((memory.centres(), sides), dim=-1)
    torch.testing.assert_close(encoding.of_boxes(boxes), encoding.of_cells(memory))


@pytest.mark.parametrize("residual", [1.0, 0.75, 0.0])
def test_the_residual_is_the_share_of_the_old_code(residual: float) -> None:
    torch.manual_seed(0)
    memory = tokens((3, 5))
    options: dict[str, Any] = {"dim": DIM, "num_heads": HEADS, "num_levels": 1, "num_points": 1}
    layer = HarmonizedEncoderLayer(**options, ffn_dim=16, dropout=0.0, code_residual=residual)
    reference = torch.rand(2, 15, 1, 2)
    _, sampled = layer.self_attn(memory.content + memory.position, reference, memory)
    expected = residual * memory.code + (1 - residual) * sampled
    torch.testing.assert_close(layer(memory, reference).code, expected)


@pytest.mark.parametrize("sampling", ["harmonized", "corrected"])
def test_codes_are_trained(sampling: str) -> None:
    torch.manual_seed(0)
    model = create_model("dape_r50", **TINY, sampling=sampling)
    for parameter in model.encoder.code.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    run(model)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.code"):
            assert parameter.grad is not None
            assert parameter.grad.any(), name


def boxes(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, number, 4, generator=generator) * 0.5 + 0.1


@pytest.mark.parametrize("rank", [2, 16])
def test_low_rank_attention_equals_attention_with_the_matrix_as_bias(rank: int) -> None:
    torch.manual_seed(0)
    relation = LowRankRelation(num_heads=HEADS, rank=rank)
    torch.nn.init.normal_(relation.target_proj.weight)
    q, k, v = torch.randn(3, 2, HEADS, 10, 8)
    blocked = torch.zeros(1, 1, 10, 10)
    blocked[..., :4, 4:] = -torch.inf
    source, target = boxes(10), boxes(10, 1)
    for mask in (None, blocked):
        matrix = relation(source, target)
        assert torch.linalg.matrix_rank(matrix.detach(), rtol=1e-5).max() <= rank
        matrix = matrix if mask is None else matrix + mask
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=matrix)
        torch.testing.assert_close(relation.bias(source, target, mask).attend(q, k, v, 0.0), expected)


def test_low_rank_relation_starts_at_zero() -> None:
    relation = LowRankRelation(num_heads=HEADS, rank=4)
    assert not relation(boxes(5), boxes(5, 1)).any()


def test_full_relation_in_steps_of_rows_is_the_same() -> None:
    """A few rows at a time: equal up to rounding, and nothing of size N² is kept."""
    torch.manual_seed(0)
    relation = PositionRelation(num_heads=HEADS)
    q, k, v = (tensor.requires_grad_() for tensor in torch.randn(3, 2, HEADS, 50, 8))
    blocked = torch.zeros(1, 1, 50, 50)
    blocked[..., 20:, :20] = -torch.inf
    results = []
    for rows in (None, 16):
        relation.rows = rows
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            out = relation.bias(boxes(50), boxes(50, 1), blocked).attend(q, k, v, 0.0)
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v, *relation.parameters()))
        results.append((out, gradients, sum(size for size in kept if size >= 2 * 50 * 50)))
    (whole, expected, much), (parts, found, little) = results
    # products of other shapes are summed in another order: a few rounding errors of 6e-8 of the largest entry
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6 * float(whole.detach().abs().max()))
    assert much > 0
    assert little == 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


OPTIONS = {
    "sampling": ("standard", "harmonized", "corrected"),
    "sampling_in": ("both", "encoder", "decoder"),
    "relation": ("none", "full", "low_rank"),
    "query_content": ("static", "sampled", "static+sampled"),
    "position_in_value": (False, True),
}


COMBINATIONS = [dict(zip(OPTIONS, chosen, strict=True)) for chosen in itertools.product(*OPTIONS.values())]
COMBINATIONS = [
    options for options in COMBINATIONS if options["sampling"] != "standard" or options["sampling_in"] == "both"
]
SOME = random.Random(3).sample(COMBINATIONS, 6)
NAMED = {"ids": lambda options: "-".join(map(str, options.values()))}


def train(model: Any, *, steps: int, bf16: bool) -> None:
    """Train on random images; losses stay finite and every parameter has a gradient."""
    criterion, optimizer = build_criterion(model.config), torch.optim.AdamW(model.parameters(), 1e-4)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model.train()(torch.randn(2, 3, 64, 64), None, scene())
        total = criterion(out, scene()).total
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()


def test_the_draw_has_every_value() -> None:
    for option, values in OPTIONS.items():
        assert {options[option] for options in SOME} == set(values)


@pytest.mark.parametrize(
    "options", [pytest.param(x, marks=() if x in SOME else pytest.mark.slow) for x in COMBINATIONS], **NAMED
)
def test_every_combination_trains_saves_loads_and_predicts(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("dape_r50", **TINY, **options)
    for bf16 in (False, True):
        train(model, steps=2, bf16=bf16)
    again = detrkit.load(detrkit.save(model, tmp_path / "model.safetensors"))
    assert again.config == model.config
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images).boxes, model.eval()(images).boxes)
    found = detrkit.Predictor(again).predict(Image.new("RGB", (90, 60)), threshold=0.0)
    assert len(found) > 0
    assert found.boxes.shape == (len(found), 4)


@pytest.mark.slow
@pytest.mark.parametrize("options", COMBINATIONS, **NAMED)
@pytest.mark.parametrize("bf16", [False, True])
def test_every_combination_stays_finite_for_20_iterations(options: dict[str, Any], bf16: bool) -> None:
    torch.manual_seed(0)
    train(create_model("dape_r50", **TINY, **options), steps=20, bf16=bf16)


@pytest.mark.parametrize(
    ("option", "value"), [("sampling", "both"), ("query_content", "none"), ("relation_rank", 0), ("relation", "half")]
)
def test_wrong_values_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        create_model("dape_r50", **{**TINY, option: value})
