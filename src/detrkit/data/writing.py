"""Writing files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.errors import DataError, RunError

__all__ = ["write_json"]


def write_json(path: Path, content: Mapping[str, Any], *, force: bool = False) -> None:
    """Write JSON beside its place and move it there in one step.

    Raises:
        DataError: the file exists and ``force`` is not set.
        RunError: it cannot be written (disk full, no permission); nothing is left behind.
    """
    if path.exists() and not force:
        raise DataError(f"{path}: exists already; pass --force to overwrite it")
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            draft = file.name
            json.dump(content, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)  # temporary files are private to their owner
        os.replace(draft, path)
    except OSError as error:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
