"""Peak memory of predicting a large image with many masks, files and picture included.

python benchmarks/mask_prediction.py [--task inst pan] [--size 4000 5000] [--masks 100] [--network 800] [--json FILE]

The model is constructed: it finds as many discs as there are masks, whatever the image shows, so that nothing but the
path from masks at 1/4 to files is measured. ``--network`` is the shorter side of the image that the model sees.
Each task runs in a process of its own. Printed beside the peak: what all masks would take at once as float32 at the
original size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import MIB, in_fresh_processes, peak_mib, save_rows
from PIL import Image
from torch import Tensor

from detrkit.inference.prediction_folder import PredictionFolder
from detrkit.inference.predictor import Predictor
from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import Categories, Category, Predictions, Target

CATEGORIES = Categories([Category(1, "disc"), Category(2, "ring"), Category(3, "ground", is_thing=False)])


class Discs(Detector):
    """Finds discs on a grid; every mask is the product of a query and of the pixels, as in a real mask branch."""

    def __init__(self, masks: int, network: int) -> None:
        options = {
            "task": "pan",
            "num_classes": len(CATEGORIES),
            "num_queries": masks,
            "classification": "focal",
            "top_k": masks,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "eval_short_side": network,
            "eval_max_side": 2 * network,
        }
        super().__init__(config=DetectorConfig.from_flat(Architecture, options))
        self.categories = CATEGORIES

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Logit of a disc: r² - |pixel - centre|², a product of 4 numbers of the query and of the pixel."""
        count = self.config.architecture.num_queries
        side = int(np.ceil(np.sqrt(count)))
        number = torch.arange(count)
        x, y, r = (number % side + 0.5) / side, (number // side + 0.5) / side, 0.48 / side
        rows, columns = (torch.linspace(0, 1, -(-length // 4)) for length in images.shape[2:])
        py, px = torch.meshgrid(rows, columns, indexing="ij")
        ones = torch.ones_like(px)
        queries = 5e4 * torch.stack((2 * x, 2 * y, r**2 - x**2 - y**2, -torch.ones(count)), dim=1)
        pixels = torch.stack((px, py, ones, px**2 + py**2))
        logits = torch.full((count, len(CATEGORIES)), -6.0)
        logits[number, number % 2] = 4.0
        boxes = torch.stack((x, y, *[torch.full((count,), 2 * r)] * 2), dim=1)
        return Predictions(
            logits[None, None], boxes[None, None], masks=EmbeddedMasks(queries[None, None], pixels[None])
        )


def measure(task: str, size: tuple[int, int], masks: int, network: int) -> dict[str, Any]:
    """Predict, write the files, draw; peak of this process in MiB, and seconds."""
    height, width = size
    image = Image.effect_noise((width, height), 60).convert("RGB")
    predictor = Predictor(Discs(masks, network), device="cpu")
    before = peak_mib("cpu")
    start = time.perf_counter()
    found = predictor.predict(image, task=task)
    predicted = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as out:
        folder = PredictionFolder(Path(out), CATEGORIES, task=task)
        folder.add("image.png", found, image)
        folder.write()
    written = time.perf_counter() - start - predicted
    peak, dense = peak_mib("cpu"), 4 * height * width * masks / MIB
    print(
        f"{task}, {masks} masks, {height} x {width}: peak {peak / 1024:.2f} GiB ({before / 1024:.2f} before; all masks "
        f"as float32: {dense / 1024:.2f}), {predicted:.1f} s to predict, {written:.1f} s to write and draw; "
        f"found {folder.counts()}",
        flush=True,
    )
    setting = {"task": task, "masks": masks, "size": [height, width]}
    return setting | {"peak_MiB": peak, "before_MiB": before, "dense_MiB": dense, "seconds": predicted + written}


def main() -> None:
    """Measure the tasks one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("det", "inst", "pan", "sem"), nargs="+", default=["inst", "pan"])
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 5000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--network", type=int, default=800)
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    one = partial(measure, size=arguments.size, masks=arguments.masks, network=arguments.network)
    save_rows(arguments.json, in_fresh_processes(one, arguments.task), "cpu")


if __name__ == "__main__":
    main()
