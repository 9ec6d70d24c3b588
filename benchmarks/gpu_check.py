"""Does everything work on a GPU? Every model: outputs, a training step in each precision, evaluation, saving; resuming.

python benchmarks/gpu_check.py [--device cuda] [--models '*_lite0'] --out check.jsonl

One line of JSON after every model, and the exit code is 1 when something failed. For each model:

- outputs: of the CPU and of the device, float32 without TF32, agree within TOLERANCE of the largest value. Two-stage
  models choose queries by rank, where rounding may swap two that are almost equal and everything after it: so one of
  three batches suffices, and where none agrees the same is tried in float64.
- steps: forward, losses, backward and update in fp32, bf16 and fp16 leave finite losses, gradients and weights. With
  fp16 the gradient scaler may first lower its scale, as in training.
- saved: what is saved from the device and loaded has the same weights, bit by bit.
- evaluated: `detrkit.evaluate` on four drawn images.

At last one model trains for four steps in one go and, in another folder, for two and then two more: the losses of the
resumed steps agree within RESUMED (some kernels add in an order of their own on a GPU).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compare_checkouts import NUM_CLASSES, batch, fill, relative
from PIL import Image, ImageDraw
from torch import Tensor

import detrkit
from detrkit.losses import build_criterion

TOLERANCE = 2e-4  # float32 on a CPU, computed in another order, is up to 2e-5 off
RESUMED = 1e-2
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CANVAS = {"full": (320, 427), "tiny": (64, 96)}
LARGEST_SCALE = 2.0**16  # of the loss in fp16, as training begins

Found = dict[str, Any]


class CheckError(Exception):
    """A check that did not pass, with what it found."""

    def __init__(self, found: object) -> None:
        super().__init__(str(found))
        self.found = found


def outputs(name: str, device: str, canvas: tuple[int, int]) -> Found:
    """Largest relative difference between CPU and device, of every batch that was tried."""
    torch.manual_seed(0)
    model = detrkit.create_model(name, num_classes=NUM_CLASSES).eval()
    fill(model)

    @torch.no_grad()
    def run(where: str, kind: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        images, mask, _ = batch(seed, canvas)
        out = model.to(where, kind)(images.to(where, kind), mask.to(where))
        return out.logits.cpu(), out.boxes.cpu()

    def difference(kind: torch.dtype, seed: int) -> float:
        return max(relative(*pair) for pair in zip(run("cpu", kind, seed), run(device, kind, seed), strict=True))

    found: Found = {"fp32": []}
    for seed in range(3):
        found["fp32"].append(difference(torch.float32, seed))
        if found["fp32"][-1] <= TOLERANCE:
            return found
    found["fp64"] = difference(torch.float64, 0)
    if found["fp64"] > TOLERANCE:
        raise CheckError(found)
    return found


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are tensors without NaN and infinity."""
    return bool(tensors) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def step(name: str, device: str, canvas: tuple[int, int], precision: str) -> Found:
    """One training step that has an effect: its loss, gradient norm and, in fp16, the scale of the loss."""
    torch.manual_seed(0)
    model = detrkit.create_model(name, num_classes=NUM_CLASSES).to(device).train()
    criterion = build_criterion(model.config)
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)
    kind, images_of = PRECISIONS[precision], batch(0, canvas)
    images, mask = images_of[0].to(device), images_of[1].to(device)
    targets = criterion.prepare([target.to(device) for target in images_of[2]])
    scale = LARGEST_SCALE if precision == "fp16" else 1.0
    while True:
        with torch.autocast(device.split(":")[0], dtype=kind, enabled=kind is not None):
            out = model(images, mask, targets)
        loss = criterion(out, targets)
        (loss.total * scale).backward()
        gradients = {key: value.grad / scale for key, value in parameters.items() if value.grad is not None}
        found = {
            "loss": float(loss.total.detach()),
            "scale": scale,
            "without gradient": len(parameters) - len(gradients),
        }
        if not finite({"total": loss.total.detach(), **loss.terms}):
            raise CheckError(found | {"not finite": "loss"})
        if finite(gradients):
            break
        if scale <= 1.0:
            bad = [key for key, value in gradients.items() if not torch.isfinite(value).all()]
            raise CheckError(
                found | {"not finite": f"gradients, {len(bad)} of {len(gradients)}, the first of {bad[0]}"}
            )
        optimizer.zero_grad()
        scale /= 4
    for key, value in gradients.items():
        parameters[key].grad = value
    optimizer.step()
    if not finite(parameters):
        raise CheckError(found | {"not finite": "weights"})
    return found | {
        "gradient_norm": math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))
    }


def saved(name: str, device: str, folder: Path) -> bool:
    """Weights survive a file."""
    model = detrkit.create_model(name, num_classes=2).to(device)
    fill(model)
    path = folder / f"{name}.safetensors"
    detrkit.save(model, path)
    again = detrkit.load(path).state_dict()
    unlike = [key for key, value in model.state_dict().items() if not torch.equal(value.cpu(), again[key])]
    if unlike:
        raise CheckError(unlike)
    return True


def drawn_data(folder: Path) -> Path:
    """A COCO folder: four images for training and four to validate, with two classes of rectangles."""
    draw = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        images, boxes = [], []
        (folder / "images" / split).mkdir(parents=True)
        for number in range(1, 5):
            picture = Image.new("RGB", (128, 96), "white")
            for _ in range(3):
                x, y, w, h = (torch.rand(4, generator=draw) * torch.tensor([80, 60, 32, 24]) + 8).int().tolist()
                label = int(torch.randint(2, (), generator=draw))
                ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + h - 1), fill=("red", "blue")[label])
                one = {"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, "bbox": [x, y, w, h]}
                boxes.append(one | {"area": w * h, "iscrowd": 0})
            picture.save(folder / "images" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def evaluated(checkpoint: Path, data: Path, device: str) -> Found:
    """AP of weights that never saw anything: what counts is that the way to it works."""
    score = detrkit.evaluate(checkpoint, data, device=device)
    return {"protocol": score["protocol"], "AP": score["metrics"]["AP"]}


def resumed(name: str, device: str, data: Path, folder: Path) -> Found:
    """Losses of the third and fourth step, trained in one go and resumed."""
    recipe = {
        "model": {"name": name, "pretrained_backbone": False},
        "data": {"root": str(data), "short_sides": [96], "max_side": 160, "crop": False},
        "training": {"batch_size": 2, "workers": 0, "evaluate_every": 0, "device": device},
        "schedule": {"kind": "constant"},
        "logging": {"every": 1},
    }

    def losses(output: Path) -> list[float]:
        rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if row["event"] == "train"]

    detrkit.train(recipe, iterations=4, output=str(folder / "once"))
    detrkit.train(recipe, iterations=2, output=str(folder / "twice"))
    detrkit.train(recipe, iterations=4, output=str(folder / "twice"), resume=True)
    once, twice = losses(folder / "once"), losses(folder / "twice")
    found = {"once": once, "resumed": twice}
    if len(once) != 4 or len(twice) != 4 or not all(map(math.isfinite, once + twice)):
        raise CheckError(found)
    if any(abs(a - b) > RESUMED * abs(a) for a, b in zip(once, twice, strict=True)):
        raise CheckError(found)
    return found


def checked(checks: dict[str, Callable[[], object]]) -> Found:
    """What each check found; the names of those that failed under "failed"."""
    found: Found = {"failed": []}
    start = time.perf_counter()
    for name, check in checks.items():
        try:
            found[name] = check()
        except CheckError as failure:
            found[name] = failure.found
            found["failed"].append(name)
        except Exception as error:  # the other checks are still worth a try
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
            found["failed"].append(name)
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    """Checks every model, then resuming; prints and writes a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns of them")
    parser.add_argument("--size", choices=CANVAS, default="full", help="of the images")
    parser.add_argument("--resume", default="dape_lite0", help="the model that is trained and resumed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, canvas, failed = options.device, CANVAS[options.size], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = drawn_data(folder / "data")

        def note(row: Found) -> None:
            nonlocal failed
            failed += bool(row["failed"])
            print(
                f"{row['name']}: {'FAILED ' + json.dumps(row) if row['failed'] else 'ok'} ({row['seconds']} s)",
                flush=True,
            )
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")

        for name in dict.fromkeys(name for pattern in options.models for name in detrkit.list_models(pattern)):
            checks: dict[str, Callable[[], object]] = {"outputs": lambda name=name: outputs(name, device, canvas)}
            for precision in PRECISIONS:
                checks[precision] = lambda name=name, kind=precision: step(name, device, canvas, kind)
            checks["saved"] = lambda name=name: saved(name, device, folder)
            checks["evaluated"] = lambda name=name: evaluated(folder / f"{name}.safetensors", data, device)
            note({"name": name} | checked(checks))
        note({"name": "resume"} | checked({options.resume: lambda: resumed(options.resume, device, data, folder)}))
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
