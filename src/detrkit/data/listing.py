"""Which files are part of a data set, how its text is read, and where the images are that annotations name.

One rule for all formats. Files and folders whose name begins with a dot, ``__MACOSX`` and thumbnails are no part of a
data set. Letter case never matters. Names may have backslashes, may be absolute or lead through parent folders of
another machine: :func:`find_by_name` finds the image with the same name.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote

from detrkit.errors import DataError
from detrkit.files import file_content

__all__ = [
    "IMAGE_SUFFIXES",
    "child",
    "files_in",
    "find_by_name",
    "images_in",
    "is_hidden",
    "posix_name",
    "read_lines",
    "read_text",
]

_SUFFIXES = (
    ".apng .avif .avifs .blp .bmp .bw .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .icb .iim .im .j2c .j2k "
    ".jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .msp .pbm .pcd .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi .ras .rgb "
    ".rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Endings of the pictures that Pillow reads (some releases lack AVIF), without icons, vector graphics and films."""

# Folders and files that file managers write: archives of macOS, thumbnails of Windows and of storage servers.
_LITTER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a data set."""
    return name.startswith(".") or name.lower() in _LITTER


def files_in(folder: Path, suffixes: Collection[str] | None = None, *, recursive: bool = False) -> list[Path]:
    """The files of a folder that are part of a data set, sorted; none if there is no such folder.

    Links to folders are followed, each folder once.

    suffixes: only files with one of these endings, in lower case with the dot.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if not recursive or real in seen else [name for name in folders if not is_hidden(name)]
        if real in seen:
            continue
        seen.add(real)
        found += [
            Path(parent, name)
            for name in names
            if not is_hidden(name) and (suffixes is None or os.path.splitext(name)[1].lower() in suffixes)
        ]
    return sorted(found)


def images_in(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The images of a folder, by their endings."""
    return files_in(folder, IMAGE_SUFFIXES, recursive=recursive)


def child(folder: Path, *names: str) -> Path | None:
    """The first of the names that the folder has, in any letter case, or None."""
    try:
        present = sorted(os.listdir(folder))
    except OSError:
        return None
    lower = {name.lower(): name for name in reversed(present)} | {name: name for name in present}
    found = (lower.get(name) or lower.get(name.lower()) for name in names)
    return next((folder / name for name in found if name), None)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with a byte order mark, as Windows writes them.

    Raises:
        DataError: the file is missing, cannot be read, or is in another encoding.
    """
    data = file_content(path)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not {encoding.upper()} text; save the file as UTF-8") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding spaces; empty ones stay, so that line numbers do.

    Raises:
        DataError: as ``read_text`` raises it.
    """
    return [line.strip() for line in read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def posix_name(name: str) -> str:
    """A path as written on any system, with forward slashes."""
    return name.replace("\\", "/")


def find_by_name(names: Iterable[str], root: Path, *, taken: Iterable[Path] = ()) -> dict[str, Path]:
    """Images below a folder for names that do not exist as written, such as paths of another machine.

    The image with the same file name is taken; of several, the one whose folders agree most from the end. Left out are
    names without a match, with several equally good ones, or that share it with another name.

    taken: images that other names stand for already.
    """
    present = defaultdict(list)
    for path in images_in(root, recursive=True):
        parts = _parts(path.relative_to(root).as_posix())
        present[parts[-1]].append((parts, path))
    found: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        for written in dict.fromkeys((name, unquote(name))):
            parts = _parts(written)
            ranked = sorted(((_common_end(parts, other), path) for other, path in present[parts[-1]]), reverse=True)
            if ranked and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
                found[name] = ranked[0][1]
                break
    counts = Counter(found.values())
    counts.update(taken)
    return {name: path for name, path in found.items() if counts[path] == 1}


def _parts(name: str) -> list[str]:
    """The parts of a path, alike for names in another letter case or with accents written in two characters."""
    parts = unicodedata.normalize("NFC", posix_name(name)).casefold().split("/")
    return [part for part in parts if part] or [""]


def _common_end(first: list[str], second: list[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
