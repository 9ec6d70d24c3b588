"""Fine-tuning the embedded detector of blood cells on other cells, against training the same network from ImageNet.

python benchmarks/fine_tuning.py run --data DIR --steps 1600 --device cuda --out docs/results/fine_tuning.jsonl
python benchmarks/fine_tuning.py report docs/results/fine_tuning.jsonl

DIR is a COCO data folder with train and val. All runs have the same data, network, rates, batch and evaluation; of both
starts one has all steps and one a quarter, and so have those that train less. A run that is in the results already is
left out, an interrupted one is resumed. Memory is that of the process: give every run one of its own (--only).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

EMBEDDED = "dape_lite0"
NETWORK = {
    "name": EMBEDDED,
    "sampling": "harmonized",
    "ffn_dim": 320,
    "num_queries": 300,
    "one_to_many_queries": 300,
    "nms": 0.7,
}
QUARTER = 4
# run -> (divisor of the steps, settings of the model)
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "imagenet": (1, {}),
    "imagenet_quarter": (QUARTER, {}),
    "embedded": (1, {"init": EMBEDDED}),
    "embedded_quarter": (QUARTER, {"init": EMBEDDED}),
    "embedded_quarter_frozen": (QUARTER, {"init": EMBEDDED, "freeze": ["backbone", "encoder"]}),
    "embedded_quarter_lora": (QUARTER, {"init": EMBEDDED, "lora": 8}),
}
TITLES = {
    "imagenet": "from ImageNet",
    "imagenet_quarter": "from ImageNet",
    "embedded": "from the embedded model",
    "embedded_quarter": "from the embedded model",
    "embedded_quarter_frozen": "the same, backbone and encoder frozen",
    "embedded_quarter_lora": "the same, LoRA of rank 8",
}


def recipe(run: str, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a run; runs differ only in length, start and what they train."""
    divisor, model = RUNS[run]
    steps = max(1, args.steps // divisor)
    return {
        "model": {**NETWORK, "backbone_weights": "package", **model},
        "data": {
            "root": str(args.data),
            "crop": False,
            "vertical_flip": 0.5,
            "short_sides": [args.size - 32, args.size, args.size + 32],
            "eval_short_side": args.size,
        },
        "training": {
            "iterations": steps,
            "batch_size": 4,
            "workers": args.workers,
            "seed": args.seed,
            "ema": 0.998,
            "evaluate_every": args.evaluate_every,
            "device": args.device,
            "output": str(args.runs / f"{run}_{steps}_seed{args.seed}"),
        },
        "optimizer": {"lr": 4e-4, "lr_backbone": 8e-5},
        "schedule": {"kind": "cosine", "warmup": min(100, steps // 10)},
        "logging": {"plots": False},
    }


def train(run: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train or resume a run: AP of its evaluations, seconds, peak memory, trained parameters."""
    import torch

    import detrkit
    from detrkit.training import Callback

    counts: dict[str, int] = {}

    class Count(Callback):
        def on_train_start(self, trainer: Any) -> None:
            counts["trained"] = sum(parameter.numel() for parameter in trainer.parameters)
            counts["all"] = sum(parameter.numel() for parameter in trainer.model.parameters())
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    settings, begun = recipe(run, args), time.monotonic()
    result = detrkit.train(settings, resume=True, callbacks=[Count()])
    seconds = time.monotonic() - begun
    rows = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if row["event"] == "eval"]
    cuda = args.device.startswith("cuda")
    return {
        "run": run,
        "steps": settings["training"]["iterations"],
        "seed": args.seed,
        "size": args.size,
        "AP": evaluations[-1]["AP"],
        "AP50": evaluations[-1]["AP50"],
        "curve": [[row["step"], row["AP"]] for row in evaluations],
        "seconds": round(seconds, 1),
        "memory_gb": max((row["memory_gb"] for row in rows if row["event"] == "train"), default=None),
        "parameters": counts,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def run_all(args: argparse.Namespace) -> None:
    """Run what has no result yet, one after the other."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    for run in args.only or RUNS:
        steps = max(1, args.steps // RUNS[run][0])
        if any((row["run"], row["steps"], row["seed"]) == (run, steps, args.seed) for row in known):
            continue
        row = train(run, args)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{run}: AP {row['AP']:.3f} after {steps} steps, {row['seconds']:.0f} s", flush=True)


def report(args: argparse.Namespace) -> str:
    """The table of the results, and AP after each evaluation."""
    rows = [json.loads(line) for line in args.results.read_text().splitlines()]
    rows.sort(key=lambda row: (row["seed"], list(RUNS).index(row["run"])))
    lines = ["| start | steps | AP | AP50 | minutes | memory (GB) | trained (M) |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        memory = "" if row["memory_gb"] is None else f"{row['memory_gb']:.2f}"
        trained = f"{row['parameters']['trained'] / 1e6:.2f} of {row['parameters']['all'] / 1e6:.2f}"
        minutes = f"{row['seconds'] / 60:.1f}"
        cells = [TITLES[row["run"]], row["steps"], f"{row['AP']:.3f}", f"{row['AP50']:.3f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, minutes, memory, trained]))} |")
    lines.append("")
    lines += [f"{row['run']}: " + ", ".join(f"{ap:.3f} at {step}" for step, ap in row["curve"]) for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--steps", type=int, default=1600, help="of the run from ImageNet; the others have a quarter")
    run.add_argument("--only", nargs="+", choices=RUNS)
    run.add_argument("--size", type=int, default=320)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--evaluate-every", type=int, default=1, help="epochs")
    run.add_argument("--device", default="auto")
    run.add_argument("--runs", type=Path, default=Path("runs/fine_tuning"))
    run.add_argument("--out", type=Path, default=Path("docs/results/fine_tuning.jsonl"))
    show = commands.add_parser("report")
    show.add_argument("results", type=Path)
    args = parser.parse_args(arguments)
    if args.command == "run":
        run_all(args)
    else:
        print(report(args))


if __name__ == "__main__":
    main()
