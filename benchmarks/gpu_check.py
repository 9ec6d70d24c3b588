"""Check that everything works on a GPU: outputs, training steps, evaluation and saving of every model; resuming.

python benchmarks/gpu_check.py [--device cuda] [--models '*_lite0'] --out check.jsonl

It writes one line of JSON per model; the exit code is 1 if a check failed. For each model:

- outputs: CPU and device agree within TOLERANCE of the largest value, in float32 without TF32. Two-stage models select
  queries by rank, and rounding may swap two that are almost equal, which changes all later numbers. So agreement on one
  of three batches is enough; if none agrees, float64 decides.
- fp32, bf16, fp16: forward, losses, backward and update give finite losses, gradients and weights. With fp16 the
  gradient scaler may first lower its scale, as in training.
- saved: weights are bit-identical after saving from the device and loading.
- evaluated: `detrkit.evaluate` works on four generated images.

Finally, one model trains for four steps without a break and, in another folder, for two steps and two more after a
resume: the losses agree within RESUMED (some GPU kernels do not add in a fixed order).
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from compare_checkouts import NUM_CLASSES, batch, fill, relative
from PIL import Image, ImageDraw
from torch import Tensor

import detrkit
from detrkit.losses import build_criterion
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Target

TOLERANCE = 2e-4  # another order of operations alone gives differences up to 2e-5 in float32
RESUMED = 1e-2
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CANVAS = {"full": (320, 427), "tiny": (64, 96)}
LARGEST_SCALE = 2.0**16  # initial loss scale of fp16 training

Found = dict[str, Any]


class CheckError(Exception):
    """A failed check with its findings."""

    def __init__(self, found: object) -> None:
        super().__init__(str(found))
        self.found = found


def check_outputs(name: str, device: str, canvas: tuple[int, int]) -> Found:
    """Largest relative difference between CPU and device for every batch that was tried."""
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
    """Whether there are tensors, all without NaN and infinity."""
    return bool(tensors) and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def with_masks(target: Target) -> Target:
    """Objects that fill their boxes."""
    height, width = target.size
    x1, y1, x2, y2 = (cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height] * 2)).round().long().T
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = [
        (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        for left, top, right, bottom in zip(x1, y1, x2, y2, strict=True)
    ]
    return replace(target, masks=torch.stack(inside))


def check_step(name: str, device: str, canvas: tuple[int, int], precision: str) -> Found:
    """Loss, gradient norm and, in fp16, loss scale of one training step with finite numbers."""
    torch.manual_seed(0)
    model = detrkit.create_model(name, num_classes=NUM_CLASSES).to(device).train()
    criterion = build_criterion(model.config)
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)
    kind, (images, mask, targets) = PRECISIONS[precision], batch(0, canvas)
    if model.config.architecture.task != "det":
        targets = [with_masks(target) for target in targets]
    images, mask = images.to(device), mask.to(device)
    targets = criterion.prepare([target.to(device) for target in targets])
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


def check_saving(name: str, device: str, folder: Path) -> bool:
    """Whether weights are the same after saving and loading."""
    model = detrkit.create_model(name, num_classes=2).to(device)
    fill(model)
    path = folder / f"{name}.safetensors"
    detrkit.save(model, path)
    again = detrkit.load(path).state_dict()
    different = [key for key, value in model.state_dict().items() if not torch.equal(value.cpu(), again[key])]
    if different:
        raise CheckError(different)
    return True


def generate_data(folder: Path) -> Path:
    """Write a COCO folder: four images each for training and validation, with rectangles of two classes."""
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
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                boxes.append(one | {"area": w * h, "iscrowd": 0, "segmentation": [outline]})
            picture.save(folder / "images" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        annotations = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(annotations))
    return folder


def check_evaluation(checkpoint: Path, data: Path, device: str) -> Found:
    """AP of untrained weights; the check only needs the evaluation to run."""
    score = detrkit.evaluate(checkpoint, data, device=device)
    return {"protocol": score["protocol"], "AP": score["metrics"]["AP"]}


def check_resuming(name: str, device: str, data: Path, folder: Path) -> Found:
    """Losses of four steps, trained without a break and resumed after two."""
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


def run_checks(checks: dict[str, Callable[[], object]]) -> Found:
    """Findings of each check; "failed" lists the names of failed checks."""
    found: Found = {"failed": []}
    start = time.perf_counter()
    for name, check in checks.items():
        try:
            found[name] = check()
        except CheckError as failure:
            found[name] = failure.found
            found["failed"].append(name)
        except Exception as error:  # continue with the other checks
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
            found["failed"].append(name)
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    """Check every model, then resuming; print and write one line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["*_lite0"], help="names or shell patterns")
    parser.add_argument("--size", choices=CANVAS, default="full", help="size of the images")
    parser.add_argument("--resume", default="dape_lite0", help="model to train and resume")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, canvas, failed = options.device, CANVAS[options.size], 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = generate_data(folder / "data")

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
            checks: dict[str, Callable[[], object]] = {"outputs": lambda name=name: check_outputs(name, device, canvas)}
            for precision in PRECISIONS:
                checks[precision] = lambda name=name, kind=precision: check_step(name, device, canvas, kind)
            checks["saved"] = lambda name=name: check_saving(name, device, folder)
            checks["evaluated"] = lambda name=name: check_evaluation(folder / f"{name}.safetensors", data, device)
            note({"name": name} | run_checks(checks))
        resuming = {options.resume: lambda: check_resuming(options.resume, device, data, folder)}
        note({"name": "resume"} | run_checks(resuming))
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
