"""Compare two checkouts number by number: losses, gradients, training steps and predictions of their models.

python benchmarks/compare_checkouts.py OLD NEW --models '*_lite0' --json compared.json

If no number changed, it prints `bit-identical` for every model. Otherwise it prints the largest relative difference of
each quantity and its name; the exit code is 1 if one is above `--tolerance`. Models that only one checkout has are
named, not compared.

Each checkout runs in its own process with one thread. Only the public API is used, so this script works for old and new
code. Weights are generated from their names in the state dict, so both sides start equal even if they draw random
numbers in another order. Denoising queries are random: the seed is set before every forward pass, so a changed order of
random draws is a difference. Initial weights of `create_model` after equal seeds are compared for information only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from interleaved import environment
from torch import Tensor

if TYPE_CHECKING:
    from detrkit.structures import Target

Numbers = dict[str, dict[str, Tensor]]  # quantity -> name -> values
Row = dict[str, Any]  # result of one model, for JSON

NUM_CLASSES = 20
CANVAS = (192, 256)
NOT_DECISIVE = "initial weights"  # after equal seeds; they depend on the order in which modules are built
# Some gradients are zero except for rounding errors (the bias of keys before softmax). Values below this share of the
# largest value of their quantity are compared relative to that share.
FLOOR = {"gradients": 1e-3, "weights after": 1e-3}


# ------------------------------------------------------------------------------------------- numbers of one checkout


def named_weight(name: str, like: Tensor) -> Tensor:
    """Values that depend only on the name and shape of a weight, with the scale of a trained network."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(like.shape, generator=draw)
    normal = torch.randn(like.shape, generator=draw)
    if like.dim() >= 2:
        gain = 2.0 if like.dim() == 4 else 1.0  # convolutions are followed by a ReLU
        return normal * (gain * like.shape[0] / like.numel()) ** 0.5
    return 0.1 * normal + (name.endswith("weight") and like.dim() == 1)  # norms near 1, biases near 0


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Set every weight and floating-point buffer from its name; shared tensors are set from their first name."""
    done: set[int] = set()
    for name, value in sorted(model.state_dict().items()):
        if value.is_floating_point() and value.data_ptr() not in done:
            done.add(value.data_ptr())
            value.copy_(named_weight(name, value))


def signature(tensor: Tensor) -> Tensor:
    """(2,) norm and a projection: a change of any value changes one of them."""
    flat = tensor.detach().double().flatten()
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return torch.stack([flat.norm(), flat @ wave])


def batch(seed: int, canvas: tuple[int, int] = CANVAS) -> tuple[Tensor, Tensor, list[Target]]:
    """Two images of different size on one canvas (2, 3, H, W), their padding (2, H, W), and up to six objects each."""
    from detrkit.structures import Target

    draw = torch.Generator().manual_seed(seed)
    height, width = canvas
    images, mask = torch.zeros(2, 3, height, width), torch.ones(2, height, width, dtype=torch.bool)
    sizes = [(height, width - 1 - seed % (width // 3)), (height - 1 - seed % (height // 3), width)]
    targets = []
    for index, (tall, wide) in enumerate(sizes):
        images[index, :, :tall, :wide] = torch.randn(3, tall, wide, generator=draw)
        mask[index, :tall, :wide] = False
        count = 4 + index if seed == 0 else int(torch.randint(7, (), generator=draw))
        centre, extent = torch.rand(count, 2, generator=draw), torch.rand(count, 2, generator=draw)
        boxes = torch.cat([0.2 + 0.6 * centre, 0.02 + 0.36 * extent], dim=1)
        labels = torch.randint(NUM_CLASSES, (count,), generator=draw)
        targets.append(Target(labels=labels, boxes=boxes, original_size=(2 * tall, 2 * wide), size=(tall, wide)))
    return images, mask, targets


def numbers(name: str, steps: int) -> Numbers:
    """All compared numbers of one model."""
    from detrkit import create_model
    from detrkit.losses import build_criterion

    torch.manual_seed(0)
    model = create_model(name, num_classes=NUM_CLASSES)
    initial = {key: signature(value) for key, value in model.state_dict().items()}
    fill(model)
    criterion = build_criterion(model.config)

    model.eval()
    found: Numbers = {NOT_DECISIVE: initial, "predictions": {}}
    images, mask, _ = batch(0)
    with torch.no_grad():
        for key, out in (("one image", model(images[:1, :, :, :233])), ("padded images", model(images, mask))):
            found["predictions"] |= {f"logits of {key}": out.logits, f"boxes of {key}": out.boxes}

    model.train()
    optimizer = torch.optim.AdamW([p for _, p in sorted(model.named_parameters()) if p.requires_grad], lr=1e-4)
    totals = {}
    for step in range(steps + 1):
        images, mask, targets = batch(step)
        torch.manual_seed(1000 + step)
        prepared = criterion.prepare(targets)
        loss = criterion(model(images, mask, prepared), prepared)
        optimizer.zero_grad()
        loss.total.backward()
        if step == 0:  # recorded in detail, without a weight update
            found["losses"] = {"total": loss.total.detach(), **loss.terms}
            weights = model.state_dict(keep_vars=True)
            gradients = {key: signature(value.grad) for key, value in weights.items() if value.grad is not None}
            total = torch.stack([value[0] for _, value in sorted(gradients.items())]).norm()
            found["gradients"] = gradients | {"(all)": total}
        else:
            totals[f"step {step}"] = loss.total.detach()
            optimizer.step()
    found["training"] = totals
    found["weights after"] = {key: signature(value) for key, value in model.state_dict().items()}
    return found


def work(checkout: Path, patterns: list[str], steps: int, out: Path) -> None:
    """Compute the numbers of every model in this process and write one file per model."""
    import detrkit

    source = Path(detrkit.__file__).resolve()
    if not source.is_relative_to(checkout.resolve()):
        raise SystemExit(f"detrkit was imported from {source}, not from {checkout}")
    torch.set_num_threads(1)
    for name in dict.fromkeys(name for pattern in patterns for name in detrkit.list_models(pattern)):
        file = out / f"{name}.pt"
        if not file.exists():
            print(f"{checkout}: {name}", file=sys.stderr, flush=True)
            try:
                found: Numbers | str = numbers(name, steps)
            except Exception as error:  # continue with the other models
                found = f"{type(error).__name__}: {error}"
            part = out / f"part{os.getpid()}"
            torch.save(found, part)
            part.rename(file)


# ---------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Difference:
    """Difference of one quantity: values compared, values identical, largest relative difference and its name."""

    quantity: str
    compared: int
    identical: int
    largest: float
    where: str

    @property
    def decisive(self) -> bool:
        return self.quantity != NOT_DECISIVE


def relative(old: Tensor, new: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest value (or ``floor``); infinite for NaN or another shape or dtype."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if torch.equal(old, new):
        return 0.0
    old, new = old.double(), new.double()
    if not (old.isfinite().all() and new.isfinite().all()):
        return float("inf")
    scale = max(float(old.abs().max()), float(new.abs().max()), floor)
    return float((old - new).abs().max()) / scale


def compare(old: Numbers, new: Numbers) -> list[Difference]:
    """Differences of every quantity; a name that is missing on one side is an infinite difference."""
    found = []
    for quantity in dict.fromkeys([*old, *new]):
        left, right = old.get(quantity, {}), new.get(quantity, {})
        sizes = [float(value.abs().max()) for value in left.values() if value.numel()]
        floor = FLOOR.get(quantity, 0.0) * max(sizes, default=0.0)
        largest, where, identical = 0.0, "", 0
        names = dict.fromkeys([*left, *right])
        for name in names:
            both = name in left and name in right
            place = name if both else f"{name} (only in the {'old' if name in left else 'new'})"
            one = relative(left[name], right[name], floor) if both else float("inf")
            identical += one == 0.0
            if one > largest:
                largest, where = one, place
        found.append(Difference(quantity, len(names), identical, largest, where))
    return found


def report(name: str, old: Numbers | str, new: Numbers | str, tolerance: float) -> Row:
    """Print the comparison of one model and return it as data."""
    broken = {side: value for side, value in (("old", old), ("new", new)) if isinstance(value, str)}
    if isinstance(old, str) or isinstance(new, str):
        print(f"{name}: " + " · ".join(f"{side} failed: {value}" for side, value in broken.items()), flush=True)
        return {"model": name, "passed": False, "failed": broken}
    differences = compare(old, new)
    worst = max((one.largest for one in differences if one.decisive), default=0.0)
    values = sum(one.compared for one in differences if one.decisive)
    passed = worst <= tolerance
    verdict = "bit-identical" if worst == 0 else f"within {worst:.1e}" if passed else f"DIFFERS by {worst:.1e}"
    print(f"{name}: {verdict} ({values:,} values)", flush=True)
    for one in differences:
        if one.largest > 0:
            note = "" if one.decisive else " (for information)"
            equal = f"{one.identical} of {one.compared} equal"
            print(f"    {one.quantity}{note}: {equal}, {one.largest:.1e} at {one.where}", flush=True)
    quantities = [asdict(one) for one in differences]
    return {"model": name, "passed": passed, "largest": worst, "quantities": quantities}


# -------------------------------------------------------------------------------------------------------- two processes


def cache_folder(cache: Path | None, checkout: Path, steps: int) -> str | None:
    """Folder below ``cache`` with the numbers of a checkout; None without a cache or with uncommitted changes."""
    if cache is None:
        return None
    git = ["git", "-C", str(checkout)]
    if subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout:
        return None
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    version = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:8]
    return str(cache / f"{commit[:12]}_{version}_{steps}")


def start(checkout: Path, options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start the process of one checkout, which writes its numbers to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    arguments = [str(checkout), str(out), "--worker", "--steps", str(options.steps), "--models", *options.models]
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment(checkout, **threads))


def computed(out: Path, patterns: list[str]) -> dict[str, Path]:
    """Model -> file of its numbers, for all finished models."""
    files = {file.stem: file for file in sorted(out.glob("*.pt"))}
    return {name: file for name, file in files.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def compare_new(old: dict[str, Path], new: dict[str, Path], tolerance: float, rows: dict[str, Row]) -> None:
    """Report the models that both sides have finished and that are not yet in ``rows``."""
    for name in sorted(old.keys() & new.keys() - rows.keys()):
        rows[name] = report(name, torch.load(old[name]), torch.load(new[name]), tolerance)


def report_unpaired(old: dict[str, Path], new: dict[str, Path]) -> list[Row]:
    """Name the models that only one side has; they are no differences."""
    rows: list[Row] = []
    for side, mine, other in (("old", old, new), ("new", new, old)):
        names = sorted(mine.keys() - other.keys())
        if names:
            print(f"only in the {side}, not compared: {', '.join(names)}", flush=True)
        rows += [{"model": name, "passed": None, "only_in": side} for name in names]
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run both checkouts and compare them model by model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="reference checkout")
    parser.add_argument("new", type=Path, help="checkout to compare")
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest relative difference that passes")
    parser.add_argument("--together", action="store_true", help="run both checkouts at the same time")
    parser.add_argument(
        "--cache", type=Path, help="folder that stores the numbers of checkouts without uncommitted changes"
    )
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.old, options.models, options.steps, options.new)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        old, new = (
            Path(cache_folder(options.cache, checkout, options.steps) or f"{temporary}/{side}")
            for side, checkout in (("old", options.old), ("new", options.new))
        )
        running = [start(options.old, options, old)]
        if not options.together and running[0].wait():
            return 1
        running.append(start(options.new, options, new))
        rows: dict[str, Row] = {}
        while any([process.poll() is None for process in running]):
            compare_new(computed(old, options.models), computed(new, options.models), options.tolerance, rows)
            time.sleep(0.5)
        if any(process.returncode for process in running):
            return 1
        sides = computed(old, options.models), computed(new, options.models)
        compare_new(*sides, options.tolerance, rows)
        unpaired = report_unpaired(*sides)
    if options.json:
        options.json.write_text(json.dumps([*rows.values(), *unpaired], indent=1) + "\n")
    failed = sum(not row["passed"] for row in rows.values())
    print(f"{len(rows)} models compared, {failed} failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
