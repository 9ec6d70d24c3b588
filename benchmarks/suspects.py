"""Mistakes planted into labels, and how many of them `detrkit data suspects` lists among the first.

python benchmarks/suspects.py --data DIR --checkpoint dape_lite0 --out docs/results/suspects_cpu.json

From sound copies of the labels, by a seed each: "removed": 100 labels are gone; "changed": 50 boxes are moved by half
their width, height, or both, and 50 labels have another class. Found is what stands among the first 150 suspects: of a
removed label a missing object at an IoU of 0.5 or more, of a changed one a doubt of that very label. The images are
predicted once. Other suspects may be right too: the labels of a real set have mistakes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.data import ImageRecord, load_dataset
from detrkit.data.label_habits import box_overlaps
from detrkit.data.suspects import Suspect, SuspectKind, ranked_suspects
from detrkit.structures import Detections

MISTAKES, FIRST = 100, 150
SAME = 0.5  # IoU of a removed label and a missing object that is found there

Labelled = list[tuple[str, ImageRecord, Detections]]
"""Split, image, and what the model finds in it."""


@dataclass(frozen=True)
class Planted:
    """A mistake: the image, what is wrong, and the label as it is now (a removed one as it was)."""

    image: int
    kind: SuspectKind
    box: NDArray[np.float64]


def chosen(images: Labelled, rng: np.random.Generator) -> dict[int, list[tuple[int, int]]]:
    """By image: (number of the mistake, position of the label)."""
    every = [(image, place) for image, (_, record, _) in enumerate(images) for place in range(len(record.labels))]
    found: dict[int, list[tuple[int, int]]] = {}
    for number, pick in enumerate(rng.permutation(len(every))[:MISTAKES].tolist()):
        image, place = every[pick]
        found.setdefault(image, []).append((number, place))
    return found


def remove(images: Labelled, rng: np.random.Generator) -> tuple[Labelled, list[Planted]]:
    """Labels are gone."""
    changed, planted = list(images), []
    for image, rows in chosen(images, rng).items():
        split, record, found = images[image]
        planted += [Planted(image, "missing", record.boxes[place]) for _, place in rows]
        gone = np.flatnonzero(record.segments.single)[[place for _, place in rows]]
        left = record.segments[np.setdiff1d(np.arange(len(record.segments)), gone)]
        changed[image] = (split, replace(record, segments=left), found)
    return changed, planted


def change(images: Labelled, rng: np.random.Generator) -> tuple[Labelled, list[Planted]]:
    """Half of the labels are moved by half their size, half have another class."""
    changed, planted = list(images), []
    classes = len(images[0][2].categories)
    moves = MISTAKES if classes == 1 else MISTAKES // 2
    for image, rows in chosen(images, rng).items():
        split, record, found = images[image]
        places = np.flatnonzero(record.segments.single)
        boxes, labels = record.segments.boxes.copy(), record.segments.labels.copy()
        kinds: list[tuple[int, SuspectKind]] = []
        for number, place in rows:
            at = places[place]
            if number < moves:
                boxes[at] = moved(boxes[at], (record.width, record.height), rng)
                kinds.append((place, "loose"))
            else:
                labels[at] = rng.choice([label for label in range(classes) if label != labels[at]])
                kinds.append((place, "wrong_class"))
        now = replace(record, segments=replace(record.segments, boxes=boxes, labels=labels))
        planted += [Planted(image, kind, now.boxes[place]) for place, kind in kinds]
        changed[image] = (split, now, found)
    return changed, planted


def moved(box: NDArray[np.float64], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """A box x, y, width, height moved by half its width, height, or both, to a place inside the image."""
    along = np.array([(1, 0), (0, 1), (1, 1)])[rng.integers(3)]
    way = rng.choice([-1, 1], 2)
    corner = box[:2] + along * way * box[2:] / 2
    out = (corner < 0) | (corner + box[2:] > size)
    corner = np.where(out, box[:2] - along * way * box[2:] / 2, corner)  # the other way, where there is room
    left_top = corner.clip(0)
    sides = np.minimum(corner + box[2:], size) - left_top
    return np.concatenate((left_top, sides))


PLANT = {"removed": remove, "changed": change}


def ranked(images: Labelled) -> list[tuple[int, Suspect]]:
    """Suspects with the number of their image, as the command ranks them: each split by its own habits."""
    number = {id(record): image for image, (_, record, _) in enumerate(images)}
    every: list[Suspect] = []
    for split in dict.fromkeys(split for split, _, _ in images):
        every += ranked_suspects((record, found) for own, record, found in images if own == split)
    every.sort(key=lambda one: -one.confidence)
    return [(number[id(one.record)], one) for one in every]


def count(first: Sequence[tuple[int, Suspect]], planted: Sequence[Planted]) -> Counter[str]:
    """Mistakes that are among the suspects, by kind; each suspect is of one mistake."""
    left, found = list(first), Counter[str]()
    for mistake in planted:
        for place, (image, one) in enumerate(left):
            if image == mistake.image and is_of(one, mistake):
                del left[place]
                found[mistake.kind] += 1
                break
    return found


def is_of(one: Suspect, mistake: Planted) -> bool:
    """Whether a suspect of the same image is this mistake."""
    if mistake.kind == "missing":
        return one.kind == "missing" and float(box_overlaps(one.box[None], mistake.box[None])[0, 0]) >= SAME
    return one.kind == mistake.kind and float(np.abs(one.box - mistake.box).max()) < 0.01


def predicted(checkpoint: str, data: Path, device: str) -> Labelled:
    """All images of train and val, and what the model finds in them."""
    from detrkit.devices import resolve_device
    from detrkit.evaluation.loop import predict_dataset
    from detrkit.weights import open_checkpoint
    from detrkit.weights.find import find_checkpoint

    model = open_checkpoint(find_checkpoint(checkpoint)).to(resolve_device(device))
    images: Labelled = []
    for split in ("train", "val"):
        part = load_dataset(data, split=split, on_error="skip")
        records = {record.image_id: record for record in part.records}
        for image_id, found in predict_dataset(model, part):
            assert isinstance(found, Detections)
            images.append((split, records[image_id], found))
    return images


def draws(images: Labelled, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each kind of mistake, each choice of splits."""
    for splits in (("train", "val"), ("train",), ("val",)):
        part = [row for row in images if row[0] in splits]
        for name, plant in PLANT.items():
            found, others = [], []
            for seed in seeds:
                spoilt, planted = plant(part, np.random.default_rng([seed, list(PLANT).index(name)]))
                first = ranked(spoilt)[:FIRST]
                found.append(count(first, planted))
                others.append(Counter(one.kind for _, one in first))
            totals = [sum(one.values()) for one in found]
            yield {
                "splits": list(splits),
                "images": len(part),
                "labels": sum(len(record.labels) for _, record, _ in part),
                "planted": name,
                "of": MISTAKES,
                "found": totals,
                "mean": round(statistics.mean(totals), 1),
                "found_by_kind": [dict(one) for one in found],
                "first_by_kind": [dict(one) for one in others],
            }


def main(arguments: list[str] | None = None) -> None:
    """Predict, plant, rank, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", default="dape_lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    images = predicted(args.checkpoint, args.data, args.device)
    rows = []
    for row in draws(images, args.seeds):
        rows.append(row)
        print(
            f"{'+'.join(row['splits'])}, {row['planted']}: {row['found']} of {MISTAKES}, mean {row['mean']}", flush=True
        )
    settings = {"data": args.data.name, "checkpoint": Path(args.checkpoint).name, "first": FIRST, "seeds": args.seeds}
    args.out.write_text(json.dumps({**settings, "draws": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
