"""Images to predict: finding them in files, folders and URLs, and reading them."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from PIL import Image

from detrkit.data.images import IMAGE_SUFFIXES, ImageSource, read_image
from detrkit.errors import DataError
from detrkit.weights.published.download import is_url

__all__ = ["ImageInput", "find_images", "open_image"]

_VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass(frozen=True)
class ImageInput:
    """One image to predict: its path or URL, and its name relative to the command-line argument."""

    source: str | Path
    file_name: str


def open_image(source: ImageSource) -> Image.Image:
    """Read an image from any source of ``Predictor.predict``, including URLs, as upright RGB.

    Raises:
        DataError: the image cannot be read or fetched.
    """
    return read_image(_fetch(source) if isinstance(source, str) and is_url(source) else source)


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data: bytes = response.read()
            return data
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(f"{url}: the image cannot be fetched: {getattr(error, 'reason', None) or error}") from error


def find_images(arguments: Sequence[str], *, written: Sequence[Path] = ()) -> list[ImageInput]:
    """Find the images of command-line arguments, without duplicates and sorted by name.

    Folders are searched with their subfolders, except for hidden files. A file name is relative to its folder argument
    (for a file or URL: its last part); equal names of different files are made relative to their common folder.

    Args:
        arguments: files, folders and URLs.
        written: folders of output pictures and maps, which are not searched.

    Raises:
        DataError: a path does not exist, a folder has no images, an argument is a video, or pictures would be written
            among the inputs.
    """
    found: dict[str, ImageInput] = {}
    for argument in arguments:
        for item in _of_argument(argument, written):
            key = item.source if isinstance(item.source, str) else str(item.source.resolve())
            found.setdefault(key, item)
    items = _with_distinct_names(list(found.values()))
    return sorted(items, key=lambda item: PurePosixPath(item.file_name).parts)


def _of_argument(argument: str, written: Sequence[Path]) -> Iterator[ImageInput]:
    if is_url(argument):
        _refuse_video(argument, urlsplit(argument).path)
        yield ImageInput(argument, unquote(PurePosixPath(urlsplit(argument).path).name) or "image")
        return
    path = Path(argument)
    if not path.exists():
        raise DataError(f"{argument}: no such image or folder")
    if not path.is_dir():
        _refuse_video(argument, argument)
        yield ImageInput(path, path.name)
        return
    excluded = [folder.resolve() for folder in written]
    for output, folder in zip(written, excluded, strict=True):
        if path.resolve().is_relative_to(folder):
            raise DataError(f"{argument}: pictures would be written among the inputs ({output}); choose another --out")
    names = [PurePosixPath(file.relative_to(path).as_posix()) for file in _walk(path, excluded)]
    if not names:
        raise DataError(f"{argument}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    for name in names:
        yield ImageInput(path / name, str(name))


def _walk(folder: Path, excluded: Sequence[Path]) -> Iterator[Path]:
    """Image files in a folder and its subfolders; links are followed, and every real folder is visited once."""
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited or Path(real) in excluded:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(root) / name


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
            resolved = [Path(items[index].source).resolve() for index in files]
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
