"""Careful reading and atomic writing of files. Every file that detrkit replaces goes through :func:`replacing`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import DataError, RunError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "beginning",
    "cache_dir",
    "check_regular",
    "file_content",
    "has_link",
    "refuse_existing",
    "refuse_links",
    "remove_drafts",
    "replacing",
    "safe_name",
    "scratch_folder",
    "short_name",
    "sync",
    "write_bytes",
    "write_json",
    "write_picture",
]

_LONGEST_NAME = 255  # bytes that file systems allow


def cache_dir() -> Path:
    """Folder of downloads and notes: DETRKIT_CACHE, else detrkit in the user's cache folder."""
    if "DETRKIT_CACHE" in os.environ:
        return Path(os.environ["DETRKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detrkit"


def refuse_existing(path: Path, force: bool) -> None:
    """Raise a DataError when the file exists and ``force`` is not set."""
    if path.exists() and not force:
        raise DataError(f"{path}: exists already; pass --force to overwrite it")


def check_regular(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading a pipe or a device may never end. A missing file passes.

    Raises:
        DataError: a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a null byte in the name
        return  # opening it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: not a regular file but a pipe, a socket or a device, which is not read")


def beginning(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a regular file, for recognising it; none where it cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, DataError):
        return b""


def file_content(path: Path, what: str = "file") -> bytes:
    """What a file holds. what: its kind, for messages.

    Raises:
        DataError: the file is missing, not a regular one, or cannot be read.
    """
    check_regular(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such {what}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def has_link(folder: Path, path: Path) -> bool:
    """Whether a folder on the way from ``folder`` to ``path`` is a link, so that ``path`` may lie elsewhere."""
    return any(parent.is_symlink() for parent in path.parents if parent != folder and parent.is_relative_to(folder))


def refuse_links(folder: Path, path: Path) -> None:
    """Refuse to write a path below a folder through a link.

    Raises:
        DataError: a folder on the way is a link.
    """
    if has_link(folder, path):
        raise DataError(
            f"{path}: a folder on the way is a link, through which nothing is written; choose another folder"
        )


def safe_name(text: str, *, longest: int = _LONGEST_NAME) -> str:
    """A name from elsewhere (a URL) as the name of one file: no separators, control characters or leading dots.

    It has at most ``longest`` bytes; the ending stays. Empty where nothing is left.
    """
    name = "".join("_" if ord(sign) < 32 or ord(sign) == 127 or sign in '/\\:*?"<>|' else sign for sign in text)
    return short_name(name.strip(" ").lstrip("."), longest=longest)


def short_name(name: str, *, longest: int = _LONGEST_NAME) -> str:
    """A file name with at most ``longest`` bytes: the end of the stem is replaced by a hash, the ending stays."""
    encoded = os.fsencode(name)
    if len(encoded) <= longest:
        return name
    stem, ending = os.path.splitext(name)
    if len(os.fsencode(ending)) > 16:
        stem, ending = name, ""
    mark = f"-{hashlib.sha256(encoded).hexdigest()[:8]}{ending}"
    kept = os.fsencode(stem)[: longest - len(os.fsencode(mark))]
    return kept.decode("utf-8", "ignore") + mark


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are stored on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder for syncing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_DRAFT = ".draft"


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed inside :func:`replacing` left in a folder that no other process uses."""
    for draft in folder.glob(f".*{_DRAFT}"):
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a draft file to write, which replaces ``path`` atomically after the block; after an error nothing changes.

    The draft is in the same folder, which is created if missing, and is stored on the disk before it is renamed.

    Raises:
        OSError: the file cannot be written (disk full, no permission); callers turn it into their own error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name of the draft is longer: the part from the target is short, for file systems with 255 bytes
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=_DRAFT)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        sync(draft)
        draft.chmod(0o644)  # temporary files are private to their owner
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="detrkit-") as name:
        yield Path(name)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_bytes(data)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_json(path: Path, value: object, *, force: bool = False) -> None:
    """Write a JSON value atomically.

    Raises:
        DataError: the file exists and ``force`` is not set.
        RunError: the file cannot be written.
        ValueError: a number is not finite, which JSON does not allow.
    """
    refuse_existing(path, force)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a file name that is not valid Unicode
        text = json.dumps(value, allow_nan=False).encode()
    write_bytes(path, text)


def write_picture(path: Path, picture: Image.Image, *, format: str = "PNG") -> None:
    """Write a picture atomically.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            picture.save(draft, format, quality=92)  # PNG has no quality and ignores it
    except OSError as error:
        raise RunError(f"{path}: the picture cannot be written ({error.strerror or error})") from error
