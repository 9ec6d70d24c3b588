"""A training step of Relation-DETR and DAPE beside the published formulation of Relation-DETR, in one run.

    python benchmarks/relation_step.py [--device cuda] [--golden ../shared] [--compile] [--json FILE]

"published": the operators of the published repository in plain torch (``published_forms.py``): deformable attention by
grid sampling (what it falls back to where its extension is not compiled), the relation with all intermediate tensors
kept, frozen batch norm in two steps. With
``--golden`` it must first reproduce the recorded losses of the official implementation. Batch 2, 800 x 1333 pixels,
bf16 autocast, 20 objects an image: seconds, images per second, peak memory, and both as shares of the published form;
on a GPU also the number of kernels and how long each takes. ``--compile`` also measures every model compiled, with the
seconds of compilation and the difference of the losses of the first step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measuring import peak_mib, save_rows, timed
from published_forms import publish
from relation import boxes, golden
from relation_attention import forced

import detrkit
from detrkit.losses import build_criterion
from detrkit.structures import Target


def measure(name: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Forward, losses, backward and update, in a form: "eager", "compiled" or "published"."""
    torch.manual_seed(0)
    device, published = options.device, form == "published"
    model: Any = detrkit.create_model(name).to(device).train()
    if published:
        publish(model)
    criterion = build_criterion(model.config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = device == "cuda" and not published  # as in `detrkit train`, and as published
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=fused)
    labels = torch.randint(0, model.config.num_classes, (options.objects,))
    target = Target(labels=labels, boxes=boxes(options.objects, "cpu", 0)[0]).to(device)
    targets = criterion.prepare([target] * options.images)
    images = torch.randn(options.images, 3, *options.size, device=device)
    losses: list[float] = []
    if form == "compiled":
        torch._dynamo.reset()
        model.compile(mode=options.compile_mode)

    def step(phase: Callable[[str], object] = str) -> None:
        with torch.autocast(device, torch.bfloat16):
            out = model(images, None, targets)
        phase("forward")
        total = criterion(out, targets).total
        phase("losses")
        optimizer.zero_grad()
        total.backward()
        phase("backward")
        optimizer.step()
        losses.append(float(total.detach()))
        phase("update")

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with forced("reference") if published else nullcontext():
        began = time.perf_counter()
        torch.manual_seed(1)  # the same noise for all forms
        step()
        first = time.perf_counter() - began
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(step, device, options.repeats, warmup=1 if device == "cpu" else 3)
        row = {"model": form if published else name, "form": form, "seconds": seconds, "first_step_s": first,
               "images_per_s": options.images / seconds, "peak_MiB": peak_mib(device), "loss": losses[-1],
               "first_loss": losses[0]}  # fmt: skip
        return row | {"phases_s": phases(step, device)} | (busy(step, seconds) if device == "cuda" else {})


def phases(step: Callable[[Callable[[str], object]], None], device: str) -> dict[str, float]:
    """Seconds of the parts of a step, each waited for."""
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append((name, time.perf_counter()))

    step(mark)
    return {name: now - before for (_, before), (name, now) in pairwise(marks)}


def busy(step: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Kernels of a step, the share of its time in which the GPU runs one, and the kernels with most time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in found) / 1e6
    return {
        "kernels": sum(event.count for event in found),
        "gpu_seconds": total,
        "busy": total / seconds,
        "slowest": [[e.key[:90], e.count, round(e.self_device_time_total / 1e3, 3)] for e in found[:25]],
    }


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=["relation_detr_r50", "dape_r50"])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--golden", type=Path, help="folder with golden/: check the published form first")
    parser.add_argument("--compile", action="store_true", help="measure every model compiled, too")
    parser.add_argument("--compile-mode", choices=("default", "reduce-overhead"), default="default")
    parser.add_argument("--no-published", action="store_true", help="leave out the published form")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    error = None
    if options.golden is not None:
        with forced("reference"):
            error = golden(options.golden)
        print(f"published form against 60 recorded losses: {error:.1e} relative")
    tasks = [(name, form) for name in options.models for form in ("eager", "compiled")[: 1 + options.compile]]
    # the published form last: where it does not fit, the others are measured
    for name, form in tasks + [(options.models[0], "published")] * (not options.no_published):
        row = measure(name, form, options) | {"golden_losses_relative_error": error if form == "published" else None}
        rows.append(row)
        if form == "compiled":
            eager = rows[-2]
            row["loss_relative_difference"] = abs(row["first_loss"] - eager["first_loss"]) / abs(eager["first_loss"])
            row["compile_s"] = row["first_step_s"] - eager["seconds"]
            row |= {f"{key}_of_eager": row[key] / eager[key] for key in ("seconds", "peak_MiB")}
        for other in rows if form == "published" else []:
            other |= {f"{key}_of_published": other[key] / row[key] for key in ("seconds", "peak_MiB")}
        save_rows(options.json, rows, options.device)
        print(f"{_label(row)} {row['seconds'] * 1e3:8.1f} ms a step, peak {row['peak_MiB']:.0f} MiB", flush=True)
        print(f"    {' · '.join(f'{part} {seconds * 1e3:.1f} ms' for part, seconds in row['phases_s'].items())}")
        if form == "compiled":
            print(
                f"    {row['seconds_of_eager']:.2f} of the eager form's time; compiled in {row['compile_s']:.0f} s; "
                f"the first loss differs by {row['loss_relative_difference']:.1e} relative",
                flush=True,
            )
    for row in [] if options.no_published else rows:
        print(
            f"{_label(row)} {row['seconds_of_published']:.2f} of the published form's time, "
            f"{row['peak_MiB_of_published']:.2f} of its memory"
        )


def _label(row: dict[str, Any]) -> str:
    return f"{row['model']:20} {'compiled' if row['form'] == 'compiled' else '':8}"


if __name__ == "__main__":
    main()
