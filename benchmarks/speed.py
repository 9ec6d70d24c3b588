"""Times models on this machine: one forward pass and one training step, random weights.

python benchmarks/speed.py --models 'd*_r50' --device cuda --out speed.json
python benchmarks/speed.py --models dela_detr_lite0 dino_lite0 --short-side 320 --batch-size 4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from data_efficiency import device_name
from measuring import peak_mib, timed
from rich.console import Console
from rich.table import Table

from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model, list_models
from detrkit.structures import Target


@dataclass(frozen=True)
class Timing:
    """Median milliseconds; ``memory_mib``: most of the GPU that the step held, or of the RAM the process."""

    model: str
    parameters: int
    height: int
    width: int
    forward_ms: float
    step_ms: float
    memory_mib: float


def image_size(model: Detector, short: int | None) -> tuple[int, int]:
    """A 4:3 photo resized to ``short`` pixels, or as the model's own evaluation does it."""
    short = model.config.eval_short_side if short is None else short
    return short, min(round(short * 4 / 3), model.config.eval_max_side)


def measure(name: str, options: argparse.Namespace) -> Timing:
    """Times one model; the training step has ``batch_size`` images with ``objects`` boxes each."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device, batch_size, objects = torch.device(options.device), options.batch_size, options.objects
    model = create_model(name).to(device)
    criterion = build_criterion(model.config)
    height, width = image_size(model, options.short_side)
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
    step_ms = 1000 * timed(step, options.device, options.repeats, warmup=2)
    memory = peak_mib(options.device)
    model.eval()
    with torch.inference_mode():
        forward_ms = 1000 * timed(lambda: model(images[:1]), options.device, options.repeats, warmup=2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Timing(name, parameters, height, width, forward_ms, step_ms, memory)


def main() -> None:
    """Measures, prints a table, writes JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns of them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--short-side", type=int, help="pixels; default: what each model evaluates at")
    parser.add_argument("--batch-size", type=int, default=2, help="images of a training step")
    parser.add_argument("--objects", type=int, default=20, help="boxes an image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    title = f"{device_name()}, {options.threads} thread(s), torch {torch.__version__}, fp32"
    table = Table("model", "parameters", "image", "forward, 1 image", title=title)
    table.add_column(f"training step, {options.batch_size}")
    table.add_column("peak")
    timings = []
    fresh = None if options.device.startswith("cuda") else 1  # on a CPU the peak is that of a process: one a model
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=fresh) as pool:
        for name in dict.fromkeys(name for pattern in options.models for name in list_models(pattern)):
            timing = pool.submit(measure, name, options).result()
            timings.append(timing)
            table.add_row(
                name,
                f"{timing.parameters / 1e6:.1f} M",
                f"{timing.height} x {timing.width}",
                f"{timing.forward_ms:.1f} ms",
                f"{timing.step_ms:.1f} ms",
                f"{timing.memory_mib:.0f} MiB",
            )
    Console().print(table)
    if options.out:
        setting = {"setting": title, "batch_size": options.batch_size, "objects": options.objects}
        options.out.write_text(json.dumps({**setting, "timings": [asdict(t) for t in timings]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
