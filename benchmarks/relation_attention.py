"""Attention with the full relation: the fused kernel, the row-wise form, the published form and rank 16, in one run.

    python benchmarks/relation_attention.py [--device cuda] [--queries 1100] [--dtypes bf16 fp32] [--json FILE]

One decoder layer, forward and backward: seconds, memory that autograd keeps, peak memory, and the largest difference of
an output or gradient from those in double precision, relative to the largest value. The fused kernel's may be at most
twice that of the row-wise form.
DETRKIT_BACKEND=triton TRITON_INTERPRET=1 tries the kernel on a CPU, without meaningful times (--queries 20).
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measuring import MIB, peak_mib, save_rows, timed, with_saved_bytes
from published_forms import publish_relation
from relation import DIM, HEADS, boxes, mask
from torch import Tensor

from detrkit.backends import BACKEND_VARIABLE
from detrkit.nn.relation import LowRankRelation, PositionRelation
from detrkit.ops.on_gpu import LAUNCHES

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SMALL = 1e-4  # differences that need no comparison


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run with ``DETRKIT_BACKEND``."""
    before = os.environ.get(BACKEND_VARIABLE)
    os.environ[BACKEND_VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[BACKEND_VARIABLE]
        else:
            os.environ[BACKEND_VARIABLE] = before


def forms(device: str) -> dict[str, tuple[str, Any]]:
    """Name -> backend and relation, all full ones with the same weights."""
    torch.manual_seed(0)
    rows = PositionRelation(num_heads=HEADS).to(device)
    published = publish_relation(PositionRelation(num_heads=HEADS).to(device))
    published.load_state_dict(rows.state_dict())
    rank = LowRankRelation(num_heads=HEADS, rank=16).to(device)
    torch.nn.init.normal_(rank.target_proj.weight, std=0.02)
    return {
        "fused": ("triton", rows),
        "row-wise": ("reference", rows),
        "published": ("reference", published),
        "rank 16": ("reference", rank),
    }


def exact(
    relation: Any, states: tuple[Tensor, ...], source: Tensor, target: Tensor, blocked: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of the published form with the same numbers in double precision."""
    double = copy.deepcopy(relation).double()
    double.rows = None
    leaves = [state.detach().double().requires_grad_() for state in states]
    out = double.bias(source, target, blocked.double()).attend(*leaves, 0.0)
    return out.detach(), *torch.autograd.grad(out.square().sum(), (*leaves, *double.parameters()))


def measure(dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per form."""
    device, images, number = options.device, options.images, options.queries
    torch.manual_seed(1)
    shape = (images, HEADS, number, DIM // HEADS)
    q, k, v = (torch.randn(shape, device=device).to(DTYPES[dtype]).requires_grad_() for _ in range(3))
    source, target = (boxes(number, device, seed).expand(images, -1, -1) for seed in (1, 2))
    blocked = mask(number, device)
    rows: list[dict[str, Any]] = []
    expected: tuple[Tensor, ...] = ()
    results: dict[str, tuple[Tensor, ...]] = {}
    for name, (backend, relation) in forms(device).items():
        leaves = (q, k, v, *relation.parameters())

        def attend(relation: Any = relation) -> Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
                return relation.bias(source, target, blocked).attend(q, k, v, 0.0)

        def step(attend: Callable[[], Tensor] = attend, leaves: tuple[Tensor, ...] = leaves) -> tuple[Tensor, ...]:
            out = attend()
            return out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)

        with forced(backend):
            if name == "row-wise":
                expected = exact(relation, (q, k, v), source, target, blocked)
            if name != "rank 16":
                results[name] = step()
            _, kept = with_saved_bytes(attend)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with torch.no_grad():
                forward = timed(attend, device, options.repeats, min(1, options.repeats - 1))
            both = timed(step, device, options.repeats, min(1, options.repeats - 1))
            row = {"form": name, "dtype": dtype, "images": images, "queries": number, "forward_s": forward}
            rows.append(row | {"both_s": both, "kept_MiB": kept / MIB, "peak_MiB": peak_mib(device)})
    errors = {
        name: max(
            float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, expected, strict=True)
        )
        for name, found in results.items()
    }
    if errors["fused"] > max(SMALL, 2 * errors["row-wise"]):
        raise RuntimeError(f"differences from double precision: {errors}")
    for row in rows:
        row["error"] = errors.get(row["form"])
        row["time_of_row_wise"] = row["both_s"] / rows[1]["both_s"]
        print(
            f"{dtype} {row['form']:10} forward {row['forward_s'] * 1e3:8.2f} ms   with backward "
            f"{row['both_s'] * 1e3:8.2f} ms ({1 / row['time_of_row_wise']:.2f} x row-wise)   kept "
            f"{row['kept_MiB']:.1f} MiB",
            flush=True,
        )
    return rows


def main() -> None:
    """Print one line per form and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--queries", type=int, default=1100)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=5, help="1: without a warm-up, for a trial")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        rows += measure(dtype, options)
        save_rows(options.json, rows, options.device)
    print(f"launches: {dict(LAUNCHES)}")


if __name__ == "__main__":
    main()
