"""Times models on this machine: one forward pass and one training step, random weights, images of the usual size.

``python benchmarks/speed.py --models 'd*_r50' --device cuda --out speed.json``
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model, list_models
from detrkit.structures import Target


@dataclass(frozen=True)
class Timing:
    """Median milliseconds; ``memory_mb`` is the peak of the training step on a GPU (0 on a CPU)."""

    model: str
    parameters: int
    height: int
    width: int
    forward_ms: float
    step_ms: float
    memory_mb: float


def image_size(model: Detector) -> tuple[int, int]:
    """A 4:3 photo as the model's own evaluation resizing leaves it."""
    short = model.config.eval_short_side
    return short, min(round(short * 4 / 3), model.config.eval_max_side)


def median_ms(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of ``run`` over ``repeats`` calls, after two calls that do not count."""
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def measure(name: str, device: torch.device, *, batch_size: int, objects: int, repeats: int) -> Timing:
    """Times one model; the training step has ``batch_size`` images with ``objects`` boxes each."""
    torch.manual_seed(0)
    model = create_model(name).to(device)
    criterion = build_criterion(model.config)
    height, width = image_size(model)
    images = torch.randn(batch_size, 3, height, width, device=device)
    boxes = torch.cat([torch.rand(objects, 2) * 0.8 + 0.1, torch.rand(objects, 2) * 0.2 + 0.02], dim=1)
    labels = torch.randint(model.config.num_classes, (objects,))
    target = Target(labels=labels, boxes=boxes, original_size=(height, width), size=(height, width)).to(device)

    def step() -> None:
        targets = criterion.prepare([target] * batch_size)
        criterion(model(images, None, targets), targets).total.backward()
        model.zero_grad()

    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step_ms = median_ms(step, device, repeats)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    model.eval()
    with torch.inference_mode():
        forward_ms = median_ms(lambda: model(images[:1]), device, repeats)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Timing(name, parameters, height, width, forward_ms, step_ms, memory)


def main() -> None:
    """Measures, prints a table, writes JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="*_lite0", help="shell pattern of model names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=2, help="images of a training step")
    parser.add_argument("--objects", type=int, default=20, help="boxes an image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    hardware = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()}"
    )
    title = f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32"
    table = Table(
        "model", "parameters", "image", "forward, 1 image", f"training step, {options.batch_size}", title=title
    )
    timings = []
    for name in list_models(options.models):
        timing = measure(name, device, batch_size=options.batch_size, objects=options.objects, repeats=options.repeats)
        timings.append(timing)
        memory = f", {timing.memory_mb:.0f} MB" if timing.memory_mb else ""
        table.add_row(
            name,
            f"{timing.parameters / 1e6:.1f} M",
            f"{timing.height} x {timing.width}",
            f"{timing.forward_ms:.1f} ms",
            f"{timing.step_ms:.1f} ms{memory}",
        )
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps({"setting": title, "timings": [asdict(t) for t in timings]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
