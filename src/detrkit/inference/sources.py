"""Images to predict: finding them in files, folders and URLs, and reading them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from detrkit.data.arrays import Channels
from detrkit.data.images import IMAGE_SUFFIXES, ImageSource, Picture, read_image, read_picture
from detrkit.errors import DataError
from detrkit.files import safe_name
from detrkit.weights.published.addresses import is_url, name_in, refuse_other_schemes

__all__ = ["ImageInput", "find_images", "open_image", "refuse_unusable"]

_DESCRIPTIONS = frozenset({".csv", ".json", ".txt", ".xml", ".yaml", ".yml"})
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
        source: path, URL, Pillow image, array, tensor or encoded bytes.
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
    (for a file or URL: its last part); equal names of different files are made relative to their common folder.

    Args:
        arguments: files, folders and URLs.
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
