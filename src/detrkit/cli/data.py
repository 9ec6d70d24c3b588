"""``detrkit data check|stats|convert|sample|split|view``: inspect, convert and split data sets."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from detrkit.data.coco_json import Row
    from detrkit.data.dataset import DetectionDataset
    from detrkit.data.formats import Source

__all__ = ["app"]

# File of a converted split in the output folder, as in a COCO data set.
_COCO_FILE = "annotations/instances_{}.json"
_PANOPTIC_FILE = "annotations/panoptic_{}.json"

app = typer.Typer(no_args_is_help=True, help="Check, describe, convert, sample, split and view data sets.")


class _Split(StrEnum):
    train = "train"
    val = "val"
    test = "test"


class _Groups(StrEnum):
    crowd = "crowd"
    object = "object"


class _OnError(StrEnum):
    stop = "raise"
    skip = "skip"


class _Target(StrEnum):
    coco = "coco"
    coco_panoptic = "coco_panoptic"
    yolo = "yolo"
    voc = "voc"


class _Task(StrEnum):
    det = "det"
    inst = "inst"
    sem = "sem"
    pan = "pan"


Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The data folder, or its data.yaml or COCO file.", show_default=False)
]
_FORMATS = "coco, coco_panoptic, lvis, roboflow, yolo, voc, cityscapes, masks, labelme, via, supervisely or vott"
FormatOption = Annotated[str, typer.Option("--format", help=f"auto, {_FORMATS}.")]
TaskOption = Annotated[
    _Task | None, typer.Option(help="Task of the data: it decides between files side by side, and about masks.")
]
Annotations = Annotated[Path | None, typer.Option(help="A COCO file, for a folder without a known layout.")]
Images = Annotated[Path | None, typer.Option(help="Image folder of that file.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Seed = Annotated[int, typer.Option(help="Random seed for the choice of images.")]
OnErrorOption = Annotated[_OnError, typer.Option(help="For bad boxes and images: raise, or skip and count them.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("check")
def check_command(
    folder: Folder,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read image headers only, and draw no masks.")] = False,
    json: JsonFlag = False,
) -> None:
    """Check a data set for problems before training. Exit code 0: at most warnings, 1: errors, 2: unusable."""
    from dataclasses import asdict

    from detrkit.cli.console import print_json, progress_bar
    from detrkit.cli.data_tables import print_report

    if not json:
        _note(f"reading {folder} …")  # the modules below take a moment
    from detrkit.data.doctor import DataContents
    from detrkit.data.doctor import check as check_sources

    sources = _sources(folder, format, annotations, images, None, task)

    def tell(contents: DataContents) -> None:
        if not json:
            _note(f"{folder}: {contents}", err=False)

    with progress_bar("reading") as bar:
        report = check_sources(sources, quick=quick, progress=bar.update, tell=tell)
    if json:
        findings = [asdict(finding) for finding in report.findings]
        print_json({"failed": report.failed, **asdict(report.contents), "findings": findings})
    else:
        print_report(report, folder)
    raise typer.Exit(1 if report.failed else 0)


@app.command("stats")
def stats_command(
    folder: Folder,
    split: Annotated[_Split | None, typer.Option(help="Only this split.")] = None,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    json: JsonFlag = False,
) -> None:
    """Show classes, boxes per image, box and image sizes. Unusable boxes and images are only counted."""
    from detrkit.cli.console import print_json
    from detrkit.cli.data_tables import print_statistics
    from detrkit.data.formats import usual_task
    from detrkit.data.open import load_source
    from detrkit.data.statistics import statistics

    sources = _sources(folder, format, annotations, images, split, task)
    found = {
        name: statistics(load_source(source, task=task or usual_task(source), on_error="skip"))
        for name, source in sources.items()
    }
    if json:
        print_json({name: numbers.to_json() for name, numbers in found.items()})
        return
    for name, numbers in found.items():
        print_statistics(name, numbers)


@app.command("convert")
def convert_data_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A .json file (one split), or a folder for all splits.")],
    to: Annotated[_Target, typer.Option("--to", help="The format to write.")] = _Target.coco,
    source_format: Annotated[
        str, typer.Option("--from", help="A format, as --format of other commands takes it, or cityscapes-gtfine.")
    ] = "auto",
    split: Annotated[_Split | None, typer.Option(help="Only this split.")] = None,
    groups: Annotated[
        _Groups, typer.Option(help="cityscapes-gtfine: how to convert groups of objects.")
    ] = _Groups.crowd,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images into the folder.")] = False,
    on_error: OnErrorOption = _OnError.stop,
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

    if source_format == "cityscapes-gtfine" or (source_format == "auto" and (folder / "gtFine").is_dir()):
        files = gtfine_splits(folder)
        outputs = _outputs(out, list(files), split, "cityscapes_{}_cocostyle.json", force)
        for name, path in outputs.items():
            with progress_bar(name) as bar:
                coco = convert_gtfine(files[name], groups=groups.value, progress=bar.update)
            _write(path, coco, force)
        return
    panoptic = to == _Target.coco_panoptic
    sources = _sources(folder, source_format, None, None, None, _Task.pan if panoptic else None)
    if to in (_Target.yolo, _Target.voc) or (copy and to == _Target.coco):
        _convert_folder(sources, out, to, split, copy=copy, on_error=on_error, force=force)
        return
    outputs = _outputs(out, list(sources), split, _PANOPTIC_FILE if panoptic else _COCO_FILE, force)
    for name, path in outputs.items():
        relative_to = None if path == out else out
        if panoptic:
            dataset = load_source(sources[name], task="pan", on_error=on_error.value)
            for note in dataset.load_errors:
                _note(f"left out: {note}")
            with progress_bar(name) as bar:
                content = write_panoptic(dataset, path, relative_to=relative_to, progress=bar.update, note=_note)
            _note(f"wrote {path} and {path.with_suffix('')}: {len(content['images'])} images")
            continue
        table, notes = usable_part(read_source(sources[name]), on_error=on_error.value)
        for note in notes:
            _note(f"left out: {note}")
        _write(path, to_coco(table, relative_to=relative_to), force)


def _convert_folder(
    sources: dict[str, Source],
    out: Path,
    to: _Target,
    split: _Split | None,
    *,
    copy: bool,
    on_error: _OnError,
    force: bool,
) -> None:
    """Write a folder with its own images, or links to them."""
    from detrkit.cli.console import progress_bar
    from detrkit.data.convert import to_coco, usable_part
    from detrkit.data.formats import read_source
    from detrkit.data.write_folders import flat_names, place_images, write_voc, write_yolo
    from detrkit.errors import DataError

    if out.suffix == ".json":
        raise DataError(f"{out}: --to {to.value}{' --copy' * copy} writes a folder, not a file")
    names = list(_outputs(out, list(sources), split, "{}", force))
    if out.exists() and any(out.iterdir()) and not force:
        raise DataError(f"{out}: the folder is not empty; choose another one, or pass --force to write into it")
    tables = {}
    for name in names:
        tables[name], notes = usable_part(read_source(sources[name]), on_error=on_error.value)
        for note in notes:
            _note(f"left out: {note}")
    with progress_bar("images") as bar:
        if to == _Target.coco:
            for name, table in tables.items():
                new = flat_names(str(image["file_name"]) for image in table.images)
                placed = place_images(table, out / "images" / name, new, copy=copy, progress=bar.update)
                _write(out / _COCO_FILE.format(name), to_coco(placed), force)
            return
        write = write_yolo if to == _Target.yolo else write_voc
        for note in write(tables, out, copy=copy, progress=bar.update):
            _note(f"left out: {note}")
    counts = ", ".join(f"{name} {len(table.images)} images" for name, table in tables.items())
    _note(f"wrote {out} ({to.value}): {counts}{'' if copy else '; images are links, --copy copies them'}")


@app.command("sample")
def sample_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A .json file, or a folder, which also gets the other splits in full.")],
    rate: Annotated[float | None, typer.Option(help="Fraction of the images, such as 0.01.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of images, instead of a rate.")] = None,
    seed: Seed = 0,
    split: Annotated[_Split, typer.Option(help="The split to sample from.")] = _Split.train,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    force: Force = False,
) -> None:
    """Write a subset of a split, with seed and rate noted in the file. Subsets with the same seed are nested."""
    from detrkit.data.convert import to_coco
    from detrkit.data.formats import read_source
    from detrkit.data.subsets import sample_table

    single = out.suffix == ".json"
    sources = _sources(folder, format, annotations, None, split if single else None)
    outputs = _outputs(out, list(sources), split if single else None, _COCO_FILE, force)
    if split not in sources:
        raise _no_split(split, sources)
    for name, path in outputs.items():
        table = read_source(sources[name])
        if name == split:
            table = sample_table(table, seed=seed, rate=rate, count=count)
        _write(path, to_coco(table, relative_to=None if single else out), force)


@app.command("split")
def split_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A folder for annotations/instances_{train,val}.json.")],
    val: Annotated[float, typer.Option(help="Fraction of the images for val.")] = 0.2,
    seed: Seed = 0,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    force: Force = False,
) -> None:
    """Split a train split into train and val; the images stay where they are."""
    from detrkit.data.convert import split_table, to_coco
    from detrkit.data.formats import find_sources, read_source

    paths = _outputs(out, ["train", "val"], None, _COCO_FILE, force)
    source = _sources(folder, format, annotations, images, _Split.train)["train"]
    if annotations is None and "val" in find_sources(folder, format=format):
        _note(f"{folder} has a val split already, which stays as it is: only its train split is divided")
    for name, table in split_table(read_source(source), val=val, seed=seed).items():
        _write(paths[name], to_coco(table, relative_to=out), force)


@app.command("view")
def view_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")],
    split: Annotated[_Split, typer.Option(help="The split to draw.")] = _Split.train,
    count: Annotated[int, typer.Option(min=0, help="How many images; 0 for all.")] = 20,
    seed: Seed = 0,
    format: FormatOption = "auto",
    annotations: Annotations = None,
    images: Images = None,
    task: TaskOption = None,
    force: Force = False,
) -> None:
    """Draw the annotations on images, with their masks where they have some."""
    from detrkit.data.listing import posix_name
    from detrkit.data.subsets import choose
    from detrkit.drawing import draw_labels
    from detrkit.errors import DataError
    from detrkit.files import refuse_existing, write_picture

    source = _sources(folder, format, annotations, images, split, task)[split.value]
    dataset = _load_to_view(source, task)
    size = min(count, len(dataset)) or len(dataset)
    paths = {}
    for index in choose([record.file_name for record in dataset.records], size, seed):
        record = dataset.records[index]
        paths[index] = out / f"{Path(posix_name(record.file_name)).stem}_{record.image_id}.jpg"
        refuse_existing(paths[index], force)
    written = 0
    for index, path in paths.items():
        try:
            picture = draw_labels(dataset.read_image(index), dataset.records[index], dataset.categories)
        except DataError as error:
            _note(str(error))
            continue
        write_picture(path, picture, format="JPEG")
        written += 1
    _note(f"wrote {written} pictures to {out}")


def _load_to_view(source: Source, task: _Task | None) -> DetectionDataset:
    """The data set with masks where it has some, unless a task says otherwise."""
    from detrkit.data.formats import usual_task
    from detrkit.data.open import load_source
    from detrkit.errors import DataError

    usual = task or usual_task(source)
    if task is None and usual == "det":
        try:
            return load_source(source, task="inst", on_error="skip")
        except DataError:  # boxes alone
            pass
    return load_source(source, task=usual, on_error="skip")


def _sources(
    folder: Path,
    format: str,
    annotations: Path | None,
    images: Path | None,
    split: _Split | None,
    task: _Task | None = None,
) -> dict[str, Source]:
    """The selected split, or all splits."""
    from detrkit.data.formats import find_source, find_sources

    used_for = task or "det"
    if split is None and annotations is None and images is None:
        return find_sources(folder, task=used_for, format=format)
    name = (split or _Split.train).value
    return {name: find_source(folder, name, task=used_for, format=format, annotations=annotations, images=images)}


def _outputs(out: Path, present: list[str], split: _Split | None, pattern: str, force: bool) -> dict[str, Path]:
    """Output path of each split; raises before any work where a file exists already."""
    from detrkit.errors import DataError
    from detrkit.files import refuse_existing

    if split is not None and split not in present:
        raise _no_split(split, present)
    wanted = present if split is None else [split.value]
    if out.suffix == ".json" and len(wanted) > 1:
        raise DataError(
            f"{out} is one file, but there are {' and '.join(wanted)}; choose with --split, or name a folder"
        )
    paths = {name: out if out.suffix == ".json" else out / pattern.format(name) for name in wanted}
    for path in paths.values():
        refuse_existing(path, force)
    return paths


def _no_split(split: str, present: Iterable[str]) -> Exception:
    from detrkit.errors import DataError

    return DataError(f"there is no {split} split, only {' and '.join(present)}")


def _write(path: Path, table: Row, force: bool) -> None:
    from detrkit.files import write_json

    write_json(path, table, force=force)
    _note(f"wrote {path}: {len(table['images'])} images, {len(table['annotations'])} annotations")


def _note(text: str, *, err: bool = True) -> None:
    """Print a line on stderr; stdout is for results."""
    from detrkit.terminal import printable

    typer.echo(printable(text), err=err)
