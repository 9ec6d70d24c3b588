"""What a user feels first: how soon commands answer, how fast results are scored, and what memory that takes.

    python benchmarks/first_touch.py --json docs/results/first_touch_cpu.json

Each command runs in a process of its own, as in a shell; the best of a few runs counts. Beside predictions: importing
torch, torchvision and timm alone, which they cannot do without; beside scores: pycocotools on the same files
(``--images`` images with 100 detections each). Both sides in turns in one run, in wall and in CPU seconds (user and
system), as a busy machine stretches the former. Scores of both must be equal: the largest difference of the 12 numbers
is printed. Memory: the largest resident set of a process over the size of the files that it reads, with ``--rows`` rows
in each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import detrkit

HERE = [sys.executable, "-m", "detrkit"]
IMPORTS = [sys.executable, "-c", "import torch, torchvision, timm"]
PYCOCOTOOLS = """
import contextlib, io, json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(sys.argv[1])
    evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
print(json.dumps(evaluation.stats.tolist()))
"""
_SHELL = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""A user's shell: modules are compiled once, by pip or in the first run, not in every one."""
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds of wall and CPU time, and its largest resident set in bytes."""

    wall: float
    cpu: float
    peak: int


def measured(command: Sequence[str], repeats: int) -> tuple[Cost, str]:
    """The least that a command took in several runs, and what it printed in the last."""
    return in_turns([command], repeats)[0]


def in_turns(commands: Sequence[Sequence[str]], repeats: int) -> list[tuple[Cost, str]]:
    """The least that each of some commands took in several rounds, and what it printed in the last."""
    rounds = [[_run(command) for command in commands] for _ in range(repeats)]
    return [(_least([cost for cost, _ in runs]), runs[-1][1]) for runs in zip(*rounds, strict=True)]


def _run(command: Sequence[str]) -> tuple[Cost, str]:
    """What a command took, and what it printed.

    Its largest resident set cannot be less than that of this process, which therefore keeps small.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as problems:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=problems, env=_SHELL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        out.seek(0)
        problems.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {problems.read()}")
        return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024), out.read()


def _least(costs: Sequence[Cost]) -> Cost:
    return Cost(*(min(getattr(cost, name) for cost in costs) for name in ("wall", "cpu", "peak")))


def make_detections(folder: Path, images: int, objects: int, detections: int, classes: int = 80) -> tuple[Path, Path]:
    """Ground truth with some objects an image, and results: most objects found, and noise."""
    random = np.random.default_rng(0)
    paths = folder / f"gt_{images}_{objects}.json", folder / f"found_{images}_{objects}.json"
    with open(paths[0], "w", encoding="utf-8") as truth, open(paths[1], "w", encoding="utf-8") as results:
        listed = [{"id": n, "file_name": name_of(n), "width": 640, "height": 640} for n in range(1, images + 1)]
        named = [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)]
        truth.write(f'{{"images": {json.dumps(listed)}, "categories": {json.dumps(named)}, "annotations": [')
        results.write("[")
        for image in range(1, images + 1):
            boxes = np.concatenate([random.uniform(0, 500, (objects, 2)), random.uniform(8, 140, (objects, 2))], axis=1)
            labels = random.integers(1, classes + 1, objects)
            rows = []
            for number, (box, label) in enumerate(zip(boxes.round(2).tolist(), labels.tolist(), strict=True)):
                key, area = (image - 1) * objects + number + 1, round(box[2] * box[3], 2)
                row = {"id": key, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
                rows.append(json.dumps(row))
            truth.write(", " * (image > 1) + ", ".join(rows))
            found = np.tile(boxes, (-(-detections // objects), 1))[:detections] + random.normal(0, 9, (detections, 4))
            found[:, 2:] = np.maximum(found[:, 2:], 1)
            guesses = np.where(random.random(detections) < 0.5, np.resize(labels, detections), 1)
            scores = random.random(detections).round(5)
            pairs = zip(found.round(2).tolist(), guesses.tolist(), scores.tolist(), strict=True)
            rows = [
                json.dumps({"image_id": image, "category_id": label, "bbox": box, "score": score})
                for box, label, score in pairs
            ]
            results.write(", " * (image > 1) + ", ".join(rows))
        truth.write("]}")
        results.write("]")
    return paths


def name_of(image: int) -> str:
    """The file name of an image of :func:`make_detections`."""
    return f"{image:06}.jpg"


def large_data(folder: Path, truth: Path, names: Iterable[str]) -> Path:
    """A data set with this annotation file, whose images are one and the same file."""
    images = folder / "large" / "images" / "train"
    images.mkdir(parents=True)
    first = folder / "one.jpg"
    Image.new("RGB", (640, 640)).save(first)
    for name in names:
        os.link(first, images / name)
    (folder / "large" / "annotations").mkdir()
    os.link(truth, folder / "large" / "annotations" / "instances_train.json")
    return folder / "large"


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


class Rows:
    """The rows of the result, printed and written as they come."""

    def __init__(self, file: Path | None, images: int) -> None:
        self._file, self._images = file, images
        self._rows: list[dict[str, object]] = []

    def add(self, what: str, ours: Cost, bar: str, **numbers: object) -> None:
        """Add a row. bar: what the row is held to · numbers: further numbers."""
        self._rows.append({"what": what, **_rounded(ours), **numbers, "bar": bar})
        shown = ", ".join(f"{name} {value}" for name, value in numbers.items() if not isinstance(value, dict))
        print(f"{what:36} {ours.wall:7.2f} s ({ours.cpu:.2f} s of CPU)   {shown or '-'}   bar: {bar}", flush=True)
        if self._file is not None:
            content = {"cores": os.cpu_count(), "images": self._images, "rows": self._rows}
            self._file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def beside(self, what: str, ours: Cost, name: str, theirs: Cost, bar: str, **numbers: object) -> None:
        """Add a row with the other side."""
        ratios = {
            "ratio": round(theirs.wall / ours.wall, 2),
            "ratio_cpu": round(theirs.cpu / ours.cpu, 2),
            "ours_over_theirs": round(ours.wall / theirs.wall, 3),
            "ours_over_theirs_cpu": round(ours.cpu / theirs.cpu, 3),
        }
        self.add(what, ours, bar, beside=name, of_beside=_rounded(theirs), **ratios, **numbers)


def _rounded(cost: Cost) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(cost).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print costs and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images that are scored")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of large files; 0: none")
    parser.add_argument("--exported", type=Path, metavar="FILE", help="an exported model, to predict through it too")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    rows = Rows(given.json, given.images)

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = str(make_data(folder))
        words: list[str]
        for words in (
            ["--help"],
            ["models"],
            ["env"],
            ["weights", "list"],
            ["data", "check", data],
            ["data", "stats", data],
        ):
            ours, _ = measured([*HERE, *words], given.repeats)
            rows.add(" ".join(words).replace(data, "DIR"), ours, "<= 0.35 s" if words == ["--help"] else "<= 1 s")
        photo = f"{folder}/photo.jpg"
        shutil.copy(Path(detrkit.__file__).parent / "assets/blood_cells/images/BloodImage_00017.jpg", photo)
        predict = [*HERE, "predict", photo, "--out", f"{folder}/out"]
        (imports, _), (ours, _) = in_turns([IMPORTS, predict], given.repeats)
        rows.beside("predict photo.jpg", ours, "import torch, torchvision, timm", imports, "<= 1.15 x the imports")
        if given.exported is not None:
            ours, _ = measured([*predict, "--model", str(given.exported)], given.repeats)
            rows.add(f"predict photo.jpg, {given.exported.suffix}", ours, "<= 1.5 s")
        files = make_detections(folder, given.images, 7, 100)
        score = [*HERE, "score", "coco", "--json", "--gt"]
        command = [*score, str(files[0]), "--results", str(files[1])]
        before, _ = measured(command, given.repeats)
        (theirs, stats), (after, printed) = in_turns(
            [[sys.executable, "-c", PYCOCOTOOLS, *map(str, files)], command], 1
        )
        ours = _least([before, after])
        numbers = json.loads(printed)["metrics"]
        difference = max(abs(numbers[name] - value) for name, value in zip(NUMBERS, json.loads(stats), strict=True))
        what = f"score coco, {given.images} images x 100"
        rows.beside(what, ours, "pycocotools", theirs, ">= 40 x faster, equal", largest_difference=difference)
        if not given.rows:
            return
        files = make_detections(folder, given.rows // 100, 100, 100)
        sizes = [path.stat().st_size for path in files]
        ours, _ = measured([*score, str(files[0]), "--results", str(files[1])], 1)
        rows.add(f"score coco, 2 x {given.rows} rows", ours, "<= 3 x", memory=round(ours.peak / sum(sizes), 2))
        large = str(large_data(folder, files[0], map(name_of, range(1, given.rows // 100 + 1))))
        for line in ("data stats", "data check --quick"):
            ours, _ = measured([*HERE, *line.split(), large], 1)
            rows.add(f"{line}, {given.rows} rows", ours, "<= 3 x", memory=round(ours.peak / sizes[0], 2))


if __name__ == "__main__":
    main()
