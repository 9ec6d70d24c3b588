"""What a run was trained on, so that a resumed run knows other classes, images and annotations."""

from __future__ import annotations

import hashlib
from typing import TypedDict

import torch
from torch import Tensor

from detrkit.data import DetectionDataset
from detrkit.data.records import ImageRecord
from detrkit.errors import first_few

__all__ = ["Fingerprint", "changed_annotations", "changed_classes", "changed_images", "fingerprint"]


class Fingerprint(TypedDict):
    """A data set as it is stored in a checkpoint."""

    classes: list[str]
    """Names in label order."""
    images: Tensor
    """(N, 2) int64: id and hash of the annotations of every image, in order."""


def fingerprint(data: DetectionDataset) -> Fingerprint:
    """The fingerprint of training or validation images; repeated images count once."""
    records = {record.image_id: record for record in data.records}
    rows = [(image_id, _digest(record)) for image_id, record in records.items()]
    names = [str(category.name or category.id) for category in data.categories]
    return {"classes": names, "images": torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)}


def _digest(record: ImageRecord) -> int:
    """63 bits of a hash of an image's size and annotations."""
    segments = record.segments
    hashed = hashlib.blake2b(f"{record.width} {record.height}".encode(), digest_size=8)
    for column in (segments.boxes.round(3), segments.labels, segments.areas.round(3), segments.crowd, segments.things):
        hashed.update(column.tobytes())
    return int.from_bytes(hashed.digest(), "little") >> 1


def changed_classes(then: Fingerprint, now: Fingerprint) -> str:
    """How the classes differ, or an empty text."""
    if then["classes"] == now["classes"]:
        return ""
    return f"its classes are {first_few(then['classes'], 12)}, those of the data now {first_few(now['classes'], 12)}"


def changed_images(then: Fingerprint, now: Fingerprint, split: str = "training") -> str:
    """How the images of a split differ, or an empty text: their number, which ones, their order."""
    old, new = then["images"][:, 0].tolist(), now["images"][:, 0].tolist()
    if old == new:
        return ""
    before, after = set(old), set(new)
    gone, added = [one for one in old if one not in after], [one for one in new if one not in before]
    parts = [f"{len(old)} {split} images then, {len(new)} now"]
    parts += [f"{len(gone)} are gone (ids {first_few(gone, 3)})"] if gone else []
    parts += [f"{len(added)} are new (ids {first_few(added, 3)})"] if added else []
    return ", ".join(parts) if gone or added else f"the {split} images are the same but come in another order"


def changed_annotations(then: Fingerprint, now: Fingerprint) -> list[int]:
    """Ids of the images that are in both and have other annotations now."""
    old = dict(then["images"].tolist())
    return [image_id for image_id, digest in now["images"].tolist() if old.get(image_id, digest) != digest]
