"""Eight data sets that are spoilt in a known way, a model trained on each, and the advice that its report gives first.

python benchmarks/spoilt_sets.py --data DIR --device cuda --parallel 8 --minutes 2.5 --out OUT [KEY=VALUE ...]
python benchmarks/spoilt_sets.py --data DIR --out OUT --runs OUT2/spoilt_sets.tar.gz

DIR is the blood-cells set (a COCO folder). The sets are made from it with a seed. All models are trained from ImageNet
weights by the recipe of the laptop sizes; KEY=VALUE changes it. --minutes is for everything; --iterations trains so
many steps instead. OUT gets spoilt_sets.json (the advice beside what is expected), spoilt_sets.tar.gz (what reports are
made from) and the runs. With --runs nothing is trained: the sets are made again, and the reports of those runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "de_detr" / "_base" / "blood_cells.yaml"
NEEDED = ("recipe.yaml", "log.jsonl", "facts.json", "best/predictions.json", "output.txt")
SPLITS = ("train", "val")
AROUND = 0.35  # minutes for imports before a run, and for what follows it
LATE = 30.0  # seconds after which a run that does not end is ended

Coco = dict[str, Any]


@dataclass
class Spoiling:
    """A data set that is being spoilt: its annotations by split, where its images are, and the random numbers."""

    splits: dict[str, Coco]
    images: Path
    rng: np.random.Generator

    def file(self, split: str, row: Coco) -> Path:
        """The file of an image."""
        return self.images / split / str(row["file_name"])


def too_short(one: Spoiling) -> None:
    """The data are sound; the run is ended after 80 steps."""


def ids_off_by_one(one: Spoiling) -> None:
    """Validation labels have the id of the next class."""
    rows = one.splits["val"]
    ids = sorted(row["id"] for row in rows["categories"])
    for row in rows["annotations"]:
        row["category_id"] = ids[(ids.index(row["category_id"]) + 1) % len(ids)]


def labels_removed(one: Spoiling) -> None:
    """30 % of the labels are gone."""
    for rows in one.splits.values():
        rows["annotations"] = [row for row in rows["annotations"] if one.rng.random() >= 0.3]


def rare_class(one: Spoiling) -> None:
    """Of the last class 5 training labels are left."""
    rows = one.splits["train"]
    last = rows["categories"][-1]["id"]
    places = [place for place, row in enumerate(rows["annotations"]) if row["category_id"] == last]
    gone = set(one.rng.permutation(places)[5:].tolist())
    rows["annotations"] = [row for place, row in enumerate(rows["annotations"]) if place not in gone]


def tiny_objects(one: Spoiling, *, scale: float = 0.15, together: int = 4) -> None:
    """Every image becomes one of the same size in which four photos are seen from far away."""
    for split, rows in one.splits.items():
        boxes: dict[int, list[Coco]] = {row["id"]: [] for row in rows["images"]}
        for row in rows["annotations"]:
            boxes[row["image_id"]].append(row)
        photos, found = list(rows["images"]), []
        (one.images / "far" / split).mkdir(parents=True)
        for row in photos:
            width, height = row["width"], row["height"]
            small = (round(width * scale), round(height * scale))
            columns, lines = width // small[0], height // small[1]
            canvas: Image.Image | None = None
            places = one.rng.choice(columns * lines, together, replace=False).tolist()
            for place, number in zip(
                places, one.rng.choice(len(photos), together, replace=False).tolist(), strict=True
            ):
                photo = photos[number]
                with Image.open(one.file(split, photo)) as opened:
                    opened.draft("RGB", (2 * small[0], 2 * small[1]))  # decoded smaller
                    seen = opened.convert("RGB").resize(small, Image.Resampling.LANCZOS)
                if canvas is None:
                    colour = np.median(np.asarray(seen).reshape(-1, 3), axis=0).astype(int).tolist()
                    canvas = Image.new("RGB", (width, height), tuple(colour))
                left, top = place % columns * small[0], place // columns * small[1]
                canvas.paste(seen, (left, top))
                for box in boxes[photo["id"]]:
                    x, y, w, h = (value * scale for value in box["bbox"])
                    placed = {"bbox": [x + left, y + top, w, h], "area": w * h, "image_id": row["id"]}
                    found.append({**box, **placed, "id": len(found) + 1})
            assert canvas is not None
            canvas.save(one.images / "far" / split / row["file_name"], quality=95)
        rows["annotations"] = found
    one.images /= "far"


def shared_images(one: Spoiling) -> None:
    """A third of the validation images are copies of training images."""
    train, val = one.splits["train"], one.splits["val"]
    count = len(val["images"]) // 3
    taken = one.rng.choice(len(train["images"]), count, replace=False).tolist()
    for number, place in enumerate(taken):
        copied, replaced = train["images"][place], val["images"][number]
        shutil.copy(one.file("train", copied), one.file("val", replaced))
        replaced.update(width=copied["width"], height=copied["height"])
        val["annotations"] = [row for row in val["annotations"] if row["image_id"] != replaced["id"]]
        rows = [row for row in train["annotations"] if row["image_id"] == copied["id"]]
        first = max(row["id"] for row in val["annotations"]) + 1
        val["annotations"] += [{**row, "id": first + add, "image_id": replaced["id"]} for add, row in enumerate(rows)]


def boxes_off(one: Spoiling) -> None:
    """All boxes lie 20 px too far to the right and too low."""
    for rows in one.splits.values():
        sides = {row["id"]: (row["width"], row["height"]) for row in rows["images"]}
        kept = []
        for row in rows["annotations"]:
            x, y, w, h = row["bbox"]
            width, height = sides[row["image_id"]]
            moved = [x + 20, y + 20, min(w, width - x - 20), min(h, height - y - 20)]
            if min(moved[2:]) > 1:
                kept.append({**row, "bbox": moved, "area": moved[2] * moved[3]})
        rows["annotations"] = kept


def found_twice(one: Spoiling) -> None:
    """40 % of the training objects have a second label a few pixels beside the first, and the model has no NMS."""
    rows = one.splits["train"]
    sides = {row["id"]: (row["width"], row["height"]) for row in rows["images"]}
    first = max(row["id"] for row in rows["annotations"]) + 1
    again = []
    for row in rows["annotations"]:
        if one.rng.random() < 0.4:
            x, y, w, h = np.array(row["bbox"]) + one.rng.normal(0, 2, 4)
            x, y, (width, height) = max(0.0, x), max(0.0, y), sides[row["image_id"]]
            box = [x, y, max(3.0, min(w, width - x)), max(3.0, min(h, height - y))]
            again.append({**row, "id": first + len(again), "bbox": box, "area": box[2] * box[3]})
    rows["annotations"] += again


FAULTS: dict[str, tuple[Callable[[Spoiling], None], str]] = {
    "too_short": (too_short, "too short"),
    "ids_off_by_one": (ids_off_by_one, "mixed classes"),
    "labels_removed": (labels_removed, "missing labels"),
    "rare_class": (rare_class, "rare class"),
    "tiny_objects": (tiny_objects, "tiny objects"),
    "shared_images": (shared_images, "shared images"),
    "boxes_off": (boxes_off, "boxes off"),
    "found_twice": (found_twice, "duplicates"),
}
"""Fault -> what makes it, and the kind of advice that should come first."""


def make_set(fault: str, data: Path, target: Path, seed: int) -> Path:
    """Write a spoilt copy of a COCO folder; equal for equal seeds."""
    splits = {split: json.loads((data / "annotations" / f"instances_{split}.json").read_text()) for split in SPLITS}
    for split in SPLITS:
        (target / "copied" / split).mkdir(parents=True)
        for row in splits[split]["images"]:
            shutil.copyfile(data / "images" / split / row["file_name"], target / "copied" / split / row["file_name"])
    one = Spoiling(splits, target / "copied", np.random.default_rng([seed, list(FAULTS).index(fault)]))
    FAULTS[fault][0](one)
    one.images.rename(target / "images")
    (target / "annotations").mkdir()
    for split, rows in splits.items():
        (target / "annotations" / f"instances_{split}.json").write_text(json.dumps(rows))
    return target


def train(fault: str, data: Path, run: Path, args: argparse.Namespace, until: float) -> str:
    """Train a model on a spoilt set by the command line; how it ended."""
    steps = 80 if fault == "too_short" else args.iterations
    waves = -(-len(args.faults) // args.parallel)
    minutes = max(0.1, args.minutes / waves - AROUND)
    length = [f"training.minutes={minutes:.2f}"] if steps is None else [f"training.iterations={steps}"]
    size = [args.size * 9 // 10, args.size, args.size * 11 // 10]
    settings = [
        *length,
        f"training.device={args.device}",
        f"training.batch_size={args.batch}",
        "optimizer.lr_batch_size=4",
        f"data.eval_short_side={args.size}",
        f"data.eval_max_side={args.size * 5 // 3}",
        f"data.short_sides={size}",
        f"data.max_side={args.size * 2}",
        "training.ema=0.99",
        f"training.evaluate_every={max(1, 200 * args.batch // 205)}",
        f"model.nms={'null' if fault == 'found_twice' else 0.7}",
        *args.settings,
    ]
    names = ["--data", str(data), "--model", args.model, "--output", str(run)]
    command = [sys.executable, "-m", "detrkit", "train", str(RECIPE), *names, *settings]
    threads = max(1, (os.cpu_count() or 1) // args.parallel // 2)
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    run.mkdir(parents=True)
    with (run / "output.txt").open("w") as output:
        try:
            left = until - time.monotonic() + LATE if args.iterations is None else None
            code = subprocess.run(command, env=env, stdout=output, stderr=output, timeout=left, check=False).returncode
        except subprocess.TimeoutExpired:
            return "out of time"
    return "finished" if code == 0 else f"exit code {code}"


def judge(fault: str, run: Path) -> dict[str, Any]:
    """The report of a run, and the advice that it gives."""
    from detrkit.errors import DetrkitError
    from detrkit.report.page import write_report
    from detrkit.report.run_folder import open_run, with_kept_detections

    expected = FAULTS[fault][1]
    try:
        opened = open_run(run)
        found = with_kept_detections(opened) or opened
        write_report(found)
    except DetrkitError as error:
        return {"fault": fault, "expected": expected, "first": None, "right": False, "error": str(error)}
    said = [{"kind": one.kind, "urgency": round(one.urgency, 2), "reason": one.reason} for one in found.advice]
    first = said[0]["kind"] if said else None
    best = found.log.best
    scores = {} if best is None else {name: best.scores.get(name) for name in ("AP", "AP50")}
    length = {"steps": found.log.steps, "seconds": round(found.log.seconds, 1), "images_per_second": found.log.speed}
    head = {"fault": fault, "expected": expected, "first": first, "right": first == expected}
    return {**head, **length, **scores, "advice": said}


def pack(out: Path, faults: list[str]) -> Path:
    """What the reports are made from, as one file."""
    target = out / "spoilt_sets.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        for fault in faults:
            for name in NEEDED:
                if (file := out / "runs" / fault / name).is_file():
                    archive.add(file, f"{fault}/{name}")
    return target


def unpack(archive: Path, out: Path) -> None:
    """The runs of an archive, with their data where they are here."""
    with tarfile.open(archive) as opened:
        opened.extractall(out / "runs", filter="data")
    for path in (out / "runs").glob("*/recipe.yaml"):
        recipe = yaml.safe_load(path.read_text())
        recipe["data"]["root"] = str(out / "data" / path.parent.name)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def main(arguments: list[str] | None = None) -> None:
    """Make the sets, train, and judge the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--size", type=int, default=320, help="shorter side of the images in evaluation")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", default="dape_lite0")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    args.out = args.out.resolve()
    for name in ("data", "runs"):
        shutil.rmtree(args.out / name, ignore_errors=True)

    def both(fault: str) -> str:
        data = make_set(fault, args.data, args.out / "data" / fault, args.seed)
        if args.runs is not None:
            return "trained before"
        waves_done = began + 60 * args.minutes * (1 + args.faults.index(fault) // args.parallel) / waves
        return train(fault, data, args.out / "runs" / fault, args, waves_done)

    waves = -(-len(args.faults) // args.parallel)
    with ThreadPoolExecutor(args.parallel) as pool:
        ended = list(pool.map(both, args.faults))
    if args.runs is not None:
        unpack(args.runs, args.out)
    else:
        print(f"{pack(args.out, args.faults)}", flush=True)
    rows = [
        {**judge(fault, args.out / "runs" / fault), "ended": how} for fault, how in zip(args.faults, ended, strict=True)
    ]
    right = sum(row["right"] for row in rows)
    settings = {
        name: getattr(args, name) for name in ("model", "device", "size", "batch", "minutes", "iterations", "seed")
    }
    result = {**settings, "seconds": round(time.monotonic() - began, 1), "right": right, "of": len(rows), "sets": rows}
    (args.out / "spoilt_sets.json").write_text(json.dumps(result, indent=1))
    for row in rows:
        verdict = "right" if row["right"] else "WRONG"
        print(f"{verdict}  {row['fault']}: {row['first']} ({row['ended']}, AP {row.get('AP')})")
    print(f"{right} of {len(rows)} right after {result['seconds']} s")


if __name__ == "__main__":
    main()
