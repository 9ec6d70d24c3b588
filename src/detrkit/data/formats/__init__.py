"""Annotation formats, and recognising the format of a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from detrkit.data.formats import (
    ade20k,
    cityscapes,
    coco,
    coco_panoptic,
    labelme,
    lvis,
    mask_folders,
    roboflow,
    supervisely,
    via,
    voc,
    vott,
    yolo,
)
from detrkit.data.formats.base import SPLIT_WORDS, Format, Source, option, with_found_images
from detrkit.data.inventory import explanation, names_archive
from detrkit.data.listing import child, files_in, images_in, is_hidden
from detrkit.data.once import read_once
from detrkit.data.records import Table, without_images
from detrkit.errors import DataError, MissingFilesError, did_you_mean
from detrkit.files import beginning

__all__ = [
    "FORMATS",
    "Format",
    "Source",
    "describes_data",
    "explained",
    "find_source",
    "find_sources",
    "fitting_formats",
    "read_source",
    "recognise_format",
    "usual_task",
]

FORMATS: dict[str, Format] = {
    reader.FORMAT.name: reader.FORMAT
    for reader in (
        coco,
        coco_panoptic,
        lvis,
        roboflow,
        yolo,
        voc,
        cityscapes,
        mask_folders,
        ade20k,
        labelme,
        via,
        supervisely,
        vott,
    )
}

# How far to look for a data set inside a folder that is none.
_DEPTH, _FOLDERS = 3, 100


def read_source(source: Source, *, announce: bool = True) -> Table:
    """Read the annotations of one split. Images that are not where the annotations say are searched for by name.

    announce: warn of what the reader had to decide, the ``remarks`` of the table.

    Raises:
        DataError: the annotations cannot be read at all.
    """
    with explained(source), read_once():  # formats look at the files of all splits for their classes
        table = FORMATS[source.format].read(source)
    table = with_found_images(table, source.images or source.root, source.split)
    for remark in table.remarks if announce else ():
        if remark.level == "warning":
            warnings.warn(f"{table.origin}: {remark.count} {remark.message} ({remark.examples[0]})", stacklevel=2)
    return table


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Add to errors of files that are missing which download of a published data set has them."""
    try:
        yield
    except MissingFilesError as error:
        line = explanation(source.root, format=source.format, split=source.split)
        raise DataError(str(error) if line is None else f"{str(error).rstrip('.')}. {line}") from error


def fitting_formats(root: Path, name: str = "auto") -> list[Format]:
    """All formats that a data folder has, such as COCO's instances and panoptic files, or the named one.

    Raises:
        DataError: as ``recognise_format`` raises it where none fits.
    """
    fitting = _fitting(root) if name == "auto" and root.is_dir() else []
    return fitting or [recognise_format(root, name)]


def usual_task(source: Source) -> str:
    """What the format of a source is mostly used for."""
    return FORMATS[source.format].tasks[0]


def recognise_format(root: Path, name: str = "auto", *, task: str = "det") -> Format:
    """The format of a data folder: ``name``, or with "auto" the one that its files show.

    If several formats fit, such as COCO's instances and panoptic files side by side, the task decides.

    Raises:
        DataError: the folder is missing or empty, or not exactly one format fits.
    """
    if not root.is_dir() and not describes_data(root):
        what = "is a file that describes no data set" if root.exists() else "no such data folder"
        raise DataError(f"{root}: {what}")
    if root.is_dir() and not any(root.iterdir()):
        raise DataError(f"{root}: the data folder is empty")
    if name != "auto":
        if name not in FORMATS:
            raise DataError(f"format '{name}' is unknown.{did_you_mean(name, [*FORMATS, 'auto'])}")
        return FORMATS[name]
    fitting = _fitting(root)
    fitting = [form for form in fitting if task in form.tasks] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(form.name for form in fitting)
        raise DataError(f"{root}: looks like {names} at once; choose one with {option('format', 'data.format')}")
    nested = _nested(root)
    apart = any(names_archive(folder.relative_to(root).parts[0]) for folder, _ in nested)
    line = None if nested and not apart else explanation(root)
    if line is not None:
        raise DataError(f"{root}: {line}")
    if nested:
        inside = [f"{folder} ({form.name})" for folder, form in nested]
        raise DataError(f"{root}: no data set, but it has one inside. Did you mean {' or '.join(inside)}?")
    looked = "; ".join(form.looked_for for form in FORMATS.values())
    raise DataError(
        f"{root}: no known data set layout{_hint(root)}. Looked for {looked}. A COCO file elsewhere: detrkit data "
        f"split {root} --annotations FILE [--images DIR] --out {root}_split, then use {root}_split. YOLO labels: write "
        "a data.yaml with train, val and names"
    )


def _hint(root: Path) -> str:
    """What a folder without a known layout seems to be."""
    own = child(root, "annotations.xml")
    if own is not None and b"<image" in beginning(own, 1 << 16):
        return f": {own.name} is CVAT's own format, which is not read; export as COCO or YOLO, with images"
    files = files_in(root, {".txt", ".xml", ".json"}, recursive=True)
    if not files or images_in(root, recursive=True):
        return ""
    return (
        f": {len(files)} text files, such as {files[0]}, and no images: "
        f"{without_images(root / 'images')} (of YOLO, the labels into labels/)"
    )


def describes_data(path: Path) -> bool:
    """Whether a file stands for a data set: a ``data.yaml`` of YOLO, or a COCO file."""
    return path.is_file() and any(form.recognises(path) for form in FORMATS.values())


def _fitting(root: Path) -> list[Format]:
    certain = [form for form in FORMATS.values() if form.recognises(root)]
    return certain or [form for form in FORMATS.values() if root.is_dir() and form.may_be(root)]


def _nested(root: Path) -> list[tuple[Path, Format]]:
    """Folders inside a folder that are data sets, at most three, from the outside in."""
    found: list[tuple[Path, Format]] = []
    level = [root]
    for _ in range(_DEPTH):
        level = [
            path for parent in level for path in sorted(parent.iterdir()) if path.is_dir() and not is_hidden(path.name)
        ]
        level = level[:_FOLDERS]
        for folder in level:
            fitting = _fitting(folder)
            found += [(folder, fitting[0])] if fitting else []
        if found:
            break
    return found[:3]


def find_source(
    root: Path,
    split: str,
    *,
    task: str = "det",
    format: str = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
) -> Source:
    """Find a split in a data folder. annotations (a COCO JSON file) and images may be relative to ``root``.

    task: decides between several formats that fit.

    Raises:
        DataError: the split is not found; the message says what to do.
    """
    if split not in SPLIT_WORDS:
        raise DataError(f"split '{split}' is unknown.{did_you_mean(split, SPLIT_WORDS)}")
    if images is not None:
        images = root / images if (root / images).is_dir() else images
    if annotations is not None:
        annotations = root / annotations if (root / annotations).is_file() else annotations
        if format not in ("auto", "coco", "coco_panoptic", "lvis"):
            raise DataError(f"annotations '{annotations}' names a COCO file, but format is '{format}'")
        if format == "auto":
            beginnings = {"lvis": "lvis", "panoptic": "coco_panoptic"}
            name = annotations.name.lower()
            format = next((form for word, form in beginnings.items() if name.startswith(word)), "coco")
        return Source(format=format, root=root, split=split, annotations=annotations, images=images)
    form = recognise_format(root, format, task=task)
    source = form.locate(root, split)
    if source is None:
        present = _present(form, root)
        line = explanation(root, format=form.name, split=split)
        if line is not None:
            hint = line
        elif not present:
            hint = f"Looked for {form.looked_for}"
        elif split == "test":  # 'data split' makes no test split, and recipes have no key for one
            hint = f"It has {' and '.join(present)}"
        else:
            hint = (
                f"It has {' and '.join(present)}; to make a split: detrkit data split {root} --out {root}_split, "
                f"then use {root}_split, or name the file with {option('annotations', f'data.{split}.annotations')}"
            )
        raise DataError(f"{root}: this {form.name} data set has no {split} split. {hint}")
    return source if images is None else replace(source, images=images)


def find_sources(root: Path, *, task: str = "det", format: str = "auto") -> dict[str, Source]:
    """The source of every split in a data folder. A split whose files are missing is left out, unless it is train.

    Raises:
        DataError: not exactly one format fits, or there is no split.
    """
    form = recognise_format(root, format, task=task)
    found = _present(form, root)
    if not found:
        raise DataError(f"{root}: this {form.name} data set has no split. Looked for {form.looked_for}")
    return found


def _present(form: Format, root: Path) -> dict[str, Source]:
    absent = form.absent(root)
    located = {split: form.locate(root, split) for split in SPLIT_WORDS if split not in absent}
    return {split: source for split, source in located.items() if source is not None}
