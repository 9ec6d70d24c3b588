"""A training step and a forward pass on a CPU beside a peer, in one run: seconds, peak memory, and both as ratios.

    python benchmarks/training_step.py --rows detr de_detr [--repeats 3] [--json docs/results/training_step_cpu.json]

Both sides of a row run in processes of their own on the same images and objects and answer in turns (peer, ours, ours,
peer, …), so that drift of the machine meets both. A step is forward, losses of all layers, backward and AdamW. Peers:

* ``transformers`` builds DETR and Deformable DETR with random weights, nothing is downloaded; with auxiliary losses,
  unless ``--no-auxiliary`` is given, and with the published dropout of 0.1 everywhere, as ours: both train the same
  network. With ``--defaults`` it drops nothing in attention and hidden layers, as transformers builds it.
* DE-DETR and Relation-DETR are the published formulations (``published_forms.py``). With ``--golden`` they must first
  reproduce the recorded outputs and losses of the official implementations.

The peak is the largest resident set of a side's process after its steps, PyTorch and libraries included. A row replaces
that of the same name in the JSON file. ``--profile`` prints the operators of one step of our side instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from interleaved import compare, in_turns, serve, side
from measuring import peak_mib
from published_forms import detr_losses, publish
from relation import boxes, golden
from torch import Tensor

import detrkit
from detrkit.backends import BACKEND_VARIABLE
from detrkit.losses import build_criterion
from detrkit.structures import Target
from detrkit.training.memory import freed_memory_kept

ROOT = Path(__file__).resolve().parents[1]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table: our model, its peer and the bars."""

    ours: str
    peer: str
    images: int
    threads: int
    step: float
    """Times faster than the peer that a step must be."""
    forward: float | None
    """The same for a forward pass of one image."""
    memory: float | None
    """Share of the peer's peak that ours may be."""


ROWS = {
    "detr": Row("detr_r50", "transformers: detr", 2, 2, 1.5, 1.3, 0.8),
    "deformable_detr": Row("deformable_detr_r50_two_stage", "transformers: deformable_detr", 2, 2, 1.6, 2.0, 0.7),
    "de_detr": Row("de_detr_r50", "published: de_detr_r50", 2, 1, 2.0, 1.6, 0.8),
    "relation_detr": Row("relation_detr_r50", "published: relation_detr_r50", 1, 2, 1.6, None, 0.45),
    "dape": Row("dape_r50", "published: relation_detr_r50", 1, 2, 2.0, None, None),
}


def objects(number: int, classes: int) -> Target:
    """Random objects of an image."""
    labels = torch.randint(0, classes, (number,), generator=torch.Generator().manual_seed(0))
    return Target(labels=labels, boxes=boxes(number, "cpu", 0)[0])


def ours(name: str, options: argparse.Namespace, *, published: bool = False) -> tuple[Any, Loss]:
    """A model of this package, or its published form, and a function from images to the loss."""
    model: Any = detrkit.create_model(name)
    if published:
        os.environ[BACKEND_VARIABLE] = "reference"
        publish(model)
    criterion = build_criterion(model.config)
    targets = criterion.prepare([objects(options.objects, 80)] * options.images)
    weights = {"loss_class": 1, "loss_bbox": 5, "loss_giou": 2}

    def loss(images: Tensor) -> Tensor:
        out = model(images, None, targets)
        if published and name.startswith("de_detr"):
            losses = detr_losses(out, targets)
            return torch.stack([weights["_".join(key.split("_")[:2])] * value for key, value in losses.items()]).sum()
        total: Tensor = criterion(out, targets).total
        return total

    return model, loss


def transformers_side(name: str, options: argparse.Namespace) -> tuple[Any, Loss]:
    """The model of transformers and a function from images to its loss."""
    import transformers

    common: dict[str, Any] = {"num_labels": 91, "auxiliary_loss": not options.no_auxiliary}
    if not options.defaults:
        common |= {"attention_dropout": 0.1, "activation_dropout": 0.1}
    if name == "detr":
        model: Any = transformers.DetrForObjectDetection(transformers.DetrConfig(**common))
    else:
        config = transformers.DeformableDetrConfig(two_stage=True, with_box_refine=True, **common)
        model = transformers.DeformableDetrForObjectDetection(config)
    target = objects(options.objects, 80)
    labels = [{"class_labels": target.labels, "boxes": target.boxes}] * options.images

    def loss(images: Tensor) -> Tensor:
        value: Tensor = model(pixel_values=images, labels=labels).loss
        return value

    return model, loss


class Side:
    """One model with its images, loss and optimizer."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(options.threads or 2)
        kind, _, name = what.rpartition(": ")
        if kind == "transformers":
            self.model, self.loss = transformers_side(name, options)
        else:
            self.model, self.loss = ours(name, options, published=kind == "published")
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.memory = ExitStack()
        if not kind:
            self.memory.enter_context(freed_memory_kept(torch.device("cpu")))  # as `detrkit train` does
        # fused as in `detrkit train` and in the Trainer of transformers; the published repositories have no such option
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=kind != "published")
        self.images = torch.randn(options.images, 3, *options.size)

    def step(self) -> float:
        """Seconds of forward, losses, backward and update."""
        self.model.train()
        began = time.perf_counter()
        total = self.loss(self.images)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        if not torch.isfinite(total):
            raise RuntimeError(f"the loss is {float(total)}")
        return seconds

    def forward(self) -> float:
        """Seconds of a forward pass of one image."""
        self.model.eval()
        with torch.inference_mode():
            began = time.perf_counter()
            self.model(self.images[:1])
            return time.perf_counter() - began

    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for group in self.optimizer.param_groups for parameter in group["params"])


def answer(what: str, options: argparse.Namespace) -> None:
    """One side of a row: run what the other process asks for."""
    one = Side(what, options)
    serve(
        {
            "warm up": lambda: {"value": one.step()},
            "warm up forward": lambda: {"value": one.forward()},
            "step": lambda: {"value": one.step()},
            "forward": lambda: {"value": one.forward()},
            "peak": lambda: {"value": peak_mib("cpu")},
            "parameters": lambda: {"value": one.parameters()},
        }
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the table."""
    row = ROWS[name]
    threads = options.threads or row.threads
    arguments = ["--threads", str(threads), "--images", str(row.images), "--objects", str(options.objects)]
    arguments += ["--size", *map(str, options.size)] + ["--no-auxiliary"] * options.no_auxiliary
    arguments += ["--defaults"] * options.defaults
    with ExitStack() as stack:
        peer, own = (
            stack.enter_context(side(ROOT, Path(__file__), ["--answer", what, *arguments]))
            for what in (row.peer, row.ours)
        )
        for ask in (peer, own):
            ask("warm up")
        found = {"step_s": in_turns(peer, own, "step", options.repeats)}
        found["peak_MiB"] = compare([peer("peak")["value"]], [own("peak")["value"]])
        if row.forward is not None:
            for ask in (peer, own):
                ask("warm up forward")
            found["forward_s"] = in_turns(peer, own, "forward", options.repeats + 2)
        parameters = {"peer": peer("parameters")["value"], "ours": own("parameters")["value"]}
    result: dict[str, Any] = {"row": name, "ours": row.ours, "peer": row.peer, "images": row.images, "threads": threads}
    result |= {
        "size": options.size,
        "objects": options.objects,
        "auxiliary": not options.no_auxiliary,
        "defaults": options.defaults,
        "trained_parameters": parameters,
        "repeats": options.repeats,
    }
    result |= {key: asdict(value) for key, value in found.items()}
    result["bars"] = {"step": row.step, "forward": row.forward, "memory": row.memory}
    result["times_faster"] = {key: 1 / found[f"{key}_s"].ratio for key in ("step", "forward") if f"{key}_s" in found}
    result["of_the_memory"] = found["peak_MiB"].ratio
    return result


def check(name: str, shared: Path) -> float:
    """Largest relative difference of the losses of a published form from recorded ones."""
    if name != "de_detr":
        os.environ[BACKEND_VARIABLE] = "reference"
        return golden(shared, publish)
    sys.path.insert(0, str(ROOT))  # for the test code that reads recordings
    from tests.golden.harness import Case

    case = Case.read(shared, "de_detr_r50", {"cases": set(), "tensors": 0})
    model = detrkit.create_model("de_detr_r50", dropout=0.0).eval()
    detrkit.load_official(model, case.weights)
    out = publish(model)(*case.batch())
    case.close("pred_boxes_all_layers", out.boxes, "boxes_abs")
    recorded = case.info["losses"]
    losses = {key.replace("class", "ce"): float(value) for key, value in detr_losses(out, case.targets()).items()}
    return max(abs(value / recorded[key] - 1) for key, value in losses.items())


def save(path: Path | None, row: dict[str, Any]) -> None:
    """Replace or add a row; every row says where it was measured."""
    if path is None:
        return
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    same = [all(one[key] == row[key] for key in ("row", "auxiliary", "defaults")) for one in rows]
    rows = [one for one, replaced in zip(rows, same, strict=True) if not replaced] + [row]
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def profile(what: str, options: argparse.Namespace) -> None:
    """Print the operators of a step, with the time of their own."""
    one = Side(what, options)
    one.step()
    with torch.profiler.profile(profile_memory=True) as found:
        one.step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=45, max_name_column_width=60))


def main() -> None:
    """Print one line per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-auxiliary", action="store_true", help="transformers without the losses of inner layers")
    parser.add_argument("--defaults", action="store_true", help="transformers with its own default dropout")
    parser.add_argument("--golden", type=Path, help="folder with golden/: check the published forms first")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", metavar="SIDE", help="a model of ours, or a peer as the table names it")
    parser.add_argument("--images", type=int, default=2, help="with --profile")
    parser.add_argument("--threads", type=int, help="default: those of the row")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.answer, options)
        return
    if options.profile:
        profile(options.profile, options)
        return
    for name in options.rows:
        error = None
        if options.golden is not None and "published" in ROWS[name].peer:
            error = check(name, options.golden)
            print(f"{name}: published form against recorded losses: {error:.1e} relative", flush=True)
        row = measure(name, options) | {"golden_losses_relative_error": error, "torch": torch.__version__}
        save(options.json, row)
        faster = ", ".join(f"{part} {value:.2f} times faster" for part, value in row["times_faster"].items())
        print(
            f"{name}: {faster}, {row['of_the_memory']:.2f} of the memory (bars {row['bars']}); "
            f"step {row['step_s']['old']:.2f} -> {row['step_s']['new']:.2f} s, "
            f"peak {row['peak_MiB']['old']:.0f} -> {row['peak_MiB']['new']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
