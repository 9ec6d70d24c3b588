"""Deformable attention in Triton: against the definition in double precision, with any shapes, types and positions.

Without a GPU the kernels run in Triton's interpreter, which `tests/conftest.py` asks for before Triton is imported.
With one (``TRITON_INTERPRET=0``), the same tests run on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.errors import DetrkitError
from detrkit.ops.ms_deform_attn import BACKENDS, chosen_backend, ms_deform_attn, sampling_trial
from detrkit.ops.on_gpu import LAUNCHES, failure_of, worst_error
from tests.ops.kernels import triton_device

kernels: Any = pytest.importorskip("detrkit.ops.ms_deform_attn_triton")
DEVICE = triton_device()
RUNS = {"ms_deform_attn forward", "ms_deform_attn backward"}


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_BACKEND", "triton")
    if DEVICE != "cpu":  # the trial before the first use launches kernels too
        assert failure_of("ms_deform_attn", sampling_trial, torch.empty(0, device=DEVICE).device) is None


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(math.nan))


@dataclass(frozen=True)
class Setting:
    """A call of the operator."""

    shapes: tuple[tuple[int, int], ...]
    images: int = 1
    queries: int = 3
    heads: int = 1
    width: int = 8
    points: int = 1
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def inputs(self) -> tuple[Tensor, list[list[int]], Tensor, Tensor]:
        """value, shapes, locations, weights. Locations reach outside; none is close to a line between cells, where the
        gradient of a location jumps."""
        draw = torch.Generator().manual_seed(self.seed)
        tokens = sum(height * width for height, width in self.shapes)
        value = torch.randn(self.images, tokens, self.heads, self.width, generator=draw)
        size = torch.tensor([[w, h] for h, w in self.shapes])[:, None]
        samples = (self.images, self.queries, self.heads, len(self.shapes), self.points)
        cell = (torch.rand(*samples, 2, generator=draw) * (size + 3)).floor() - 2
        share = torch.rand(*samples, 2, generator=draw) * 0.9 + 0.05
        locations = (cell + share + 0.5) / size.clamp(min=1)
        weights = torch.rand(*samples, generator=draw)
        return value.to(DEVICE, self.dtype), [*map(list, self.shapes)], locations.to(DEVICE), weights.to(DEVICE)


def expected(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor, outer: Tensor) -> list[Tensor]:
    """Output and gradients by the definition, in double precision on the CPU."""
    value, locations, weights = (x.detach().cpu().double().requires_grad_() for x in (value, locations, weights))
    parts, start = [], 0
    for level, (height, width) in enumerate(shapes):
        maps = value[:, start : start + height * width].unflatten(1, (height, width))
        x = locations[..., level, :, 0] * width - 0.5  # (B, Q, H, P)
        y = locations[..., level, :, 1] * height - 0.5
        for row, across in ((y.floor(), 1 - (y - y.floor())), (y.floor() + 1, y - y.floor())):
            for column, along in ((x.floor(), 1 - (x - x.floor())), (x.floor() + 1, x - x.floor())):
                there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                if height * width == 0:
                    continue
                image = torch.arange(len(value)).view(-1, 1, 1, 1)
                head = torch.arange(value.shape[2]).view(-1, 1)
                at = (image, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long(), head)
                parts.append(maps[at] * (across * along * weights[..., level, :] * there)[..., None])
        start += height * width
    mixed = sum((part.sum(3) for part in parts), torch.zeros((*weights.shape[:3], value.shape[-1])).double())
    out = mixed.flatten(2)
    leaves = (value, locations, weights)
    if not out.requires_grad:
        return [out, *map(torch.zeros_like, leaves)]
    return [out.detach(), *torch.autograd.grad(out, leaves, outer.cpu().double())]


def compare(setting: Setting) -> None:
    """Output and gradients of a call against double precision; the kernels must have run."""
    value, shapes, locations, weights = setting.inputs()
    half = setting.dtype != torch.float32
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    before = dict(LAUNCHES)
    out = ms_deform_attn(leaves[0], torch.tensor(shapes), *leaves[1:])
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    found = [out, *torch.autograd.grad(out, leaves, outer)]
    if out.numel():
        assert {name for name in RUNS if LAUNCHES[name] > before.get(name, 0)} == RUNS
    names = ("output", "value", "locations", "weights")
    for name, one, exact in zip(names, found, expected(value, shapes, locations, weights, outer), strict=True):
        assert one.shape == exact.shape, name
        limit = 2e-2 if half else 1e-5 if name == "output" else 1e-4
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        assert one.isfinite().all(), name
        torch.testing.assert_close(
            one.cpu().double(), exact, atol=limit * max(largest, 1.0), rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


side = st.integers(1, 5)
settings_of_calls = st.builds(
    Setting,
    shapes=st.lists(st.tuples(side, side), min_size=1, max_size=3).map(tuple),
    images=st.integers(1, 2),
    queries=st.integers(1, 9),
    heads=st.integers(1, 2),
    width=st.integers(1, 40) | st.sampled_from([32, 34, 48, 64, 80, 128]),
    points=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
FIVE = ((3, 4), (2, 2), (1, 3), (2, 1), (1, 1))


@given(settings_of_calls)
@settings(max_examples=12)
@example(Setting(shapes=FIVE, width=128, heads=1, queries=2))
@example(Setting(shapes=((3, 2),), points=8, width=34, dtype=torch.bfloat16))
@example(Setting(shapes=((0, 4), (2, 3), (3, 0)), width=16))
@example(Setting(shapes=((2, 2),), queries=67, width=8))
def test_any_shape(setting: Setting) -> None:
    compare(setting)


@pytest.mark.slow
@given(settings_of_calls)
@settings(max_examples=250)
def test_many_shapes(setting: Setting) -> None:
    compare(setting)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shapes", [((2, 3), (1, 1)), ((0, 2),)], ids=["levels", "no cells"])
def test_every_output_is_written(shapes: tuple[tuple[int, int], ...]) -> None:
    compare(Setting(shapes=shapes, queries=5, points=2, width=6))


def test_gradients_in_double_precision() -> None:
    value, shapes, locations, weights = Setting(shapes=((2, 3), (1, 2)), queries=2, width=3).inputs()
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, torch.tensor(shapes), x, w), leaves, eps=1e-6, atol=1e-6, rtol=1e-5
    )


def test_strided_tensors() -> None:
    value, shapes, locations, weights = Setting(shapes=((3, 2),), queries=4, heads=2, points=2, width=8).inputs()
    plain = ms_deform_attn(value, shapes, locations, weights)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (value, locations, weights)]
    assert not any(x.is_contiguous() for x in strided)
    leaves = [x.requires_grad_() for x in strided]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    assert torch.equal(out, plain)
    expanded = torch.ones((), device=DEVICE).expand_as(out)
    found = torch.autograd.grad(out, leaves, expanded)
    for one, exact in zip(found, expected(value, shapes, locations, weights, expanded)[1:], strict=True):
        torch.testing.assert_close(one.cpu().double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("location", [-math.inf, -1e9, -1.0, 2.0, 1e9, math.inf])
def test_far_outside_there_is_nothing(location: float) -> None:
    value, shapes, locations, weights = Setting(shapes=((3, 2),), queries=2).inputs()
    leaves = [x.requires_grad_() for x in (value, torch.full_like(locations, location), weights)]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), leaves))


def test_a_location_that_is_no_number_stays_in_its_own_output() -> None:
    value, shapes, locations, weights = Setting(shapes=((3, 2),), queries=3, heads=2).inputs()
    locations[0, 0, 0] = math.nan
    out = ms_deform_attn(value, shapes, locations, weights)
    assert out[0, 0, :8].isnan().all()
    assert out[0, 0, 8:].isfinite().all()
    assert out[0, 1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_gradients_of_values(dtype: torch.dtype) -> None:
    """Sums of scaled integers: as exact as those of floats, and the same for any order of queries."""
    setting = Setting(shapes=((2, 2),), queries=40, points=2, dtype=dtype)
    value, shapes, locations, weights = setting.inputs()
    outer = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype) * 1e-3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.use_deterministic_algorithms(True)
    try:
        found = kernels.launch_backward(outer, value, shapes, locations, weights)
        again = kernels.launch_backward(outer[:, order], value, shapes, locations[:, order], weights[:, order])
        broken = kernels.launch_backward(outer * math.inf, value, shapes, locations, weights)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], again[0])
    assert broken[0].isnan().all()
    exact = expected(value, shapes, locations, weights, outer)
    torch.testing.assert_close(
        found[0].cpu().double(), exact[1], atol=1e-8, rtol=1e-6 if dtype == torch.float32 else 8e-3
    )
    for one, other in zip(found[1:], exact[2:], strict=True):
        torch.testing.assert_close(one.cpu().double(), other, atol=1e-6, rtol=1e-4)


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for large tensors, on a small one."""
    constants = kernels._constants
    monkeypatch.setattr(kernels, "_constants", lambda *a: constants(*a) | {"INDEX": kernels.tl.int64})
    compare(Setting(shapes=((3, 2), (2, 2)), queries=5, heads=2, points=2))


def test_autocast_and_compile() -> None:
    value, shapes, locations, weights = Setting(shapes=((3, 2),), queries=3, heads=2).inputs()
    sizes = torch.tensor(shapes)

    def block(value: Tensor) -> Tensor:
        return ms_deform_attn(value @ torch.eye(8, device=DEVICE), sizes, locations, weights)

    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert block(value).dtype == torch.bfloat16
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    leaf = value.requires_grad_()
    before = LAUNCHES["ms_deform_attn backward"]
    (gradient,) = torch.autograd.grad(compiled(leaf).sum(), leaf)
    assert LAUNCHES["ms_deform_attn backward"] == before + 1
    torch.testing.assert_close(gradient, torch.autograd.grad(block(leaf).sum(), leaf)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 129}, "heads of 1 to 128 channels, not 129"),
        ({"points": 9}, "up to 5 levels of 8 points, not 1 of 9"),
        ({"shapes": ((1, 1),) * 6}, "not 6 of 1"),
    ],
    ids=["width", "points", "levels"],
)
def test_declined_shapes(change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced, they are an error; else the reference takes them."""
    arguments = Setting(**({"shapes": ((2, 2),)} | change)).inputs()
    with pytest.raises(DetrkitError, match=f"DETRKIT_BACKEND=triton is impossible: .*{message}"):
        ms_deform_attn(*arguments)
    monkeypatch.delenv("DETRKIT_BACKEND")
    monkeypatch.setattr("detrkit.ops.on_gpu.backend_on", lambda device, written: "triton")
    assert chosen_backend(*arguments) == "reference"
    torch.testing.assert_close(ms_deform_attn(*arguments), BACKENDS["reference"].forward(*arguments))


def test_forced_backends_run(monkeypatch: pytest.MonkeyPatch) -> None:
    value, shapes, locations, weights = (
        x.cpu() if isinstance(x, Tensor) else x for x in Setting(shapes=((2, 2),)).inputs()
    )
    before = LAUNCHES["ms_deform_attn forward"]
    results = {}
    for name in ("reference", "cpu"):
        monkeypatch.setenv("DETRKIT_BACKEND", name)
        results[name] = ms_deform_attn(value, shapes, locations, weights)
    torch.testing.assert_close(results["cpu"], results["reference"])
    assert LAUNCHES["ms_deform_attn forward"] == before
    monkeypatch.setenv("DETRKIT_BACKEND", "tritn")
    with pytest.raises(
        DetrkitError, match=r"DETRKIT_BACKEND=tritn: there is no such backend\. Did you mean 'triton'\?"
    ):
        ms_deform_attn(value, shapes, locations, weights)


def test_the_trial_before_the_first_use_passes() -> None:
    assert sampling_trial(torch.device(DEVICE)) < 1


def test_kernels_that_fail_their_trial_are_not_used() -> None:
    """Wrong numbers, NaN, or an exception of Triton: one warning with the reason."""

    def broken(device: torch.device) -> float:
        raise RuntimeError("ptxas: no such GPU\nmore")

    trials = {"wrong here": lambda _: 7.0, "inf times": lambda _: math.inf, "ptxas: no such GPU": broken}
    for expected, trial in trials.items():
        with pytest.warns(UserWarning, match=expected):
            assert failure_of("ms_deform_attn", trial, torch.device(DEVICE)) is not None
    assert failure_of("ms_deform_attn", lambda _: 0.5, torch.device(DEVICE)) is None
    one = torch.ones(3)
    assert worst_error([(one, one), (one * math.nan, one)], 1e-3) == math.inf
    assert worst_error([(one * 1.001, one)], 1e-3) == pytest.approx(1.0, rel=1e-3)
