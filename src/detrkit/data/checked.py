"""A note of the data sets that ``detrkit data check`` has looked at, so that a training can offer it for the others."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from detrkit.files import cache_dir

__all__ = ["note_checked", "was_checked"]


def note_checked(root: str | Path) -> None:
    """Note that a data folder was checked now; where the cache cannot be written nothing happens."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note(root)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(os.fspath(Path(root).resolve()), encoding="utf-8", errors="surrogateescape")


def was_checked(root: str | Path) -> bool:
    """Whether a data folder was ever checked on this machine."""
    try:
        return _note(root).is_file()
    except RuntimeError:  # nobody's home folder is known
        return False


def _note(root: str | Path) -> Path:
    """The file that stands for a data folder; for a file in it (``data.yaml``), for its folder."""
    path = Path(root).resolve()
    folder = path.parent if path.is_file() else path
    return cache_dir() / "checked" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
