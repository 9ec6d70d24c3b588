"""The interface of an annotation format, and helpers for its readers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from detrkit.data.clean_rows import with_box
from detrkit.data.coco_json import Row
from detrkit.data.findings import finding
from detrkit.data.listing import child, find_by_name, posix_name
from detrkit.data.packed_masks import pack
from detrkit.data.records import Table, missing_files, without_images
from detrkit.errors import DataError, MissingFilesError

__all__ = [
    "SPLIT_WORDS",
    "Format",
    "Source",
    "find_image_root",
    "only",
    "option",
    "split_folders",
    "split_of",
    "with_found_images",
]

# Names of the files and folders of each split.
SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

# Number of images to look for in each candidate folder.
_SAMPLED_IMAGES = 50


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location of one split."""

    format: str
    """Name of the format, a key of ``FORMATS``."""
    root: Path
    """The data folder."""
    split: str
    """train, val or test."""
    annotations: Path
    """The annotation file, or the folder of annotation files."""
    images: Path | None = None
    """The folder to which image file names are relative; None: search for it."""
    segmentations: Literal["as in the file", "packed", "none"] = "as in the file"
    """What to read of ``segmentation`` of COCO files, which is the largest part of them: "packed" is its form in
    ``detrkit.data.packed_masks``, where it is well-formed."""

    def slim(self, row: Row) -> Row:
        """Reduce an object of a COCO file while it is parsed."""
        if self.segmentations == "as in the file" or "segmentation" not in row:
            return row
        try:
            row = with_box(row)
            if self.segmentations == "packed":
                row["segmentation"] = pack(row["segmentation"])
            else:
                del row["segmentation"]
        except DataError:  # build_records says what is wrong, and with which row
            pass
        return row


@dataclass(frozen=True, kw_only=True)
class Format:
    """One annotation format."""

    name: str
    """The name in ``--format`` and ``data.format``."""
    looked_for: str
    """The files that identify the format, for messages."""
    recognises: Callable[[Path], bool]
    """recognises(root): whether the folder has this format."""
    locate: Callable[[Path, str], Source | None]
    """locate(root, split): the source of the split, or None if there is none."""
    read: Callable[[Source], Table]
    """read(source): the annotations of the split."""
    tasks: tuple[str, ...] = ("det", "inst")
    """The tasks it is meant for, the usual one first. Among several formats of a folder the task decides."""
    may_be: Callable[[Path], bool] = lambda _: False
    """may_be(root): whether the folder may have this format, if it is certain to have no other."""
    absent: Callable[[Path], dict[str, str]] = lambda _: {}
    """absent(root): splits that the folder names but whose files are missing, with the names of those files. They are
    an error only when they are requested."""


def option(name: str, recipe_keys: str) -> str:
    """An option as written on the command line, in Python and in a recipe, for messages."""
    return f"--{name} (Python: {name}=, recipe: {recipe_keys})"


def only(found: Sequence[Path], split: str) -> Path | None:
    """The only candidate file for a split, or None without candidates.

    Raises:
        DataError: there are several candidates.
    """
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        how = option("annotations", "data.train.annotations, data.val.annotations")
        raise DataError(f"{found[0].parent}: several files could be the {split} split ({names}); name one with {how}")
    return found[0] if found else None


def split_of(name: str) -> str | None:
    """The split that a name says, such as ``my_train_list``, or None. Words of both train and val say train."""
    lower = name.lower()
    return next((split for split, words in SPLIT_WORDS.items() if any(word in lower for word in words)), None)


def split_folders(root: Path, holds: Callable[[Path], bool]) -> dict[str, Path]:
    """The sub-folders of the splits that hold annotations, or the folder itself as train."""
    folders = ((split, child(root, *words)) for split, words in SPLIT_WORDS.items())
    found = {split: folder for split, folder in folders if folder is not None and holds(folder)}
    return found or ({"train": root} if holds(root) else {})


def with_found_images(table: Table, root: Path, split: str) -> Table:
    """The table with the images of the same name below a folder in place of paths that do not exist."""
    missing = missing_files([table.path(image) for image in table.images])
    if not missing:
        return table
    lost = set(missing)
    taken = [table.path(image) for index, image in enumerate(table.images) if index not in lost]
    found = find_by_name((str(table.images[index]["file_name"]) for index in missing), root, taken=taken)
    if not found:
        return table
    names = {name: Path(os.path.relpath(path, table.image_root)).as_posix() for name, path in found.items()}
    images = [
        {**image, "file_name": names.get(image["file_name"], image["file_name"])} if index in lost else image
        for index, image in enumerate(table.images)
    ]
    pairs = [f"{name} -> {path}" for name, path in names.items()]
    message = "paths of images that do not exist as written: the image with the same name is taken"
    return replace(
        table, images=images, remarks=(*table.remarks, finding("warning", "image paths", split, pairs, message))
    )


def find_image_root(candidates: Sequence[Path], images: Sequence[Row], origin: Path, *, search: Path) -> Path:
    """The folder with the most images of a sample; the first one if several are equal.

    If none has any, it is ``search``, where ``with_found_images`` looks for images of the same names.

    Raises:
        DataError: there are none.
    """
    names = [posix_name(str(image["file_name"])) for image in images]
    sample = names[:: max(1, len(names) // _SAMPLED_IMAGES)]
    folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    best, best_count = None, 0
    for folder in folders:
        count = sum(os.path.exists(folder / name) for name in sample)
        if count > best_count:
            best, best_count = folder, count
        if count == len(sample):
            break
    if best is None and find_by_name(names, search):
        return search
    if best is None:
        searched = ", ".join(str(folder) for folder in folders) or "no folder that exists"
        example = f" such as '{names[0]}'" if names else ""
        raise MissingFilesError(
            f"{origin}: found none of its images{example} in {searched}: "
            f"{without_images(search / 'images')}, or say where they are with "
            f"{option('images', 'data.train.images, data.val.images')}"
        )
    return best
