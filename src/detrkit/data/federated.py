"""What LVIS adds to COCO annotations: for which classes an image was searched, and how frequent a class is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detrkit.structures import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE

__all__ = ["federated_problems", "is_federated"]

Row = Mapping[str, Any]


def is_federated(images: Sequence[Row]) -> bool:
    """Whether images say for which classes they were searched."""
    return any(NEGATIVES in image for image in images)


def federated_problems(images: Sequence[Row], categories: Sequence[Row]) -> Iterator[str]:
    """What is wrong with the lists of the images and the frequencies of the categories, a line each."""
    for row in categories:
        if row.get("frequency") not in FREQUENCIES:
            yield f"category id {row['id']}: frequency is {row.get('frequency')!r}, but LVIS has 'r', 'c' or 'f'"
    known = {row["id"] for row in categories}
    for image in images:
        for key in (NEGATIVES, NOT_EXHAUSTIVE):
            ids = image.get(key)
            if not isinstance(ids, list) or not all(type(number) is int for number in ids):
                yield f"image id {image['id']}: {key} is not a list of category ids"
            elif not known.issuperset(ids):
                unknown = ", ".join(str(number) for number in ids if number not in known)
                yield f"image id {image['id']}: {key} has {unknown}, which the categories do not have"
