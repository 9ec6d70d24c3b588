"""What a reader of one annotation format offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit.data.coco_json import Row
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["SPLIT_WORDS", "Format", "Source", "find_image_root", "only", "option"]

# How files and folders of a split are called.
SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

_PROBES = 50


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one split lies. annotations: the file (or folder of files) to read · images: the folder that file names
    are relative to, or None to look for it · outlines: whether the objects' outlines are wanted, which are most of a
    COCO file."""

    format: str
    root: Path
    split: str
    annotations: Path
    images: Path | None = None
    outlines: bool = True


@dataclass(frozen=True, kw_only=True)
class Format:
    """One annotation format.

    looked_for: what makes a folder one of these, for messages · recognises(root) · locate(root, split): the source,
    or None when that split is absent · read(source): its annotations · absent(root): the splits that the folder names
    though they are not there, and what it names; only asking for one of them is an error.
    """

    name: str
    looked_for: str
    recognises: Callable[[Path], bool]
    locate: Callable[[Path, str], Source | None]
    read: Callable[[Source], Table]
    absent: Callable[[Path], dict[str, str]] = lambda _: {}


def option(name: str, recipe_keys: str) -> str:
    """An option as each kind of user writes it, for messages."""
    return f"--{name} (Python: {name}=, recipe: {recipe_keys})"


def only(found: Sequence[Path], split: str) -> Path | None:
    """The one file that could be a split, if there is one.

    Raises:
        DataError: there are several.
    """
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        how = option("annotations", "data.train.annotations, data.val.annotations")
        raise DataError(f"{found[0].parent}: several files could be the {split} split ({names}); name one with {how}")
    return found[0] if found else None


def find_image_root(candidates: Sequence[Path], images: Sequence[Row], origin: Path) -> Path:
    """The first of the folders that holds most of (a sample of) the images.

    Raises:
        DataError: none of them holds any.
    """
    names = [str(image["file_name"]).replace("\\", "/") for image in images]
    probes = names[:: max(1, len(names) // _PROBES)]
    folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    best, most = None, 0
    for folder in folders:
        hits = sum((folder / name).is_file() for name in probes)
        if hits > most:
            best, most = folder, hits
        if hits == len(probes):
            break
    if best is None:
        looked = ", ".join(str(folder) for folder in folders) or "no folder that exists"
        example = f" such as '{names[0]}'" if names else ""
        raise DataError(
            f"{origin}: found none of its images{example} in {looked}; say where they are with "
            f"{option('images', 'data.train.images, data.val.images')}"
        )
    return best
