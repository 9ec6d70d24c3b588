"""Memory of an evaluation with many masks an image: the resident set of the process after every hundred images.

python benchmarks/mask_evaluation.py [--task inst pan sem] [--images 500] [--masks 300] [--json FILE]

The model is the constructed one of ``mask_prediction.py``: it finds as many discs as there are masks in every image,
whatever the image shows. Each task runs in a process of its own. Instances are kept as run lengths until the end, so a
little grows with their number; of panoptic and semantic maps the metrics keep counts alone.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from mask_prediction import CATEGORIES, Discs
from measuring import in_fresh_processes, resident_mib, save_rows

SIZE = (160, 128)
OBJECTS = 20
EVERY = 100


def write_data(root: Path, images: int) -> Path:
    """COCO with so many small pictures, each with hexagons in two classes on a ground of stuff."""
    from PIL import Image

    folder = root / "images" / "val"
    folder.mkdir(parents=True)
    width, height = SIZE
    whole = [0, 0, width, 0, width, height, 0, height]
    shapes = [(3, whole)]
    for number in range(OBJECTS):
        x, y, r = 20 + 30 * (number % 5), 16 + 32 * (number // 5), 12
        corners = ((x + r * math.cos(turn * math.pi / 3), y + r * math.sin(turn * math.pi / 3)) for turn in range(6))
        shapes.append((1 + number % 2, [round(value, 2) for corner in corners for value in corner]))
    rows: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        Image.effect_noise(SIZE, 60).convert("RGB").save(folder / f"{image}.png")
        for category, polygon in shapes:
            low, high = ([pick(polygon[axis::2]) for axis in (0, 1)] for pick in (min, max))
            box = [*low, high[0] - low[0], high[1] - low[1]]
            row = {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            rows.append({"id": len(rows) + 1, **row, "segmentation": [polygon]})
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": width, "height": height} for k in range(1, images + 1)],
        "annotations": rows,
        "categories": CATEGORIES.to_json(),
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def measure(task: str, root: Path, masks: int) -> dict[str, Any]:
    """Memory in MiB after every hundred images, seconds, and the score of one task."""
    from detrkit.data import load_dataset
    from detrkit.evaluation.loop import evaluate_model

    model = Discs(masks, SIZE[1]).eval()
    dataset = load_dataset(root, split="val", task=task)
    resident: dict[int, float] = {}

    def progress(done: int, total: int) -> None:
        if done % EVERY == 0 or done == total:
            resident[done] = resident_mib()
            print(f"{task}: {done} images, {resident[done]:.0f} MiB", flush=True)

    start = time.perf_counter()
    score = evaluate_model(model, dataset, device="cpu", progress=progress)
    after = resident_mib()
    print(f"{task}: scored, {after:.0f} MiB", flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return {"task": task, "resident_MiB": resident, "scored_MiB": after, "seconds": seconds, "score": score.value}


def main() -> None:
    """Measure the tasks one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("inst", "pan", "sem"), nargs="+", default=["inst", "pan", "sem"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--masks", type=int, default=300)
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write_data(Path(folder) / "data", arguments.images)
        rows = in_fresh_processes(partial(measure, root=root, masks=arguments.masks), arguments.task)
    setting = {"images": arguments.images, "masks": arguments.masks, "size": SIZE[::-1]}
    save_rows(arguments.json, [setting | row for row in rows], "cpu")


if __name__ == "__main__":
    main()
