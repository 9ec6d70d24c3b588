"""Atomic writing of files. Every file that detrkit replaces goes through :func:`replacing`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.errors import DataError, RunError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["refuse_existing", "remove_drafts", "replacing", "sync", "write_json", "write_picture"]


def refuse_existing(path: Path, force: bool) -> None:
    """Raise a DataError when the file exists and ``force`` is not set."""
    if path.exists() and not force:
        raise DataError(f"{path}: exists already; pass --force to overwrite it")


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_DRAFT)
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
    try:
        with replacing(path) as draft:
            draft.write_bytes(text)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


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
