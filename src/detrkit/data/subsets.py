"""Seeded subsets of a data set, each inside every larger one of the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["COCO_TRAIN_IMAGES", "choose", "published_sample", "sample_table", "subset_size"]

COCO_TRAIN_IMAGES = 118287
"""Images of COCO train2017, which the published subsets count from."""


def subset_size(total: int, *, rate: float | None = None, count: int | None = None) -> int:
    """How many of ``total`` images a rate in (0, 1] or a count means; a rate rounds down, but to no less than one.

    Raises:
        DataError: not exactly one of the two, or out of range.
    """
    if (rate is None) == (count is None):
        raise DataError("give either a rate or a count of images")
    if rate is not None:
        if not 0 < rate <= 1:
            raise DataError(f"sample rate {rate} is not in (0, 1]")
        return max(1, int(total * rate + 1e-9))
    assert count is not None
    if not 1 <= count <= total:
        raise DataError(f"sample count {count} is not from 1 to the {total} images there are")
    return count


def choose(names: Sequence[str], size: int, seed: int) -> list[int]:
    """Positions (ascending) of ``size`` names. A name's rank depends on it and the seed alone, so subsets nest."""
    ranked = sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}:{names[index]}".encode()).digest())
    return sorted(ranked[:size])


def sample_table(table: Table, *, seed: int, rate: float | None = None, count: int | None = None) -> Table:
    """The table with a subset of its images and the annotations of those; seed and rate are noted in ``info``."""
    images = sorted(table.images, key=lambda image: int(image["id"]))
    size = subset_size(len(images), rate=rate, count=count)
    kept = [images[index] for index in choose([str(image["file_name"]) for image in images], size, seed)]
    ids = {image["id"] for image in kept}
    note = {"sample_seed": seed, "sample_rate": rate, "sample_count": size, "sample_of": len(images)}
    return replace(
        table,
        images=kept,
        annotations=[row for row in table.annotations if row["image_id"] in ids],
        info={**table.info, **note},
    )


def published_sample(root: Path, annotations: Path, rate: float) -> Path | None:
    """``../CocoFormatAnnos/instances_train2017_sample1182.json`` and its like beside a COCO root, where it lies."""
    if annotations.name != "instances_train2017.json":
        return None
    name = f"instances_train2017_sample{int(COCO_TRAIN_IMAGES * rate)}.json"
    path = root.resolve().parent / "CocoFormatAnnos" / name
    return path if path.is_file() else None
