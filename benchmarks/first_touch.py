"""What a user feels first: how soon commands answer, and how fast a results file is scored.

    python benchmarks/first_touch.py --json docs/results/first_touch_cpu.json

Each command runs in a process of its own, as in a shell, and the best of a few runs counts. Beside them: importing
torch, torchvision and timm alone, which a prediction cannot do without, and pycocotools on the same files
(``--images`` images with 100 detections each). Both sides in one run, as ratios; the AP of both must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HERE = [sys.executable, "-m", "detrkit"]
IMPORTS = [sys.executable, "-c", "import torch, torchvision, timm"]
PYCOCOTOOLS = """
import contextlib, io, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(sys.argv[1])
    evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
print(evaluation.stats[0])
"""


def seconds(command: Sequence[str], repeats: int) -> tuple[float, str]:
    """Best wall time of a command, and what it printed."""
    best, printed = float("inf"), ""
    for _ in range(repeats):
        start = time.perf_counter()
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        best = min(best, time.perf_counter() - start)
    return best, printed


def make_detections(folder: Path, images: int, detections: int = 100, classes: int = 80) -> tuple[Path, Path]:
    """Ground truth with seven objects an image, and results: most objects found, and noise."""
    random = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, images + 1):
        boxes = np.concatenate([random.uniform(0, 500, (7, 2)), random.uniform(8, 140, (7, 2))], axis=1).round(2)
        labels = random.integers(1, classes + 1, 7)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            row = {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **row})
        found = np.tile(boxes, (-(-detections // 7), 1))[:detections] + random.normal(0, 9, (detections, 4))
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        guesses = np.where(random.random(detections) < 0.5, np.resize(labels, detections), 1)
        scores = random.random(detections)
        for box, label, score in zip(found.round(2).tolist(), guesses.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": round(score, 5)})
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 640} for n in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
    }
    paths = folder / "gt.json", folder / "found.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def make_data(folder: Path) -> Path:
    """A small COCO data set."""
    images = folder / "data" / "images" / "train"
    images.mkdir(parents=True)
    rows, annotations = [], []
    for number in range(1, 21):
        Image.new("RGB", (320, 240), (12 * number, 90, 40)).save(images / f"{number}.png")
        rows.append({"id": number, "file_name": f"{number}.png", "width": 320, "height": 240})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [9, 9, 90, 80], "area": 7200})
    path = folder / "data" / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": [{"id": 1, "name": "bolt"}]}))
    return folder / "data"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images that are scored")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []

    def show(what: str, ours: float, beside: str = "", theirs: float | None = None) -> None:
        row: dict[str, object] = {"what": what, "seconds": round(ours, 3)}
        text = f"{what:34} {ours:8.2f} s"
        if theirs is not None:
            row |= {"beside": beside, "beside_seconds": round(theirs, 3), "ratio": round(theirs / ours, 2)}
            text += f"   {beside}: {theirs:.2f} s, ratio {theirs / ours:.2f}"
        rows.append(row)
        print(text, flush=True)
        if given.json is not None:
            content = {"cores": os.cpu_count(), "images": given.images, "rows": rows}
            given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = str(make_data(folder))
        for words in (["--help"], ["models"], ["env"], ["weights", "list"], ["data", "check", data]):
            show(" ".join(words).replace(data, "DIR"), seconds([*HERE, *words], given.repeats)[0])
        show("data stats DIR", seconds([*HERE, "data", "stats", data], given.repeats)[0])
        photo = f"{data}/images/train/1.png"
        imports, _ = seconds(IMPORTS, given.repeats)
        predict, _ = seconds([*HERE, "predict", photo, "--out", f"{folder}/out"], given.repeats)
        show("predict photo.png", predict, "its imports alone", imports)
        truth, results = make_detections(folder, given.images)
        words = ["score", "coco", "--gt", str(truth), "--results", str(results), "--json"]
        ours, printed = seconds([*HERE, *words], given.repeats)
        theirs, stats = seconds([sys.executable, "-c", PYCOCOTOOLS, str(truth), str(results)], 1)
        show(f"score coco, {given.images} images", ours, "pycocotools", theirs)
        difference = abs(json.loads(printed)["metrics"]["AP"] - float(stats))
        print(f"AP differs by {difference:.1e}")


if __name__ == "__main__":
    main()
