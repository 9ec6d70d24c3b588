"""Do threads and processes predict alike, and does memory stay flat over many predictions and training steps?

    python benchmarks/parity.py [--json out.json]

Small models with random weights on made-up images of unlike size; no data, no download, about two minutes on two cores.
Exit code 1 where threads or processes differ from one thread, or memory grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from detrkit import Predictor, create_model, save
from detrkit.losses import build_criterion
from detrkit.structures import Target

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "num_queries": 20,
    "hidden_dim": 64,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 64,
    "eval_short_side": 96,
    "eval_max_side": 160,
}
SIZES = [(160, 120), (120, 160), (90, 90), (200, 64)]
MODELS = ["detr_lite0", "de_detr_lite0", "dape_lite0", "mask_dape_lite0"]
TOLERANCE = 1e-3
"""Largest difference of a score, and of a box in pixels, between one thread and several."""
GROWTH = 25.0
"""MiB that the process may grow between the first third and the end."""

Found = list[tuple[Any, Any]]


def images(count: int) -> list[Image.Image]:
    """Made-up images of unlike sizes."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
        for width, height in (SIZES[number % len(SIZES)] for number in range(count))
    ]


def predict_all(path: str, count: int) -> Found:
    """Scores and boxes of every image, with a predictor of its own; runs in a fresh process."""
    torch.set_num_threads(1)
    predictor = Predictor(path, device="cpu", threshold=0.0)
    return [_numbers(predictor, image) for image in images(count)]


def in_threads(path: str, count: int, threads: int) -> Found:
    """The same from several threads with one predictor."""
    predictor = Predictor(path, device="cpu", threshold=0.0)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda image: _numbers(predictor, image), images(count)))


def in_processes(path: str, count: int, processes: int) -> list[Found]:
    """The same in several fresh processes at once."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.starmap(predict_all, [(path, count)] * processes)


def _numbers(predictor: Predictor, image: Image.Image) -> tuple[Any, Any]:
    found = predictor.predict(image, task="det")
    return found.scores, found.boxes


def difference(a: Found, b: Found) -> float:
    """The largest difference of scores and boxes; infinite where the numbers of objects differ."""
    worst = 0.0
    for (scores, boxes), (others, theirs) in zip(a, b, strict=True):
        if len(scores) != len(others):
            return float("inf")
        worst = max(worst, float(np.abs(scores - others).max(initial=0)), float(np.abs(boxes - theirs).max(initial=0)))
    return worst


def resident() -> float:
    """MiB of memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def growth(step: Callable[[int], object], count: int) -> float:
    """MiB by which the process grows after the first third of ``count`` steps."""
    start = 0.0
    for number in range(count):
        step(number)
        if number == count // 3:
            gc.collect()
            start = resident()
    gc.collect()
    return resident() - start


def growth_of_predictions(name: str, count: int) -> float:
    """Over predictions of images of unlike size."""
    predictor = Predictor(create_model(name, **SMALL), device="cpu", threshold=0.0)
    pictures = images(len(SIZES))
    return growth(lambda number: predictor.predict(pictures[number % len(pictures)]), count)


def growth_of_training(name: str, count: int) -> float:
    """Over forward, losses, backward and optimizer step on batches of unlike size."""
    torch.manual_seed(0)
    model = create_model(name, **SMALL).train()
    criterion = build_criterion(model.config)
    has_masks = model.config.architecture.task != "det"
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-5)

    def step(number: int) -> None:
        width, height = SIZES[number % len(SIZES)]
        targets = [
            Target(
                labels=torch.tensor([0, 2]),
                boxes=torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.3, 0.2, 0.2]]),
                masks=torch.rand(2, height, width) > 0.5 if has_masks else None,
                size=(height, width),
            )
            for _ in range(2)
        ]
        found = model(torch.rand(2, 3, height, width), None, targets)
        loss = criterion(found, targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return growth(step, count)


def parity(name: str, *, threads: int = 8, processes: int = 4, count: int = 16) -> dict[str, float]:
    """Largest differences between one thread, several threads and several processes."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = str(save(create_model(name, **SMALL), Path(folder) / "m.safetensors"))
        alone = predict_all(path, count)
        return {
            "again": difference(alone, predict_all(path, count)),
            f"{threads} threads": difference(alone, in_threads(path, count, threads)),
            f"{processes} processes": max(difference(alone, found) for found in in_processes(path, count, processes)),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows, failed = {}, False
    for name in options.models:
        row = parity(name)
        failed |= any(value > TOLERANCE for value in row.values())
        row[f"MiB over {options.predictions} predictions"] = growth_of_predictions(name, options.predictions)
        row[f"MiB over {options.steps} training steps"] = growth_of_training(name, options.steps)
        failed |= any(value > GROWTH for key, value in row.items() if key.startswith("MiB"))
        rows[name] = row
        print(name, ", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print("differs, or memory grows" if failed else "equal, and memory is flat")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
