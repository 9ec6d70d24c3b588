"""Graph breaks: where torch.compile of a network stops tracing and goes back to Python, with reason and place.

    python benchmarks/graph_breaks.py [--models relation_detr_r50 dape_r50] [--json FILE]

The network of every model is traced as ``training.compile`` compiles it, in training with denoising queries and in
evaluation, in float32 and with bf16 autocast, on a small canvas: a graph does not depend on its size. Nothing is
generated or timed. Exit code 1 if there is a break.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from measuring import save_rows
from relation import boxes

import detrkit
from detrkit.models.compiled import graph_inputs
from detrkit.structures import Target

MODELS = (
    *("detr_lite0", "dape_lite0", "relation_detr_lite0", "dino_lite0"),
    *("detr_r50", "deformable_detr_r50", "de_detr_r50", "dino_r50_4scale", "relation_detr_r50", "dape_r50"),
)


def breaks(name: str, size: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each mode and precision: graphs, operators, and the breaks."""
    torch.manual_seed(0)
    model, rows = detrkit.create_model(name), []
    images, padding = torch.randn(2, 3, *size), torch.zeros(2, *size, dtype=torch.bool)
    padding[1, :, size[1] // 2 :] = True
    target = Target(labels=torch.zeros(3, dtype=torch.long), boxes=boxes(3, "cpu", 0)[0])
    for mode in ("train", "eval"):
        model.train(mode == "train")
        for precision in ("fp32", "bf16"):
            torch._dynamo.reset()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                inputs = graph_inputs(model.denoising_sets([target, target]))
                found = torch._dynamo.explain(model.network)(images, padding, inputs)
            reasons = [
                {"reason": one.reason, "place": [f"{at.filename}:{at.lineno}" for at in one.user_stack][-3:]}
                for one in found.break_reasons
            ]
            row = {"model": name, "mode": mode, "precision": precision, "denoising": len(inputs)}
            row |= {"graphs": found.graph_count, "operators": found.op_count}
            rows.append(row | {"breaks": found.graph_break_count, "reasons": reasons})
            print(f"{name:24} {mode:5} {precision}: {found.graph_break_count} breaks, {found.op_count} operators")
            for one in reasons:
                print(f"    {one['reason'].strip()}\n    {' <- '.join(reversed(one['place']))}")
            sys.stdout.flush()
    return rows


def main() -> None:
    """Print one line per model, mode and precision, and every break."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.models:
        rows += breaks(name, options.size)
        save_rows(options.json, rows, "cpu")
    sys.exit(any(row["breaks"] for row in rows))


if __name__ == "__main__":
    main()
