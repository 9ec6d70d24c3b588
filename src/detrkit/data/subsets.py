"""Seeded subsets of a data set; with the same seed, larger subsets contain smaller ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["COCO_TRAIN_IMAGES", "choose", "published_sample", "sample_table", "subset_size"]

COCO_TRAIN_IMAGES = 118287
"""Images in COCO train2017; the sizes of the published subsets are fractions of it."""


def subset_size(total: int, *, rate: float | None = None, count: int | None = None) -> int:
    """The size of a subset of ``total`` images, given a rate in (0, 1] or a count. Rates round down, but at least to 1.

    Raises:
        DataError: both or none are given, or the value is out of range.
    """
    if (rate is None) == (count is None):
        raise DataError("give either a rate or a count of images")
    if rate is not None:
        if not 0 < rate <= 1:
            raise DataError(f"sample rate {rate} is not in (0, 1]")
        return max(1, int(total * rate + 1e-9))
    assert count is not None
    if not 1 <= count <= total:
        raise DataError(f"sample count {count} is not between 1 and {total}, the number of images")
    return count


def choose(names: Sequence[str], size: int, seed: int) -> list[int]:
    """Indices of ``size`` names in ascending order.

    The rank of a name depends only on the name and the seed, so larger subsets contain smaller ones.
    """
    ranked = sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}:{names[index]}".encode()).digest())
    return sorted(ranked[:size])


def sample_table(table: Table, *, seed: int, rate: float | None = None, count: int | None = None) -> Table:
    """The table with a subset of its images and their annotations; ``info`` records seed and rate.

    Raises:
        DataError: as ``subset_size`` raises it.
    """
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
    """The file of a published subset next to a COCO folder, such as
    ``../CocoFormatAnnos/instances_train2017_sample1182.json``, or None if it does not exist."""
    if annotations.name != "instances_train2017.json":
        return None
    name = f"instances_train2017_sample{int(COCO_TRAIN_IMAGES * rate)}.json"
    path = root.resolve().parent / "CocoFormatAnnos" / name
    return path if path.is_file() else None
