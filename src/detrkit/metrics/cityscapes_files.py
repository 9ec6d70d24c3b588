"""Cityscapes' files: label images of the ground truth, the results of their images, and lists of masks."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.gtfine_files import INSTANCE_SUFFIX, instance_images
from detrkit.data.listing import files_in, read_lines
from detrkit.errors import DataError

__all__ = ["Listed", "NoLabelImagesError", "listed_masks", "matching_results", "read_mask", "true_images"]


@dataclass(frozen=True)
class Listed:
    """One line of a result: the file of a mask, its label id (24 to 33 for objects that count) and its score."""

    mask: Path
    label: int
    score: float


_RESULTS = {".txt": ("text file", "empty"), ".png": ("label image", "all 0")}
"""What a file of results is called, and how it is if nothing was found."""


def matching_results(truth: Path, results: Path, ending: str) -> dict[Path, Path]:
    """The file of the results for every label image of the ground truth.

    Args:
        truth: ``gtFine``, one of its splits, or the folder that holds ``gtFine``; of several splits that of val.
        results: the folder with one ``<city>_<sequence>_<frame>*`` per image, also in sub-folders.
        ending: of the files of results: ``.txt`` lists masks, ``.png`` is a label image.

    Raises:
        DataError: a folder is missing or empty, or an image has no such file, or several.
    """
    images = true_images(truth)
    if not results.is_dir():
        raise DataError(f"{results}: no such folder of results")
    files: dict[str, list[Path]] = {}
    for path in files_in(results, {ending}, recursive=True):
        files.setdefault("_".join(path.stem.split("_")[:3]), []).append(path)
    pairs: dict[Path, Path] = {}
    what, empty = _RESULTS[ending]
    for image in images:
        name = image.name.removesuffix(INSTANCE_SUFFIX)
        found = files.get(name, [])
        if len(found) != 1:
            problem = f"has {len(found)} {what}s" if found else f"has no {what}"
            raise DataError(
                f"{results}: {name} {problem}; every image of {truth} needs one {name}*{ending}, {empty} if nothing "
                "was found"
            )
        pairs[image] = found[0]
    return pairs


class NoLabelImagesError(DataError):
    """A folder has no label images of Cityscapes."""


def true_images(truth: Path) -> list[Path]:
    """The label images of instances of ``gtFine`` or one of its splits; of several splits those of val.

    Raises:
        NoLabelImagesError: there are none.
    """
    tried = [truth / "gtFine" / "val", truth / "val", truth]
    for folder in tried:
        if found := instance_images(folder):
            return found
    raise NoLabelImagesError(
        f"{truth}: no Cityscapes labels; looked for <city>/*{INSTANCE_SUFFIX} there and in gtFine/val"
    )


def listed_masks(text: Path, root: Path) -> list[Listed]:
    """The lines of a text file: path of a mask relative to the file, label id, score.

    Of lines that name the same mask the last one counts, as in the official evaluation.

    Args:
        text: the file.
        root: the folder of all results, which no path may leave.

    Raises:
        DataError: a line is not as it should be; the message names file and line.
    """
    found: dict[Path, Listed] = {}
    for number, line in enumerate(read_lines(text), start=1):
        if not line:
            continue
        fields = line.rsplit(maxsplit=2)
        where = f"{text}: line {number}"
        if len(fields) != 3:
            raise DataError(f"{where}: has to be 'mask label score', not {line!r}")
        try:
            label, score = int(float(fields[1])), float(fields[2])
        except (ValueError, OverflowError) as error:
            raise DataError(f"{where}: label and score have to be numbers, not {line!r}") from error
        if not np.isfinite(score):
            raise DataError(f"{where}: the score is {fields[2]}; it has to be a finite number")
        if not -1 <= label <= 33:
            raise DataError(
                f"{where}: {label} is no label id of Cityscapes (0 to 33; a car is 26, not its train id 13)"
            )
        mask = Path(os.path.normpath(text.parent / fields[0]))
        if os.path.isabs(fields[0]) or not mask.is_relative_to(os.path.normpath(root)):
            raise DataError(f"{where}: {fields[0]} leaves the folder of the results; it has to be relative to the file")
        if mask in found:
            warnings.warn(f"{where}: names {fields[0]} again; the last line counts", stacklevel=3)
            del found[mask]
        found[mask] = Listed(mask, label, score)
    return list(found.values())


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels (H, W) of an object: those that are not 0.

    Raises:
        DataError: the file is missing or cannot be read, or has another size than its ground truth.
    """
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) != 0
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mask") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: the mask cannot be read ({error})") from error
    if mask.shape != shape:
        raise DataError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, but its ground truth {shape[1]}x{shape[0]}"
        )
    return mask
