"""How long a run takes on 1, 8 and 64 GPUs: a model of few terms, checked here over gloo before it is used.

    python benchmarks/scale.py check DATA [--json docs/results/scale_cpu.json]      # 1 and 2 processes, one thread each
    python benchmarks/scale.py plan [--inside 300 --between 25] [--json docs/results/scale.json]

A step takes its computation, plus the pictures that the loader has not ready, plus the part of the all-reduce that the
backward pass does not hide:

    step = max(compute · crowding, batch · picture / workers) + max(0, ring - hidden · backward)
    ring = 2 (n - 1) / n · gradient bytes / bandwidth of the slowest link + 2 (n - 1) · latency

``check`` measures each term alone (computation, computation beside an equal neighbour, one picture, one all-reduce) and
predicts loops that read, train and reduce, at 1 and 2 processes; an error above 15 % is exit code 1. Without workers
the loader and the computation follow each other, so that their times add up. ``plan`` takes the step of one H200 in
``docs/results/gpu.json`` and the loader in ``docs/results/loader_cpu.json``, and says nothing before a check has
held. Links are assumptions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measuring import timed
from torch.nn.parallel import DistributedDataParallel

import detrkit
from detrkit.data import build_loader, load_dataset
from detrkit.data.transforms import TrainTransform
from detrkit.losses import build_criterion

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 0.15
BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one process does alone, in seconds, and how processes are linked."""

    compute: float
    """Forward, losses, backward and update of a batch."""
    backward: float
    """Of that the backward pass, during which gradients can be sent."""
    batch: int
    picture: float
    """Reading and augmenting one image on one core."""
    workers: int
    """Loader processes of each process; 0: it reads its images itself, between the steps."""
    gradient_bytes: int
    bandwidth: float
    """Bytes a second of the slowest link in the ring."""
    latency: float = 0.0
    hidden: float = 0.0
    """Share of the backward pass that can hide the all-reduce."""
    crowding: float = 1.0
    """Times longer that the computation takes beside the other processes of the machine."""


def ring_seconds(machine: Machine, processes: int) -> float:
    """Seconds of an all-reduce of the gradients."""
    sent = 2 * (processes - 1) / processes * machine.gradient_bytes
    return sent / machine.bandwidth + 2 * (processes - 1) * machine.latency


def step_seconds(machine: Machine, processes: int) -> float:
    """Seconds of a step of all processes."""
    compute, pictures = machine.compute * machine.crowding, machine.batch * machine.picture
    exposed = max(0.0, ring_seconds(machine, processes) - machine.hidden * machine.backward)
    if machine.workers == 0:
        return compute + pictures * machine.crowding + exposed
    return max(compute, pictures / machine.workers) + exposed


# ------------------------------------------------------------------------------------------------- checked here


def _work(rank: int, processes: int, what: str, data: str, folder: str, repeats: int) -> None:
    """One process of a measurement; writes its seconds to ``folder``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    seen = TrainTransform(short_sides=(160,), max_side=224, crop=False)
    dataset = load_dataset(data, split="train").with_transform(seen)
    # every measurement works on the same images, so that steps are of equal size
    loader = iter(build_loader(dataset, [[0, 1]] * (repeats + 3)))
    batch = next(loader)
    model: Any = detrkit.create_model("detr_lite0", num_classes=len(dataset.categories)).train()
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    trained: Any = DistributedDataParallel(model) if what == "loop" and processes > 1 else model
    gradients = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad))

    def step(now: Any) -> None:
        targets = criterion.prepare(now.targets)
        total = criterion(trained(now.images, now.padding_mask, targets), targets).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    calls: dict[str, Callable[[], object]] = {
        "compute": lambda: step(batch),
        "picture": lambda: dataset[0],
        "reduce": lambda: dist.all_reduce(gradients),
        "loop": lambda: step(next(loader)),
    }
    dist.barrier()
    found = {"seconds": timed(calls[what], "cpu", repeats), "bytes": 4 * len(gradients)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured(what: str, processes: int, data: str, repeats: int) -> dict[str, float]:
    """Seconds of one part, on so many processes at once: those of the slowest."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=_work, args=(rank, processes, what, data, folder, repeats))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            raise RuntimeError(f"measuring '{what}' with {processes} processes failed: see above")
        rows = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return {"seconds": max(row["seconds"] for row in rows), "bytes": rows[0]["bytes"]}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the terms, predict the loops of 1 and 2 processes, and measure these."""
    parts = {
        f"{what} {processes}": measured(what, processes, options.data, options.repeats)
        for what, processes in (("compute", 1), ("picture", 1), ("compute", 2), ("reduce", 2))
    }
    compute, size = parts["compute 1"]["seconds"], int(parts["compute 1"]["bytes"])
    rows = []
    for processes in (1, 2):
        machine = Machine(
            compute=compute,
            backward=0.0,
            batch=BATCH,
            picture=parts["picture 1"]["seconds"],
            workers=0,
            gradient_bytes=size,
            bandwidth=size / parts["reduce 2"]["seconds"],
            crowding=1.0 if processes == 1 else parts["compute 2"]["seconds"] / compute,
        )
        predicted = step_seconds(machine, processes)
        found = measured("loop", processes, options.data, options.repeats)["seconds"]
        rows.append({"processes": processes, "predicted_s": predicted, "measured_s": found, **asdict(machine)})
        rows[-1]["error"] = predicted / found - 1
        error = f"{rows[-1]['error']:+.1%}"
        print(f"{processes} process(es): predicted {predicted:.3f} s a step, measured {found:.3f}, {error}")
    return {"model": "detr_lite0", "threads": 1, "repeats": options.repeats, "terms": parts, "rows": rows}


# ------------------------------------------------------------------------------------------------- planned


DATA = {  # images of training and validation, epochs
    "COCO, 12 epochs": (118_287, 5_000, 12),
    "Objects365, 12 epochs": (1_742_289, 80_000, 12),
}
GPUS_OF_A_NODE = 8
SCORING_S = 1.0 / 5_000
"""Seconds of scoring an image of COCO with 100 boxes, whole command (docs/results.md)."""
PARAMETERS = 48_000_000
"""Trained parameters of Relation-DETR R50, rounded up."""


def passed(path: Path) -> None:
    """Raise SystemExit unless a check is recorded in which every prediction was within 15 %."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    if not rows or any(abs(row["error"]) > ALLOWED for row in rows):
        raise SystemExit(f"{path} has no check in which the model held: run 'scale.py check DATA --json {path}' first")


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Rows for every data set and number of GPUs.

    Raises:
        SystemExit: no check is recorded, or it was off by more than 15 %.
    """
    passed(options.checked)
    step = json.loads((ROOT / "docs/results/gpu.json").read_text())["step"]["rows"][-1]
    picture = json.loads((ROOT / "docs/results/loader_cpu.json").read_text())["rows"][0]["ours_ms"] / 1e3
    batch = round(step["seconds"] * step["images_per_s"])
    rows: list[dict[str, Any]] = []
    for name, (images, validation, epochs) in DATA.items():
        for gpus in (1, 8, 64):
            machine = Machine(
                compute=step["seconds"],
                backward=step["phases_s"]["backward"],
                batch=batch,
                picture=picture,
                workers=options.workers,
                gradient_bytes=4 * PARAMETERS,
                bandwidth=1e9 * (options.inside if gpus <= GPUS_OF_A_NODE else options.between),
                latency=options.latency,
                hidden=options.hidden,
            )
            seconds = step_seconds(machine, gpus)
            rate = gpus * batch / seconds
            forward = step["phases_s"]["forward"] / batch
            evaluation = validation * forward / gpus + validation * SCORING_S
            rows.append(
                {
                    "run": name,
                    "gpus": gpus,
                    "images_per_s": rate,
                    "loader_cores": rate * picture,
                    "all_reduce_s": ring_seconds(machine, gpus),
                    "exposed_s": seconds - max(machine.compute, batch * picture / machine.workers),
                    "evaluation_s": evaluation,
                    "hours": (epochs * images / rate + epochs * evaluation) / 3600,
                    # the buckets of an all-reduce are a copy of the gradients
                    "memory_MiB": step["peak_MiB"] + (machine.gradient_bytes / 2**20 if gpus > 1 else 0),
                }
            )
            row = rows[-1]
            print(
                f"{name:24} {gpus:3} GPUs: {rate:8.1f} images/s, {row['loader_cores']:6.1f} loader cores, "
                f"all-reduce {1e3 * row['all_reduce_s']:5.1f} ms ({1e3 * row['exposed_s']:.1f} not hidden), "
                f"evaluation {evaluation:5.0f} s, {row['hours']:7.1f} h, {row['memory_MiB']:,.0f} MiB a GPU"
            )
    assumed = {key: getattr(options, key) for key in ("inside", "between", "latency", "hidden", "workers")}
    return {"model": step["model"], "batch_of_a_gpu": batch, "assumed": assumed, "rows": rows}


def main() -> None:
    """Check the model here, or plan with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="measure the terms and loops here")
    checking.add_argument("data")
    checking.add_argument("--repeats", type=int, default=8)
    planning = commands.add_parser("plan", help="1, 8 and 64 GPUs")
    planning.add_argument("--inside", type=float, default=300.0, help="GB/s of a link inside a node (assumed)")
    planning.add_argument("--between", type=float, default=25.0, help="GB/s of a GPU's link between nodes (assumed)")
    planning.add_argument("--latency", type=float, default=10e-6, help="seconds of a message (assumed)")
    planning.add_argument("--hidden", type=float, default=0.8, help="share of the backward pass that hides sending")
    planning.add_argument("--workers", type=int, default=8, help="loader processes of each GPU")
    planning.add_argument("--checked", type=Path, default=ROOT / "docs/results/scale_cpu.json", help="a passed check")
    for one in (checking, planning):
        one.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = check(options) if options.command == "check" else plan(options)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(options.command == "check" and any(abs(row["error"]) > ALLOWED for row in result["rows"]))


if __name__ == "__main__":
    main()
