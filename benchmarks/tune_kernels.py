"""Find the block sizes of the Triton kernels: time every candidate on the shapes of the presets.

    python benchmarks/tune_kernels.py [--device cuda] [--widths 32 34] [--json FILE]

Width 32 is that of most presets, 34 that of DAPE (rank 16). The fastest of each width go into the tables of
``detrkit/ops/tuning.py``, which has estimates until then.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import triton
from measuring import save_rows, timed
from ms_deform_attn import DTYPES, SETTINGS, inputs
from relation import boxes, mask
from torch import Tensor

from detrkit.nn.relation import PositionRelation
from detrkit.ops import ms_deform_attn_triton as kernels
from detrkit.ops import relation_attention_triton as relation_kernels
from detrkit.ops.on_gpu import LAUNCHES
from detrkit.ops.tuning import (
    BACKWARD_LAUNCHES,
    CANDIDATES,
    FORWARD_LAUNCHES,
    RELATION_CANDIDATES,
    Launch,
)


def candidates(padded: int) -> list[Launch]:
    """Launches that give a thread 4 to 16 of the values of a step."""
    return [c for c in CANDIDATES if 4 <= c.queries * padded // (32 * c.warps) <= 16]


def tune_relation(args: argparse.Namespace, queries: int) -> list[dict[str, Any]]:
    """Milliseconds of the relation's kernels for 2 images."""
    torch.manual_seed(0)
    relation = PositionRelation(num_heads=args.heads).to(args.device)
    shape = (2, args.heads, queries, 32)
    states = [torch.randn(shape, device=args.device).to(DTYPES[args.dtype]).requires_grad_() for _ in range(3)]
    source, target = (boxes(queries, args.device, seed).expand(2, -1, -1) for seed in (1, 2))
    blocked = mask(queries, args.device)

    def forward() -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            return relation.bias(source, target, blocked).attend(*states, 0.0)

    rows: list[dict[str, Any]] = []
    for launch in RELATION_CANDIDATES[: args.most]:
        for name in ("RELATION_FORWARD", "RELATION_ROWS", "RELATION_COLUMNS"):
            setattr(relation_kernels, name, dict.fromkeys((2, 4), launch))
        row: dict[str, Any] = {"relation": list(launch), "dtype": args.dtype, "queries": queries}
        try:
            out, before = forward().square().sum(), LAUNCHES.total()
            row["forward_ms"] = 1e3 * timed(forward, args.device, args.repeats)
            leaves = (*states, *relation.parameters())
            row["backward_ms"] = 1e3 * timed(
                lambda out=out, leaves=leaves: torch.autograd.grad(out, leaves, retain_graph=True),
                args.device,
                args.repeats,
            )
            row["launches"] = LAUNCHES.total() - before
        except triton.runtime.errors.OutOfResources as error:
            row["declined"] = str(error)
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Print milliseconds of every candidate, encoder and decoder layer together, the fastest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 34])
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the image size; less than 1 for a trial")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--most", type=int, help="only so many candidates, for a trial")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--relation", type=int, default=1100, help="queries of the relation; 0: leave it out")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = tune_relation(args, args.relation) if args.relation else []
    save_rows(args.json, rows, args.device)
    for width in args.widths:
        padded = triton.next_power_of_2(width)
        calls = []
        for images, height, wide, queries in list(SETTINGS.values())[:2]:
            size = (round(args.scale * height), round(args.scale * wide))
            value, *rest = inputs(images, *size, queries and round(args.scale * queries), args.device, args.heads)
            value = torch.randn(*value.shape[:3], width, device=args.device).to(DTYPES[args.dtype])
            outer = torch.randn(*rest[1].shape[:2], args.heads * width, device=args.device).to(value)
            calls.append((outer, value, *rest))
        for launch in candidates(padded)[: args.most]:
            FORWARD_LAUNCHES[padded] = BACKWARD_LAUNCHES[padded] = launch
            row: dict[str, Any] = {
                "width": width,
                "dtype": args.dtype,
                "queries": launch.queries,
                "warps": launch.warps,
            }
            for name in ("forward", "backward"):
                first = 1 if name == "forward" else 0
                run = getattr(kernels, f"launch_{name}")
                row[f"{name}_ms"] = 1e3 * sum(
                    timed(lambda call=call, run=run, first=first: run(*call[first:]), args.device, args.repeats)
                    for call in calls
                )
            rows.append(row)
            save_rows(args.json, rows, args.device)
        for name in ("forward", "backward"):
            own = sorted((row for row in rows if row.get("width") == width), key=lambda row: row[f"{name}_ms"])
            best = ", ".join(f"({r['queries']}, {r['warps']}) {r[f'{name}_ms']:.3f}" for r in own[:4])
            print(f"width {width} {name}, (queries, warps) ms: {best}", flush=True)


if __name__ == "__main__":
    main()
