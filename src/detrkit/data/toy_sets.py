"""Small labelled sets that come with the package, written out as data that can be trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.errors import DataError, did_you_mean
from detrkit.files import refuse_existing, write_bytes, write_json

__all__ = ["TOY_SETS", "ToySet", "write_toy_set"]

_ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(frozen=True)
class ToySet:
    """One set.

    Attributes:
        held_out: number of its images that are for validation, the last ones by name.
        full: the set that it was taken from, and how to get it.
    """

    held_out: int
    full: str


TOY_SETS = {
    "blood_cells": ToySet(
        held_out=3,
        full="364 images of the BCCD data set (MIT licence): git clone https://github.com/Shenggan/BCCD_Dataset, "
        "whose folder BCCD is Pascal VOC",
    )
}
"""Sets by name: folders of ``assets`` with ``annotations.json``, ``images`` and ``LICENSE``."""


def write_toy_set(name: str, out: str | Path, *, force: bool = False) -> dict[str, int]:
    """Write a set as a COCO data folder with train and val; returns the number of images of both.

    Raises:
        DataError: no such set, or a file exists and ``force`` is not set.
        RunError: a file cannot be written.
    """
    if name not in TOY_SETS:
        raise DataError(f"'{name}': no such set comes with the package.{did_you_mean(name, TOY_SETS)}")
    source, folder = _ASSETS / name, Path(out)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; choose a folder")
    content: dict[str, Any] = json.loads((source / "annotations.json").read_bytes())
    images = sorted(content["images"], key=lambda row: str(row["file_name"]))
    parts = {"train": images[: -TOY_SETS[name].held_out], "val": images[-TOY_SETS[name].held_out :]}
    files = {split: folder / "annotations" / f"instances_{split}.json" for split in parts}
    for path in files.values():
        refuse_existing(path, force)
    for split, rows in parts.items():
        for row in rows:
            write_bytes(
                folder / "images" / split / row["file_name"], (source / "images" / row["file_name"]).read_bytes()
            )
        ids = {row["id"] for row in rows}
        annotations = [row for row in content["annotations"] if row["image_id"] in ids]
        write_json(files[split], {**content, "images": rows, "annotations": annotations}, force=force)
    write_bytes(folder / "LICENSE", (source / "LICENSE").read_bytes())
    return {split: len(rows) for split, rows in parts.items()}
