"""Images to predict: finding them in files, folders and URLs, and reading them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from detrkit.data.arrays import Channels, is_tensor
from detrkit.data.images import ImageSource, Picture, read_image, read_picture
from detrkit.data.listing import IMAGE_SUFFIXES
from detrkit.errors import DataError
from detrkit.files import safe_name
from detrkit.weights.published.addresses import is_url, name_in, refuse_other_schemes

__all__ = ["ImageInput", "each_image", "find_images", "open_image", "refuse_unusable"]

_DESCRIPTIONS = frozenset({".csv", ".json", ".txt", ".xml", ".yaml", ".yml"})
_MAGIC = re.compile(r"[*?]|\[[^]]+\]")  # a single bracket is a sign like others
_VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass(frozen=True)
class ImageInput:
    """One image to predict: its path or URL, and its name relative to the command-line argument."""

    source: str | Path
    file_name: str


def open_image(
    source: ImageSource,
    *,
    channels: Channels = "rgb",
    max_pixels: int | None = None,
    seen: tuple[int, int] | None = None,
) -> Picture:
    """Read an image from any source of ``Predictor.predict``, including URLs, as upright RGB.

    Args:
        source: path, URL, Pillow image, array, tensor, encoded bytes or an open file of them.
        channels: order of the colours of arrays and tensors.
        max_pixels: see :func:`~detrkit.data.images.read_image`.
        seen: sides to which the model resizes, see :func:`~detrkit.data.images.read_picture`; None: always decode the
            full size.

    Raises:
        DataError: the image cannot be read or fetched, or is too large.
    """
    name = None
    if isinstance(source, str):
        refuse_unusable(source)
        if is_url(source):
            from detrkit.weights.published.web import fetch_image

            name, source = source, fetch_image(source)
    if seen is not None:
        return read_picture(source, seen=seen, channels=channels, max_pixels=max_pixels, name=name)
    image = read_image(source, channels=channels, max_pixels=max_pixels, name=name)
    return Picture(image=image, full_size=image.size)


def refuse_unusable(argument: str) -> None:
    """Refuse texts that are neither a path nor a web address.

    Raises:
        DataError: an empty text, or another kind of address.
    """
    if not argument.strip():
        raise DataError("an empty text is not an image (is a variable not set?); give a file, a folder or a URL")
    refuse_other_schemes(argument)


def find_images(
    arguments: Sequence[str], *, written: Sequence[Path] = (), earlier: Collection[Path] = ()
) -> list[ImageInput]:
    """Find the images of command-line arguments, without duplicates and sorted by name.

    Folders are searched with their subfolders, except for hidden files. A file name is relative to its folder argument
    (of a pattern: to the folders before its first sign; for a file or URL: its last part); equal names of different
    files are made relative to their common folder.

    Args:
        arguments: files, folders, patterns (``photos/*.jpg``) and URLs.
        written: folders that pictures and maps will be written to. No input may be in them.
        earlier: pictures and maps of an earlier run, which are not inputs.

    Raises:
        DataError: a path does not exist, a folder has no images, an argument is a video, or pictures would be written
            among the inputs.
    """
    outputs = {os.path.realpath(folder): folder for folder in written}
    left_out = {os.path.realpath(path) for path in earlier}
    found: dict[str, ImageInput] = {}
    for argument in arguments:
        for item in _of_argument(argument, left_out):
            if isinstance(item.source, str):
                found.setdefault(item.source, item)
                continue
            real = os.path.realpath(item.source)  # Path.resolve raises on a link to itself
            _refuse_mixing(item.source, real, outputs)
            found.setdefault(real, item)
    items = _with_distinct_names(list(found.values()))
    return sorted(items, key=lambda item: PurePosixPath(item.file_name).parts)


def _refuse_mixing(path: Path, real: str, outputs: dict[str, Path]) -> None:
    """Refuse an input where pictures will be written: they would be inputs of the next run, or replace this one."""
    for folder, shown in outputs.items():
        if real.startswith(folder + os.sep):
            raise DataError(
                f"{path}: pictures would be written among the inputs ({shown}); choose another --out, or, if a stopped "
                "run has left it, delete it"
            )


def _of_argument(argument: str, left_out: Collection[str]) -> Iterator[ImageInput]:
    refuse_unusable(argument)
    if is_url(argument):
        _refuse_video(argument, urlsplit(argument).path)
        yield ImageInput(argument, safe_name(name_in(argument)) or "image")
        return
    if _is_pattern(argument):
        yield from _of_pattern(argument, left_out)
        return
    path = Path(argument)
    if not os.path.lexists(path):
        raise DataError(f"{argument}: no such image or folder")
    if not path.is_dir():
        _refuse_video(argument, argument)
        _refuse_description(path)
        yield ImageInput(path, path.name)
        return
    names = [
        PurePosixPath(file.relative_to(path).as_posix())
        for file in _walk(path)
        if os.path.realpath(file) not in left_out
    ]
    if not names and any(_walk(path)):
        raise DataError(f"{argument}: has only pictures of an earlier run, which are not inputs")
    if not names:
        raise DataError(f"{argument}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    for name in names:
        yield ImageInput(path / name, str(name))


def each_image(images: object) -> tuple[Iterable[Any], bool]:
    """The images that an argument of ``predict`` stands for, and whether it is one image rather than several.

    Several are those of a list or another iterable, of a folder, or of a pattern such as ``photos/*.jpg``.

    Raises:
        DataError: no image matches the pattern.
    """
    if isinstance(images, str | Path):
        has_images = os.path.isdir(images) and any(_walk(Path(images)))  # reading an empty one says that it is none
        if has_images or _is_pattern(os.fspath(images)):
            return [item.source for item in find_images([os.fspath(images)])], False
        return [images], True
    one: tuple[type, ...] = (bytes, bytearray, memoryview, np.ndarray, Mapping)  # a mapping is none: reading it says so
    is_one = isinstance(images, one) or is_tensor(images) or hasattr(images, "read")  # an open file has lines
    is_one = is_one or not isinstance(images, Iterable)
    return ([images], True) if is_one else (cast("Iterable[Any]", images), False)


def _is_pattern(argument: str) -> bool:
    """Whether a text is a pattern such as ``photos/**/*.png``, and neither a URL nor the name of what exists."""
    return bool(_MAGIC.search(argument)) and not is_url(argument) and not os.path.lexists(argument)


def _of_pattern(argument: str, left_out: Collection[str]) -> Iterator[ImageInput]:
    """Images that a pattern names, and those in folders that it names; names are relative to what stands before it."""
    parts = Path(argument).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    found = 0
    for match in sorted(map(Path, glob.glob(argument, recursive=True))):
        files = _walk(match) if match.is_dir() else [match] * (match.suffix.lower() in IMAGE_SUFFIXES)
        for file in files:
            if os.path.realpath(file) not in left_out:
                found += 1
                yield ImageInput(file, file.relative_to(base).as_posix())
    if not found:
        raise DataError(f"{argument}: no such image or folder, and no image matches it as a pattern")


def _walk(folder: Path) -> Iterator[Path]:
    """Image files in a folder and its subfolders; links are followed, and every real folder is visited once."""
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(root) / name


def _refuse_description(path: Path) -> None:
    if path.suffix.lower() in _DESCRIPTIONS:
        raise DataError(
            f"{path}: describes images but is none; give the folder that they are in (to score a model on a data set: "
            "detrkit eval --data DIR)"
        )


def _refuse_video(argument: str, path: str) -> None:
    if PurePosixPath(path).suffix.lower() in _VIDEO_SUFFIXES:
        raise DataError(
            f"{argument}: videos are not supported yet; extract frames first, for example: "
            f"mkdir frames && ffmpeg -i {PurePosixPath(path).name} frames/%06d.jpg"
        )


def _with_distinct_names(items: list[ImageInput]) -> list[ImageInput]:
    """Make equal names relative to the common folder of their files; add a number to names that are still equal."""
    by_name: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_name.setdefault(item.file_name, []).append(index)
    for indices in by_name.values():
        if len(indices) < 2:
            continue
        files = [index for index in indices if isinstance(items[index].source, Path)]
        if len(files) > 1:
            resolved = [Path(os.path.realpath(items[index].source)) for index in files]
            shared = os.path.commonpath([file.parent for file in resolved])
            for index, file in zip(files, resolved, strict=True):
                items[index] = replace(items[index], file_name=file.relative_to(shared).as_posix())
    taken: set[str] = set()
    for index, item in enumerate(items):
        name, number = item.file_name, 2
        while name in taken:
            path = PurePosixPath(item.file_name)
            name, number = str(path.with_name(f"{path.stem}-{number}{path.suffix}")), number + 1
        taken.add(name)
        items[index] = replace(item, file_name=name)
    return items
