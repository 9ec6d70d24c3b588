"""Training images read and augmented in a second by one core, beside the pipeline of DETR, in one run.

    python benchmarks/loader.py DATA [--images 40] [--repeats 5] [--json docs/results/loader_cpu.json]

The peer is the published pipeline, re-expressed: decode with Pillow, flip, one of two ways to resize (or resize, crop,
resize), ``ToTensor`` and ``Normalize`` of torchvision, boxes moved along. Both read the same files (blood cells are
JPEGs of 640 x 480) on one thread; passes over all images alternate. The parts show what was tried.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from measuring import save_rows, timed
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import decode_jpeg
from torchvision.transforms import functional as F

from detrkit.data import load_dataset
from detrkit.data.arrays import normalised
from detrkit.data.records import ImageRecord
from detrkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform, resize_shape

SIDES = list(range(480, 801, 32))
Boxes = Tensor


def _resized(image: Image.Image, boxes: Boxes, side: int, longest: int | None) -> tuple[Image.Image, Boxes]:
    height, width = resize_shape(image.height, image.width, side, longest)
    ratio = torch.tensor([width / image.width, height / image.height] * 2)
    return F.resize(image, [height, width]), boxes * ratio


def _cropped(image: Image.Image, boxes: Boxes) -> tuple[Image.Image, Boxes]:
    width, height = (random.randint(384, min(side, 600)) if side > 384 else side for side in image.size)
    top, left, height, width = T.RandomCrop.get_params(image, (height, width))
    moved = boxes - torch.tensor([left, top] * 2)
    moved = torch.minimum(moved.reshape(-1, 2, 2), torch.tensor([width, height])).clamp(min=0)
    return F.crop(image, top, left, height, width), moved[(moved[:, 1] > moved[:, 0]).all(1)].flatten(1)


def published(path: Path, record: ImageRecord) -> Tensor:
    """The image of a record as the published pipeline makes it."""
    image = Image.open(path).convert("RGB")
    boxes = torch.from_numpy(np.asarray(record.boxes, dtype=np.float32)).reshape(-1, 4)
    if random.random() < 0.5:
        image = F.hflip(image)
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([image.width, 0] * 2)
    if random.random() < 0.5:
        image, boxes = _resized(image, boxes, random.choice([400, 500, 600]), None)
        image, boxes = _cropped(image, boxes)
    image, boxes = _resized(image, boxes, random.choice(SIDES), 1333)
    pixels: Tensor = F.normalize(F.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
    low, high = boxes.split(2, dim=1)
    _ = torch.cat([(low + high) / 2, high - low], dim=1) / torch.tensor([image.width, image.height] * 2)
    return pixels


def parts(path: Path, repeats: int) -> dict[str, float]:
    """Milliseconds of what was tried, on one picture."""
    raw = path.read_bytes()
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    shape = resize_shape(image.height, image.width, 640, 1333)
    large = image.resize(shape[::-1], Image.Resampling.BILINEAR)

    def draft() -> None:
        opened = Image.open(io.BytesIO(raw))
        opened.draft("RGB", (image.width // 2, image.height // 2))
        opened.load()

    def in_torch() -> Image.Image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        resized = interpolate(pixels, shape, mode="bilinear", antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy())

    tried: dict[str, Callable[[], object]] = {
        "decode: Pillow": lambda: Image.open(io.BytesIO(raw)).load(),
        "decode: torchvision.io": lambda: decode_jpeg(data),
        "decode: Pillow, draft of half the size": draft,
        "resize: Pillow": lambda: image.resize(shape[::-1], Image.Resampling.BILINEAR),
        "resize: torch, uint8, with the way there and back": in_torch,
        "normalise: ToTensor, Normalize": lambda: F.normalize(F.to_tensor(large), IMAGENET_MEAN, IMAGENET_STD),
        "normalise: plane by plane": lambda: normalised(large, IMAGENET_MEAN, IMAGENET_STD),
    }
    return {name: 1e3 * timed(call, "cpu", repeats) for name, call in tried.items()}


def main() -> None:
    """Print milliseconds of an image of both sides, their ratio, and the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.data, split="train").with_transform(TrainTransform())
    count = min(options.images, len(dataset))
    paths = [Path(dataset.records[index].path) for index in range(count)]
    sides: dict[str, list[float]] = {"published": [], "ours": []}

    def run(name: str, epoch: int) -> None:
        random.seed(epoch)
        torch.manual_seed(epoch)
        dataset.set_epoch(0, epoch)
        began = time.perf_counter()
        for index in range(count):
            if name == "ours":
                _ = dataset[index].image
            else:
                published(paths[index], dataset.records[index])
        sides[name].append(1e3 * (time.perf_counter() - began) / count)

    for epoch in range(options.repeats + 1):
        for name in ("published", "ours") if epoch % 2 else ("ours", "published"):
            run(name, epoch)
    tried = parts(paths[0], 4 * options.repeats)
    theirs, own = (statistics.median(sides[name][1:]) for name in ("published", "ours"))
    size = statistics.median(dataset.records[index].width for index in range(count))
    rows: list[dict[str, Any]] = [
        {"what": "one training image", "published_ms": theirs, "ours_ms": own, "times_faster": theirs / own,
         "images": count, "repeats": options.repeats, "width": size},
        {"what": "parts", "ms": tried},
    ]  # fmt: skip
    print(f"one training image: {theirs:.1f} -> {own:.1f} ms, {theirs / own:.2f} times as many a second on one core")
    for name, value in tried.items():
        print(f"  {name:42} {value:6.2f} ms")
    save_rows(options.json, rows, "cpu")


if __name__ == "__main__":
    main()
