"""Times models on this machine: one forward pass and one training step, random weights.

python benchmarks/speed.py --models 'd*_r50' --device cuda --out speed.json
python benchmarks/speed.py --models dela_detr_lite0 dino_lite0 --short-side 320 --batch-size 4
python benchmarks/speed.py --against OLD_CHECKOUT --repeats 15 --threads 1 --out ratio.json

With `--against` this checkout is timed beside another: a process for each, single steps in turns, and new / old as the
median of neighbouring pairs. Add `--cpu-seconds --threads 1` where others use the machine too. What autograd keeps for
the backward pass is counted, not timed, and shows small changes.
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
from measuring import MIB, kept, peak_mib, timed
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detrkit.losses import build_criterion
from detrkit.models import create_model, list_models
from detrkit.structures import Target

if TYPE_CHECKING:
    from detrkit.models import Detector

ROOT = Path(__file__).resolve().parents[1]
LABELS = 80  # classes that the objects are of; every preset has as many
WARMUP = 2


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


def evaluation_sides(model: Detector) -> tuple[int, int]:
    """Short and longest side of evaluated images; checkouts of version 0.1 keep them flat in the configuration."""
    try:
        sizes = model.config.input
    except AttributeError:
        sizes = model.config
    return sizes.eval_short_side, sizes.eval_max_side


def image_size(model: Detector, short: int | None) -> tuple[int, int]:
    """A 4:3 photo resized to ``short`` pixels, or as the model's own evaluation does it."""
    own, longest = evaluation_sides(model)
    short = own if short is None else short
    return short, min(round(short * 4 / 3), longest)


class Bench:
    """A model with images and objects: what is timed of it, and what it holds in memory."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(options.threads)
        self.device, objects = options.device, options.objects
        self.clock = time.process_time if options.cpu_seconds else time.perf_counter
        self.model = create_model(name).to(self.device)
        self.criterion = build_criterion(self.model.config)
        self.height, self.width = size = image_size(self.model, options.short_side)
        self.images = torch.randn(options.batch_size, 3, *size, device=self.device)
        boxes = torch.cat([torch.rand(objects, 2) * 0.8 + 0.1, torch.rand(objects, 2) * 0.2 + 0.02], dim=1)
        labels = torch.randint(LABELS, (objects,))
        target = Target(labels=labels, boxes=boxes, original_size=size, size=size).to(self.device)
        self.targets = [target] * options.batch_size

    def loss(self) -> Tensor:
        targets = self.criterion.prepare(self.targets)
        total: Tensor = self.criterion(self.model(self.images, None, targets), targets).total
        return total

    def step(self) -> None:
        self.loss().backward()
        self.model.zero_grad()

    def step_ms(self, repeats: int, warmup: int = 0) -> float:
        """Forward, losses and backward of a batch."""
        self.model.train()
        return 1000 * timed(self.step, self.device, repeats, warmup, self.clock)

    def forward_ms(self, repeats: int, warmup: int = 0) -> float:
        """Forward of one image."""
        self.model.eval()
        with torch.inference_mode():
            return 1000 * timed(lambda: self.model(self.images[:1]), self.device, repeats, warmup, self.clock)

    def kept_mib(self) -> float:
        """What autograd keeps of a step for its backward pass."""
        self.model.train()
        torch.manual_seed(0)
        return kept(self.loss)[1] / MIB


def measure(name: str, options: argparse.Namespace) -> Timing:
    """Times one model; the training step has ``batch_size`` images with ``objects`` boxes each."""
    bench = Bench(name, options)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    step_ms = bench.step_ms(options.repeats, WARMUP)
    memory = peak_mib(options.device)
    forward_ms = bench.forward_ms(options.repeats, WARMUP)
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    return Timing(name, parameters, bench.height, bench.width, forward_ms, step_ms, memory)


def answer(name: str, options: argparse.Namespace) -> None:
    """One side of a comparison: measures what it is asked for."""
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
    """Step and forward in milliseconds, peak and kept memory in MiB, of both checkouts."""
    given = ["--answer", "--models", name, "--device", options.device, "--threads", str(options.threads)]
    given += ["--batch-size", str(options.batch_size), "--objects", str(options.objects)]
    given += ["--cpu-seconds"] if options.cpu_seconds else []
    given += [] if options.short_side is None else ["--short-side", str(options.short_side)]
    with ExitStack() as stack:
        old, new = (stack.enter_context(side(checkout, Path(__file__), given)) for checkout in (options.against, ROOT))
        for ask in (old, new):
            ask("warm up")
        timings = {what: in_turns(old, new, what, options.repeats) for what in ("step", "forward")}
        memory = {what: compare([old(what)["value"]], [new(what)["value"]]) for what in ("peak", "kept")}
    return timings | memory


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns of them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--short-side", type=int, help="pixels; default: what each model evaluates at")
    parser.add_argument("--batch-size", type=int, default=2, help="images of a training step")
    parser.add_argument("--objects", type=int, default=20, help="boxes per image")
    parser.add_argument("--repeats", type=int, default=10, help="of a measurement; with --against pairs of it")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="time this checkout beside another")
    parser.add_argument("--cpu-seconds", action="store_true", help="count the processor's seconds, not the clock's")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def timings(names: list[str], options: argparse.Namespace, keep: Callable[[dict[str, object]], None]) -> Table:
    """Of this checkout alone; what is kept is kept at once, for a run may be cut."""
    table = Table("model", "parameters", "image", "forward, 1 image")
    table.add_column(f"training step, {options.batch_size}")
    table.add_column("peak")
    fresh = None if options.device.startswith("cuda") else 1  # on a CPU the peak is that of a process: one per model
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=fresh) as pool:
        for name in names:
            timing = pool.submit(measure, name, options).result()
            keep(asdict(timing))
            table.add_row(
                name,
                f"{timing.parameters / 1e6:.1f} M",
                f"{timing.height} x {timing.width}",
                f"{timing.forward_ms:.1f} ms",
                f"{timing.step_ms:.1f} ms",
                f"{timing.memory_mib:.0f} MiB",
            )
    return table


def ratios(names: list[str], options: argparse.Namespace, keep: Callable[[dict[str, object]], None]) -> None:
    """Of this checkout and another; a line is printed as soon as a model is done."""
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
        keep({"model": name} | {what: asdict(one) for what, one in found.items()})


def main() -> None:
    """Measures, prints a table, writes JSON where ``--out`` says."""
    options = parse()
    names = list(dict.fromkeys(name for pattern in options.models for name in list_models(pattern)))
    if options.answer:
        answer(names[0], options)
        return
    title = f"{device_name()}, {options.threads} thread(s), torch {torch.__version__}, fp32"
    rows: list[dict[str, object]] = []

    def keep(row: dict[str, object]) -> None:
        rows.append(row)
        if options.out:
            setting = {"setting": title, "batch_size": options.batch_size, "objects": options.objects}
            options.out.write_text(json.dumps({**setting, "timings": rows}, indent=2) + "\n")

    print(title)
    if options.against:
        ratios(names, options, keep)
    else:
        Console().print(timings(names, options, keep))


if __name__ == "__main__":
    main()
