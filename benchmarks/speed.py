"""Time models on this machine: one forward pass and one training step, random weights.

python benchmarks/speed.py --models 'd*_r50' --device cuda --out speed.json
python benchmarks/speed.py --models dela_detr_lite0 dino_lite0 --short-side 320 --batch-size 4
python benchmarks/speed.py --against OLD_CHECKOUT --repeats 15 --threads 1 --out ratio.json

With `--against` this checkout is timed against another: one process per checkout, single steps in turns, and new / old
as the median over neighbouring pairs. Add `--cpu-seconds --threads 1` on a shared machine. The memory that autograd
saves for the backward pass does not depend on load, so it shows small changes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from data_efficiency import device_name
from interleaved import Ratio, compare, in_turns, serve, side
from measuring import MIB, peak_mib, timed, with_saved_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detrkit.losses import build_criterion
from detrkit.models import create_model, list_models
from detrkit.structures import Target

if TYPE_CHECKING:
    from detrkit.models import Detector

ROOT = Path(__file__).resolve().parents[1]
LABELS = 80  # number of classes of the objects; every preset has at least as many
WARMUP = 2


@dataclass(frozen=True)
class Timing:
    """Median milliseconds; ``memory_mib`` is the peak of the step on a GPU, or of the process on a CPU."""

    model: str
    parameters: int
    height: int
    width: int
    forward_ms: float
    step_ms: float
    memory_mib: float
    images_per_s: float
    """Of the forward pass, one image at a time."""

    trained_images_per_s: float


def evaluation_sides(model: Detector) -> tuple[int, int]:
    """Short and longest side of evaluated images; older checkouts have a flat configuration."""
    try:
        sizes = model.config.input
    except AttributeError:
        sizes = model.config
    return sizes.eval_short_side, sizes.eval_max_side


def image_size(model: Detector, short: int | None) -> tuple[int, int]:
    """Size of a 4:3 photo resized to ``short`` pixels, or as in the evaluation of the model."""
    own, longest = evaluation_sides(model)
    short = own if short is None else short
    return short, min(round(short * 4 / 3), longest)


class Bench:
    """A model with images and objects, and the measurements of its time and memory."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(options.threads)
        self.device, self.bf16, objects = options.device, options.bf16, options.objects
        self.clock = time.process_time if options.cpu_seconds else time.perf_counter
        self.model = create_model(name).to(self.device)
        self.criterion = build_criterion(self.model.config)
        self.height, self.width = size = image_size(self.model, options.short_side)
        self.images = torch.randn(options.batch_size, 3, *size, device=self.device)
        boxes = torch.cat([torch.rand(objects, 2) * 0.8 + 0.1, torch.rand(objects, 2) * 0.2 + 0.02], dim=1)
        labels = torch.randint(LABELS, (objects,))
        target = Target(labels=labels, boxes=boxes, original_size=size, size=size).to(self.device)
        self.targets = [target] * options.batch_size

    def autocast(self) -> torch.autocast:
        """Mixed precision where it is asked for."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16)

    def loss(self) -> Tensor:
        targets = self.criterion.prepare(self.targets)
        with self.autocast():
            out = self.model(self.images, None, targets)
        total: Tensor = self.criterion(out, targets).total
        return total

    def step(self) -> None:
        self.loss().backward()
        self.model.zero_grad()

    def step_ms(self, repeats: int, warmup: int = 0) -> float:
        """Milliseconds of forward, losses and backward of a batch."""
        self.model.train()
        return 1000 * timed(self.step, self.device, repeats, warmup, self.clock)

    def forward_ms(self, repeats: int, warmup: int = 0) -> float:
        """Milliseconds of a forward pass of one image."""
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            return 1000 * timed(lambda: self.model(self.images[:1]), self.device, repeats, warmup, self.clock)

    def kept_mib(self) -> float:
        """Memory that autograd saves for the backward pass of a step."""
        self.model.train()
        torch.manual_seed(0)
        return with_saved_bytes(self.loss)[1] / MIB


def measure(name: str, options: argparse.Namespace) -> Timing:
    """Time one model; the training step has ``batch_size`` images with ``objects`` boxes each."""
    bench = Bench(name, options)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    step_ms = bench.step_ms(options.repeats, WARMUP)
    memory = peak_mib(options.device)
    forward_ms = bench.forward_ms(options.repeats, WARMUP)
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    rates = (1000 / forward_ms, 1000 * options.batch_size / step_ms)
    return Timing(name, parameters, bench.height, bench.width, forward_ms, step_ms, memory, *rates)


def serve_measurements(name: str, options: argparse.Namespace) -> None:
    """One side of a comparison: run the measurements that the other process asks for."""
    bench = Bench(name, options)
    serve(
        {
            "warm up": lambda: (bench.step_ms(WARMUP), bench.forward_ms(WARMUP)),
            "step": lambda: {"value": bench.step_ms(1)},
            "forward": lambda: {"value": bench.forward_ms(1)},
            "peak": lambda: {"value": peak_mib(options.device)},
            "kept": lambda: {"value": bench.kept_mib()},
        }
    )


def measure_both(name: str, options: argparse.Namespace) -> dict[str, Ratio]:
    """Step and forward in milliseconds, peak and kept memory in MiB, for both checkouts."""
    arguments = ["--answer", "--models", name, "--device", options.device, "--threads", str(options.threads)]
    arguments += ["--batch-size", str(options.batch_size), "--objects", str(options.objects)]
    arguments += [f"--{name}" for name in ("cpu-seconds", "bf16") if vars(options)[name.replace("-", "_")]]
    arguments += [] if options.short_side is None else ["--short-side", str(options.short_side)]
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(side(checkout, Path(__file__), arguments)) for checkout in (options.against, ROOT)
        )
        for ask in (old, new):
            ask("warm up")
        timings = {what: in_turns(old, new, what, options.repeats) for what in ("step", "forward")}
        memory = {what: compare([old(what)["value"]], [new(what)["value"]]) for what in ("peak", "kept")}
    return timings | memory


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--short-side", type=int, help="pixels; default: the evaluation size of each model")
    parser.add_argument("--batch-size", type=int, default=2, help="images per training step")
    parser.add_argument("--objects", type=int, default=20, help="boxes per image")
    parser.add_argument("--repeats", type=int, default=10, help="repeats per measurement; with --against pairs")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="time this checkout against another")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, bfloat16")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU time instead of wall time")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def timings(names: list[str], options: argparse.Namespace, store: Callable[[dict[str, object]], None]) -> Table:
    """Table of this checkout; every row is stored at once, since a run may be interrupted."""
    table = Table("model", "parameters", "image", "forward, 1 image")
    table.add_column(f"training step, {options.batch_size}")
    table.add_column("peak")
    fresh = (
        None if options.device.startswith("cuda") else 1
    )  # on a CPU the peak belongs to the process: one process per model
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=fresh) as pool:
        for name in names:
            timing = pool.submit(measure, name, options).result()
            store(asdict(timing))
            table.add_row(
                name,
                f"{timing.parameters / 1e6:.1f} M",
                f"{timing.height} x {timing.width}",
                f"{timing.forward_ms:.1f} ms",
                f"{timing.step_ms:.1f} ms",
                f"{timing.memory_mib:.0f} MiB",
            )
    return table


def ratios(names: list[str], options: argparse.Namespace, store: Callable[[dict[str, object]], None]) -> None:
    """Ratios of this checkout to another; one line is printed as soon as a model is done."""
    print(f"new / old, batch {options.batch_size}, {options.repeats} pairs (quartiles)")
    print("| model | step, ms | ratio | forward, ms | ratio | peak, MiB | ratio | kept, MiB | ratio |")
    print("|---" * 9 + "|")
    for name in names:
        found = measure_both(name, options)
        cells = []
        for what, one in found.items():
            spread = f" ({one.low:.3f} to {one.high:.3f})" if what in ("step", "forward") else ""
            cells += [f"{one.old:.1f} → {one.new:.1f}", f"{one.ratio:.3f}{spread}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        store({"model": name} | {what: asdict(one) for what, one in found.items()})


def main() -> None:
    """Measure, print a table, and write JSON to ``--out``."""
    options = parse()
    names = list(dict.fromkeys(name for pattern in options.models for name in list_models(pattern)))
    if options.answer:
        serve_measurements(names[0], options)
        return
    dtype = "bf16" if options.bf16 else "fp32"
    title = f"{device_name()}, {options.threads} thread(s), torch {torch.__version__}, {dtype}"
    rows: list[dict[str, object]] = []

    def store(row: dict[str, object]) -> None:
        rows.append(row)
        if options.out:
            setting = {"setting": title, "batch_size": options.batch_size, "objects": options.objects}
            options.out.write_text(json.dumps({**setting, "timings": rows}, indent=2) + "\n")

    print(title)
    if options.against:
        ratios(names, options, store)
    else:
        Console().print(timings(names, options, store))


if __name__ == "__main__":
    main()
