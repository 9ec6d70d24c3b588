"""Forms of dropout for a CPU: the numbers and random draws of torch, and less kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.attention_dropout import attend_with_dropout
from detrkit.ops.dropout import add_dropout, relu_dropout

RATE = 0.3


def mask() -> Tensor:
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[1, ..., 5:] = False
    return seen


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "relu": (
        lambda x: relu_dropout(x * 1, RATE),
        lambda x: F.dropout(F.relu(x), RATE),
        [(3, 5, 8)],
    ),
    "add": (
        lambda x, y: add_dropout(x, y, RATE),
        lambda x, y: x + F.dropout(y, RATE),
        [(3, 5, 8), (3, 5, 8)],
    ),
    "attention": (
        lambda q, k, v: attend_with_dropout(q, k, v, None, RATE),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=RATE),
        [(2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)],
    ),
    "masked attention": (
        lambda q, k, v: attend_with_dropout(q, k, v, mask(), RATE),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask(), dropout_p=RATE),
        [(2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)],
    ),
}


def run(form: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    output = form(*inputs)
    after = torch.rand(1)
    return output.detach(), after, *torch.autograd.grad(output.square().sum(), inputs)


@pytest.mark.parametrize("name", FORMS)
def test_values_gradients_and_random_numbers_are_those_of_torch(name: str) -> None:
    ours, expected, shapes = FORMS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for found, wanted in zip(run(ours, inputs), run(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    assert any((gradient == 0).any() for gradient in run(ours, inputs)[2:]) or "attention" in name


@pytest.mark.parametrize("name", FORMS)
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    ours, expected, shapes = FORMS[name]

    def kept(form: Callable[..., Tensor]) -> int:
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = form(*inputs)
        assert output.requires_grad
        return sum(sizes.values())

    assert kept(ours) < kept(expected)


def test_a_relu_without_dropout_is_the_plain_one() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    assert torch.equal(relu_dropout(x, 0.0), F.relu(x))
    assert torch.equal(add_dropout(x, x, 0.0), x + x)
