"""Multi-scale deformable attention: against recorded values, against a loop in double precision, as an operator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detrkit.ops  # noqa: F401  registers the operator
from detrkit.ops.ms_deform_attn import BACKENDS, active_backend, ms_deform_attn, reference
from tests.golden.harness import Case

SHAPES = [(5, 7), (3, 2)]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(2, tokens, 3, 4, generator=generator, dtype=dtype)
    locations = torch.rand(2, 6, 3, 2, 5, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 6, 3, 2, 5, generator=generator, dtype=dtype)
    return value, torch.tensor(SHAPES), locations, weights


def by_loop(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition as a loop over samples and corners."""
    batch, _, heads, dim = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, dim, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape)).tolist():
        b, q, h, level, _ = index
        height, width = SHAPES[level]
        start = sum(a * c for a, c in SHAPES[:level])
        x, y = (locations[tuple(index)].double() * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column)) * float(weights[tuple(index)])
                    out[b, q, h] += share * value[b, start + row * width + column, h].double()
    return out.flatten(2)


def test_equals_the_definition() -> None:
    value, shapes, locations, weights = inputs()
    out = ms_deform_attn(value, shapes, locations, weights)
    torch.testing.assert_close(out.double(), by_loop(value, locations, weights), atol=1e-5, rtol=1e-5)


def test_values_and_gradients_equal_the_recording(shared: Path, golden_count: dict[str, Any]) -> None:
    case = Case.read(shared, "op_ms_deform_attn", golden_count)
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (case.tensors[f"core.{name}"].clone().requires_grad_() for name in names)
    out = torch.ops.detrkit.ms_deform_attn(value, case.tensors["core.spatial_shapes"], locations, weights)
    case.close("core.output", out)
    out.backward(case.tensors["core.grad_output"])
    for name, tensor in zip(names, (value, locations, weights), strict=True):
        assert tensor.grad is not None
        expected = case.tensors[f"core.grad_{name}"]  # sums up to 35, hence also a relative tolerance
        case.match(f"core.grad_{name}", tensor.grad, expected, atol=case.tolerance(), rtol=case.tolerance())


def test_is_a_proper_operator() -> None:
    """The checks of torch: schema, fake shapes, autograd registration, ahead-of-time autograd."""
    value, shapes, locations, weights = inputs()
    arguments = (value.requires_grad_(), shapes, locations.requires_grad_(), weights.requires_grad_())
    torch.library.opcheck(torch.ops.detrkit.ms_deform_attn.default, arguments)
    strided = value.detach().transpose(0, 1).contiguous().transpose(0, 1)  # not the strides of the gradients
    backward = (torch.randn(2, 6, 12), strided, *(tensor.detach() for tensor in arguments[1:]))
    torch.library.opcheck(
        torch.ops.detrkit.ms_deform_attn_backward.default, backward, test_utils=("test_schema", "test_faketensor")
    )


def test_export_keeps_one_node() -> None:
    class Block(torch.nn.Module):
        def forward(self, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value * 2, shapes, locations, weights)

    arguments = inputs()
    program = torch.export.export(Block(), arguments)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "detrkit.ms_deform_attn.default" in called
    torch.testing.assert_close(program.module()(*arguments), Block()(*arguments))


def test_gradients_equal_those_of_plain_autograd() -> None:
    value, _, locations, weights = inputs()
    value, locations, weights = value[:1, :, :1, :2], locations[:1, :2, :1], weights[:1, :2, :1]
    out, expected = [], []
    for function, shapes in ((ms_deform_attn, torch.tensor(SHAPES)), (reference, SHAPES)):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        function(leaves[0], shapes, leaves[1], leaves[2]).square().sum().backward()
        (out if function is ms_deform_attn else expected).extend(leaf.grad for leaf in leaves)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_with_exact_locations(dtype: torch.dtype) -> None:
    value, shapes, locations, weights = inputs()
    out = ms_deform_attn(value.to(dtype), shapes, locations, weights)
    assert out.dtype == dtype
    expected = ms_deform_attn(value.to(dtype).float(), shapes, locations, weights)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=1e-2)


def test_extreme_locations_give_zeros_and_do_not_crash() -> None:
    value, shapes, locations, weights = inputs()
    for location in (-1e9, 1e9):
        out = ms_deform_attn(value, shapes, torch.full_like(locations, location), weights)
        assert not out.any()


def test_inconsistent_shapes_are_named() -> None:
    value, shapes, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"41 tokens, the spatial shapes \[\[5, 7\], \[3, 3\]\] need 44"):
        ms_deform_attn(value, torch.tensor([[5, 7], [3, 3]]), locations, weights)
    with pytest.raises(ValueError, match="must be"):
        ms_deform_attn(value, shapes, locations, weights[:, :, :, :1])
    with pytest.raises(ValueError, match=r"must be \(2, Q, 3, 2, P, 2\)"):
        ms_deform_attn(value, shapes, locations[:1], weights[:1])
    with pytest.raises(ValueError, match=r"must be \(2, Q, 3, 2, P, 2\)"):
        ms_deform_attn(value, shapes, locations[:, :, :2], weights[:, :, :2])


def test_every_device_has_an_implementation() -> None:
    assert active_backend("cpu") == "cpu"
    assert active_backend("mps") == "reference"


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_the_cpu_implementation_equals_the_reference(spread: float) -> None:
    """Values and gradients, with most samples inside the levels or most outside."""
    value, _, locations, weights = inputs()
    locations = (locations - 0.5) * spread + 0.5
    found = BACKENDS["cpu"].forward(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, reference(value, SHAPES, locations, weights))
    outer = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (
        BACKENDS[name].backward(outer, value, SHAPES, locations, weights) for name in ("cpu", "reference")
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_on_the_border_of_a_level() -> None:
    """Samples at the centre of the last cell, between it and the border, and outside."""
    value, shapes = torch.ones(1, 4, 1, 1), torch.tensor([[2, 2]])
    at = torch.tensor([-0.25, 0.0, 0.25, 0.75, 1.0, 1.25])
    locations = torch.stack((at, torch.full_like(at, 0.5)), dim=-1).view(1, -1, 1, 1, 1, 2)
    out = ms_deform_attn(value, shapes, locations, torch.ones(1, 6, 1, 1, 1))
    assert out.flatten().tolist() == [0, 0.5, 1, 1, 0.5, 0]


def test_nan_locations_give_nan_only_in_their_own_outputs() -> None:
    value, shapes, locations, weights = inputs()
    locations[0, 0, 0, 0, 0, 0] = math.nan
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    assert out[0, 0, :4].isnan().all()
    assert out[1].isfinite().all()
    assert out[0, 1:].isfinite().all()
    out[1].sum().backward()


@pytest.mark.parametrize("name", BACKENDS)
def test_no_queries_and_no_images(name: str) -> None:
    value, _, locations, weights = inputs()
    for images, queries in ((2, 0), (0, 6)):
        arguments = value[:images], SHAPES, locations[:images, :queries], weights[:images, :queries]
        out = BACKENDS[name].forward(*arguments)
        assert out.shape == (images, queries, 12)
        gradients = BACKENDS[name].backward(out, *arguments)
        assert [tuple(g.shape) for g in gradients] == [tuple(arguments[index].shape) for index in (0, 2, 3)]
