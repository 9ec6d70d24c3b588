"""Attention with a relation inside the kernel: against double precision and the row-wise form, in Triton's interpreter.

See ``tests/ops/test_ms_deform_attn_triton.py`` about the interpreter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.errors import DetrkitError
from detrkit.nn.relation import FullRelation, PositionRelation, relation_trial
from detrkit.ops.on_gpu import LAUNCHES, failure_of
from tests.ops.kernels import triton_device

kernels: Any = pytest.importorskip("detrkit.ops.relation_attention_triton")
DEVICE = triton_device()
RUNS = {"relation_attention forward", "relation_attention backward"}


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_BACKEND", "triton")
    if DEVICE != "cpu":  # the trial before the first use launches kernels too
        assert failure_of("relation_attention", relation_trial, torch.empty(0, device=DEVICE).device) is None


@dataclass(frozen=True)
class Setting:
    """A call of attention with a relation."""

    queries: int
    images: int = 1
    heads: int = 2
    width: int = 8
    features: int = 16
    masks: int = 0
    """Masks: none, one for all images, or one each."""
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def inputs(self) -> tuple[FullRelation, list[Tensor]]:
        """The relation; q, k and v. Queries are of two groups that do not see each other, but for the last query."""
        torch.manual_seed(self.seed)
        module = PositionRelation(num_heads=self.heads, features=self.features, rows=5)
        source, target = (torch.rand(self.images, self.queries, 4) * 0.8 + 0.002 for _ in range(2))
        source[:, 0, 2:] = 1e-4  # a tiny box: the largest angles
        blocked = None
        if self.masks:
            group = torch.rand(self.masks, self.queries, 1) < 0.5
            seen = (group == group.mT) | (torch.arange(self.queries) == self.queries - 1)
            blocked = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)[:, None].to(DEVICE)
        states = [torch.randn(self.images, self.queries, self.heads, self.width).transpose(1, 2) for _ in range(3)]
        relation = module.to(DEVICE).bias(source.to(DEVICE), target.to(DEVICE), blocked)
        return relation, [state.to(DEVICE, self.dtype).requires_grad_() for state in states]


def exact(relation: FullRelation, states: list[Tensor], outer: Tensor) -> list[Tensor]:
    """Output and gradients in double precision, the relation of the boxes too."""
    assert isinstance(relation.relation, PositionRelation)
    q, k, v = (x.detach().cpu().double().requires_grad_() for x in states)
    weight, bias = (p.detach().cpu().double().requires_grad_() for p in relation.relation.parameters())
    a, b = relation.source.cpu().double()[:, :, None], relation.target.cpu().double()[:, None]
    size = a[..., 2:] + 1e-5
    ratios = torch.cat(((a[..., :2] - b[..., :2]).abs() / size + 1, size / (b[..., 2:] + 1e-5)), dim=-1).log() * 100
    features = relation.relation.features
    angles = ratios[..., None] / 10000 ** (torch.arange(0, features, 2).double() / features)
    embedded = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(3)
    logits = q @ k.mT / q.shape[-1] ** 0.5
    logits = logits + torch.relu(embedded @ weight.flatten(1).mT + bias).permute(0, 3, 1, 2)
    if relation.blocked is not None:
        logits = logits + relation.blocked.cpu().double()
    out = logits.softmax(-1) @ v
    return [out.detach(), *torch.autograd.grad(out, (q, k, v, weight, bias), outer.cpu().double())]


def compare(setting: Setting) -> None:
    """Output and gradients against double precision; the kernels must have run."""
    relation, states = setting.inputs()
    assert isinstance(relation.relation, PositionRelation)
    before = dict(LAUNCHES)
    out = relation.attend(*states, 0.0)
    assert out.dtype == setting.dtype
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    found = [out, *torch.autograd.grad(out, [*states, *relation.relation.parameters()], outer)]
    assert {name for name in RUNS if LAUNCHES[name] == before.get(name, 0) + 1} == RUNS
    limit = 3e-2 if setting.dtype == torch.bfloat16 else 1e-4
    names = ("output", "q", "k", "v", "weight", "bias")
    for name, one, right in zip(names, found, exact(relation, states, outer), strict=True):
        assert one.shape == right.shape, name
        largest = max(1.0, float(right.abs().max()))
        torch.testing.assert_close(
            one.cpu().double(), right, atol=limit * largest, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


settings_of_calls = st.builds(
    Setting,
    queries=st.integers(1, 20),
    images=st.integers(1, 2),
    heads=st.integers(1, 8),
    width=st.integers(1, 33),
    features=st.sampled_from([4, 16]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
)


@given(settings_of_calls)
@settings(max_examples=3)
@example(Setting(queries=33, heads=8, width=32, masks=1))
@example(Setting(queries=17, images=2, heads=3, width=24, masks=2, dtype=torch.bfloat16))
@example(Setting(queries=17, images=2, heads=3, width=28, features=4, dtype=torch.bfloat16, seed=13728))
def test_any_shape(setting: Setting) -> None:
    compare(replace(setting, masks=setting.masks or setting.seed % (setting.images + 1)))


@pytest.mark.slow
@given(settings_of_calls)
@settings(max_examples=200)
def test_many_shapes(setting: Setting) -> None:
    compare(replace(setting, masks=setting.seed % (setting.images + 1)))


def test_equals_the_row_wise_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the row-wise form's map, a convolution
    relation, states = Setting(queries=19, heads=4, masks=1).inputs()
    assert isinstance(relation.relation, PositionRelation)
    leaves = [*states, *relation.relation.parameters()]
    results = []
    for backend in ("triton", "reference"):
        monkeypatch.setenv("DETRKIT_BACKEND", backend)
        before = LAUNCHES["relation_attention forward"]
        out = relation.attend(*states, 0.0)
        assert LAUNCHES["relation_attention forward"] - before == (backend == "triton")
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(*results, atol=2e-4, rtol=2e-4)


def test_nothing_of_all_pairs_is_kept() -> None:
    relation, states = Setting(queries=40, heads=8, width=4).inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        relation.attend(*states, 0.0)
    assert kept
    assert max(kept) < 40 * 40


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    relation, states = Setting(queries=3).inputs()
    blocked = torch.zeros(1, 1, 3, 3, device=DEVICE)
    blocked[..., 1, :] = -math.inf
    out = replace(relation, blocked=blocked).attend(*states, 0.0)
    assert not out[:, :, 1].any()
    gradients = torch.autograd.grad(out.sum(), states)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_compile() -> None:
    relation, states = Setting(queries=5).inputs()
    compiled = torch.compile(lambda q, k, v: relation.attend(q, k, v, 0.0), backend="aot_eager", fullgraph=True)
    found, right = compiled(*states), relation.attend(*states, 0.0)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), states), torch.autograd.grad(right.sum(), states))


@pytest.mark.parametrize(
    ("setting", "dropout", "message"),
    [
        (Setting(queries=2), 0.1, "no dropout, not 0.1"),
        (Setting(queries=2, width=65), 0.0, "up to 16 heads of 64 channels, not 2 of 65"),
        (Setting(queries=2, features=12), 0.0, "a power of two, at least 4, of features per log-ratio, not 12"),
        (Setting(queries=2, dtype=torch.float64), 0.0, "floats of 16 and 32 bits, not float64"),
    ],
    ids=["dropout", "width", "features", "dtype"],
)
def test_declined_calls(setting: Setting, dropout: float, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced, they are an error; else the row-wise form takes them."""
    relation, states = setting.inputs()
    with pytest.raises(DetrkitError, match=f"DETRKIT_BACKEND=triton is impossible: relation_attention takes {message}"):
        relation.attend(*states, dropout)
    monkeypatch.delenv("DETRKIT_BACKEND")
    assert relation.attend(*states, dropout).shape == states[0].shape


def test_the_trial_before_the_first_use_passes() -> None:
    before = torch.get_rng_state()
    assert relation_trial(torch.device(DEVICE)) < 1
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trial_notices_a_relation_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = kernels.launch_relation_forward

    def off(*arguments: Any) -> Any:
        return forward(*arguments[:-2], arguments[-2] * 1.001, arguments[-1])  # the scale of the log-ratios

    monkeypatch.setattr(kernels, "launch_relation_forward", off)
    assert relation_trial(torch.device(DEVICE)) > 1
