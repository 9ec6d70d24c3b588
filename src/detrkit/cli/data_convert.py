"""``detrkit data convert``: annotations in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.choices import OnError, Split, TaskName
from detrkit.cli.data_options import (
    COCO_FILE,
    Folder,
    Force,
    OnErrorOption,
    outputs_of,
    sources_of,
    write_coco,
)

if TYPE_CHECKING:
    from detrkit.data.formats import Source

__all__ = ["convert_command"]

_PANOPTIC_FILE = "annotations/panoptic_{}.json"


class _Groups(StrEnum):
    crowd = "crowd"
    object = "object"


class _Target(StrEnum):
    coco = "coco"
    coco_panoptic = "coco_panoptic"
    yolo = "yolo"
    voc = "voc"


def convert_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A .json file (one split), or a folder for all splits.")],
    to: Annotated[_Target, typer.Option("--to", help="The format to write.")] = _Target.coco,
    source_format: Annotated[
        str, typer.Option("--from", help="A format, as --format of other commands takes it, or cityscapes-gtfine.")
    ] = "auto",
    split: Annotated[Split | None, typer.Option(help="Only this split.")] = None,
    groups: Annotated[
        _Groups, typer.Option(help="cityscapes-gtfine: how to convert groups of objects.")
    ] = _Groups.crowd,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images into the folder.")] = False,
    on_error: OnErrorOption = OnError.stop,
    force: Force = False,
) -> None:
    """Write annotations as COCO JSON, COCO panoptic (JSON and PNG files), YOLO or Pascal VOC.

    Masks are kept; those in PNG files become RLE segmentations. YOLO takes polygons, VOC boxes alone; both get links to
    the images, or with --copy copies. Coordinates are rounded to 1/100 pixel.

    In a .json file, image file names stay unchanged. In a folder, annotations/instances_SPLIT.json is written with file
    names relative to the folder: a COCO data set without copies of the images. For a gtFine folder of Cityscapes
    (--from cityscapes-gtfine), *_instanceIds.png are converted to cityscapes_SPLIT_cocostyle.json.
    """
    from detrkit.cli.console import progress_bar
    from detrkit.data.convert import to_coco, usable_part, write_panoptic
    from detrkit.data.formats import read_source
    from detrkit.data.formats.gtfine import convert_gtfine, gtfine_splits
    from detrkit.data.open import load_source
    from detrkit.terminal import say

    if source_format == "cityscapes-gtfine" or (source_format == "auto" and (folder / "gtFine").is_dir()):
        files = gtfine_splits(folder)
        outputs = outputs_of(out, list(files), split, "cityscapes_{}_cocostyle.json", force)
        for name, path in outputs.items():
            with progress_bar(name) as bar:
                coco = convert_gtfine(files[name], groups=groups.value, progress=bar.update)
            write_coco(path, coco, force)
        return
    panoptic = to == _Target.coco_panoptic
    sources = sources_of(folder, source_format, None, None, None, TaskName.pan if panoptic else None)
    if to in (_Target.yolo, _Target.voc) or (copy and to == _Target.coco):
        _convert_folder(sources, out, to, split, copy=copy, on_error=on_error, force=force)
        return
    outputs = outputs_of(out, list(sources), split, _PANOPTIC_FILE if panoptic else COCO_FILE, force)
    for name, path in outputs.items():
        relative_to = None if path == out else out
        if panoptic:
            dataset = load_source(sources[name], task="pan", on_error=on_error.value)
            for note in dataset.load_errors:
                say(f"left out: {note}")
            with progress_bar(name) as bar:
                content = write_panoptic(dataset, path, relative_to=relative_to, progress=bar.update, note=say)
            say(f"wrote {path} and {path.with_suffix('')}: {len(content['images'])} images")
            continue
        table, notes = usable_part(read_source(sources[name]), on_error=on_error.value)
        for note in notes:
            say(f"left out: {note}")
        write_coco(path, to_coco(table, relative_to=relative_to), force)


def _convert_folder(
    sources: dict[str, Source],
    out: Path,
    to: _Target,
    split: Split | None,
    *,
    copy: bool,
    on_error: OnError,
    force: bool,
) -> None:
    """Write a folder with its own images, or links to them."""
    from detrkit.cli.console import progress_bar
    from detrkit.data.convert import to_coco, usable_part
    from detrkit.data.formats import read_source
    from detrkit.data.write_folders import flat_names, place_images, write_voc, write_yolo
    from detrkit.errors import DataError
    from detrkit.terminal import say

    if out.suffix == ".json":
        raise DataError(f"{out}: --to {to.value}{' --copy' * copy} writes a folder, not a file")
    names = list(outputs_of(out, list(sources), split, "{}", force))
    if out.exists() and any(out.iterdir()) and not force:
        raise DataError(f"{out}: the folder is not empty; choose another one, or pass --force to write into it")
    tables = {}
    for name in names:
        tables[name], notes = usable_part(read_source(sources[name]), on_error=on_error.value)
        for note in notes:
            say(f"left out: {note}")
    with progress_bar("images") as bar:
        if to == _Target.coco:
            for name, table in tables.items():
                new = flat_names(str(image["file_name"]) for image in table.images)
                placed = place_images(table, out / "images" / name, new, copy=copy, progress=bar.update)
                write_coco(out / COCO_FILE.format(name), to_coco(placed), force)
            return
        write = write_yolo if to == _Target.yolo else write_voc
        for note in write(tables, out, copy=copy, progress=bar.update):
            say(f"left out: {note}")
    counts = ", ".join(f"{name} {len(table.images)} images" for name, table in tables.items())
    say(f"wrote {out} ({to.value}): {counts}{'' if copy else '; images are links, --copy copies them'}")
