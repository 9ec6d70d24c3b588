"""Options that the commands of ``detrkit data`` share, and the sources and outputs that they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.choices import OnError, Split, TaskName

if TYPE_CHECKING:
    from detrkit.data.coco_json import Row
    from detrkit.data.formats import Source

__all__ = [
    "COCO_FILE",
    "Annotations",
    "Folder",
    "Force",
    "FormatOption",
    "Images",
    "JsonFlag",
    "OnErrorOption",
    "Seed",
    "TaskOption",
    "no_split",
    "outputs_of",
    "sources_of",
    "write_coco",
]

COCO_FILE = "annotations/instances_{}.json"
"""File of a converted split in the output folder, as in a COCO data set."""


Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The data folder, or its data.yaml or COCO file.", show_default=False)
]
_FORMATS = (
    "coco, coco_panoptic, lvis, roboflow, yolo, voc, cityscapes, masks, ade20k, labelme, via, supervisely or vott"
)
FormatOption = Annotated[str, typer.Option("--format", help=f"auto, {_FORMATS}.")]
TaskOption = Annotated[
    TaskName | None,
    typer.Option(help="Task of the data: it decides between files side by side, and about masks."),
]
Annotations = Annotated[Path | None, typer.Option(help="A COCO file, for a folder without a known layout.")]
Images = Annotated[Path | None, typer.Option(help="Image folder of that file.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Seed = Annotated[int, typer.Option(help="Random seed for the choice of images.")]
OnErrorOption = Annotated[OnError, typer.Option(help="For bad boxes and images: raise, or skip and count them.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def sources_of(
    folder: Path,
    format: str,
    annotations: Path | None,
    images: Path | None,
    split: Split | None,
    task: TaskName | None = None,
) -> dict[str, Source]:
    """The selected split, or all splits."""
    from detrkit.data.formats import find_source, find_sources

    used_for = task or "det"
    if split is None and annotations is None and images is None:
        return find_sources(folder, task=used_for, format=format)
    name = (split or Split.train).value
    return {name: find_source(folder, name, task=used_for, format=format, annotations=annotations, images=images)}


def outputs_of(out: Path, present: list[str], split: Split | None, pattern: str, force: bool) -> dict[str, Path]:
    """Output path of each split; raises before any work where a file exists already."""
    from detrkit.errors import DataError
    from detrkit.files import refuse_existing

    if split is not None and split not in present:
        raise no_split(split, present)
    wanted = present if split is None else [split.value]
    if out.suffix == ".json" and len(wanted) > 1:
        raise DataError(
            f"{out} is one file, but there are {' and '.join(wanted)}; choose with --split, or name a folder"
        )
    paths = {name: out if out.suffix == ".json" else out / pattern.format(name) for name in wanted}
    for path in paths.values():
        refuse_existing(path, force)
    return paths


def no_split(split: str, present: Iterable[str]) -> Exception:
    """The error of a split that a data set does not have."""
    from detrkit.errors import DataError

    return DataError(f"there is no {split} split, only {' and '.join(present)}")


def write_coco(path: Path, table: Row, force: bool) -> None:
    """Write a COCO file and say so."""
    from detrkit.files import write_json
    from detrkit.terminal import say

    write_json(path, table, force=force)
    say(f"wrote {path}: {len(table['images'])} images, {len(table['annotations'])} annotations")
