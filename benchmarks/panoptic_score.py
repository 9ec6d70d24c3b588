"""How long scoring panoptic files takes, beside hotcoco alone, which checks less and reads PNG files natively.

    python benchmarks/panoptic_score.py --images 1000

Both read the same files in turns; the last line is the ratio of their best times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray

from detrkit import score_panoptic
from detrkit.structures import Categories, Category, PanopticMap, Segment

CATEGORIES = Categories(Category(number, f"class {number}", number % 3 > 0) for number in range(1, 101))
DIFFERENT = 20
"""So many different pairs of maps, which are read again and again."""


def cells(centres: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """A map cut into the pixels nearest to each centre (y, x), in steps of 4 pixels."""
    y, x = np.mgrid[:height:4, :width:4]
    nearest = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1)
    return np.kron(nearest, np.ones((4, 4), dtype=np.int64))


def make_files(folder: Path, images: int, height: int = 480, width: int = 640) -> None:
    """gt.json and found.json with their folders."""
    random = np.random.default_rng(0)
    rows: dict[str, list[list[object]]] = {"gt": [], "found": []}
    for number in range(DIFFERENT):
        centres = random.uniform(0, 1, (20, 2)) * [height, width]
        ids = random.choice(2**24 - 1, 20, replace=False) + 1
        labels = random.integers(0, len(CATEGORIES), 20)
        for name, noise in (("gt", 0.0), ("found", height / 40)):
            chosen = ids[cells(centres + random.normal(0, noise, centres.shape), height, width)]
            segments = [Segment(int(ids[k]), int(labels[k])) for k in range(20) if (chosen == ids[k]).any()]
            found = PanopticMap(chosen, tuple(segments), CATEGORIES)
            (folder / name).mkdir(exist_ok=True)
            found.to_png(folder / name / f"{number}.png")
            rows[name].append(list(found.segments_info()))
    listed = [{"id": k, "file_name": f"{k}.jpg", "height": height, "width": width} for k in range(images)]
    categories = [{"isthing": 1, **row} for row in CATEGORIES.to_json()]
    for name, infos in rows.items():
        annotations = [
            {"image_id": k, "file_name": f"{k % DIFFERENT}.png", "segments_info": infos[k % DIFFERENT]}
            for k in range(images)
        ]
        content = {"images": listed, "categories": categories, "annotations": annotations}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, chosen.images)
        files = folder / "gt.json", folder / "found.json"

        def alone() -> float:
            evaluation = PanopticEval(*files)
            evaluation.evaluate()
            return float(evaluation.results()["All"]["pq"])

        ways: dict[str, Callable[[], float | None]] = {
            "detrkit": lambda: score_panoptic(*files).value,
            "hotcoco": alone,
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(chosen.rounds):
            for way, score in ways.items():
                start = time.perf_counter()
                quality = score()
                seconds = time.perf_counter() - start
                best[way] = min(best[way], seconds)
                print(f"{way}: {seconds:.2f} s for {chosen.images} images of 640x480, PQ {quality:.6f}")
    print(f"detrkit / hotcoco: {best['detrkit'] / best['hotcoco']:.1f}")


if __name__ == "__main__":
    main()
