"""Memory and time for reading a COCO file with the masks of COCO's training set.

    python benchmarks/mask_memory.py [--images 118000] [--objects 860000] [--vertices 10000000] [--json FILE]

Writes a file with that many images, objects and polygon vertices to a temporary folder (coordinates with two decimals,
one segment in a hundred a crowd with RLE, every image the same small picture), reads it in a process of its own, and
prints one line of JSON: seconds, peak memory of the process, its memory before, and bytes of the packed masks.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import save_rows

_READ = """
import json, resource, sys, time
import torch
from detrkit.data import load_dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
dataset = load_dataset(sys.argv[1], task=sys.argv[2])
masks = dataset.records[0].segments.masks
print(json.dumps({
    "images": len(dataset),
    "objects": sum(len(record.segments) for record in dataset.records),
    "seconds": round(time.perf_counter() - start, 1),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    "before_gib": round(before / 2**20, 3),
    "packed_mib": None if masks is None else round(len(masks.buffer) / 2**20, 1),
}))
"""


def write_coco(root: Path, *, images: int, objects: int, vertices: int, seed: int = 0) -> Path:
    """A COCO data folder with these counts; every image is the same small picture."""
    from PIL import Image

    random = np.random.default_rng(seed)
    folder = root / "images" / "train"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "PNG")
    for number in range(images):
        (folder / f"{number}.png").write_bytes(picture.getvalue())
    owners = np.sort(random.integers(0, images, objects))
    lengths = np.maximum(3, random.multinomial(vertices, np.full(objects, 1 / objects)))
    with (root / "annotations" / "instances_train.json").open("w") as file:
        rows = [{"id": number, "file_name": f"{number}.png", "width": 640, "height": 480} for number in range(images)]
        file.write('{"images": ' + json.dumps(rows) + ', "categories": ')
        file.write(json.dumps([{"id": number, "name": f"class {number}"} for number in range(1, 81)]))
        file.write(', "annotations": [')
        for number, (owner, length) in enumerate(zip(owners.tolist(), lengths.tolist(), strict=True), start=1):
            xy = random.uniform((0, 0), (640, 480), (length, 2)).round(2)
            low, high = xy.min(axis=0), xy.max(axis=0)
            crowd = number % 100 == 0
            crowd_mask = {"size": [480, 640], "counts": [1000, 2000, 304200]}
            row = {
                "segmentation": crowd_mask if crowd else [xy.ravel().tolist()],
                "area": float(np.prod(high - low)),
                "iscrowd": int(crowd),
                "image_id": owner,
                "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
                "category_id": number % 80 + 1,
                "id": number,
            }
            file.write((", " if number > 1 else "") + json.dumps(row))
        file.write("]}")
    return root


def measure(root: Path, task: str) -> dict[str, float]:
    """Reads the folder in a fresh process."""
    done = subprocess.run([sys.executable, "-c", _READ, str(root), task], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--vertices", type=int, default=10_000_000)
    parser.add_argument("--task", nargs="+", default=["inst", "det"])
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = {key: getattr(arguments, key) for key in ("images", "objects", "vertices")}
        root = write_coco(Path(folder) / "coco", **counts)
        size = (root / "annotations" / "instances_train.json").stat().st_size
        rows = []
        for task in arguments.task:
            rows.append({"task": task, "file_mib": round(size / 2**20), **measure(root, task)})
            print(json.dumps(rows[-1]), flush=True)
    save_rows(arguments.json, rows, "cpu")


if __name__ == "__main__":
    main()
