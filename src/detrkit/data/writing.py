"""Writing files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from detrkit.errors import DataError, RunError

__all__ = ["refuse_existing", "replacing", "write_json"]


def refuse_existing(path: Path, force: bool) -> None:
    """Raise a DataError when the file exists and ``force`` is not set."""
    if path.exists() and not force:
        raise DataError(f"{path}: exists already; pass --force to overwrite it")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its place in one step when the block ends well; else nothing changes.

    Raises:
        RunError: it cannot be written (disk full, no permission).
    """
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            draft = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)  # temporary files are private to their owner
        os.replace(draft, path)
        draft = None
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)


def write_json(path: Path, content: Mapping[str, object], *, force: bool = False) -> None:
    """Write one JSON object, whole or not at all.

    Raises:
        DataError: the file exists and ``force`` is not set.
        RunError: it cannot be written.
    """
    refuse_existing(path, force)
    with replacing(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())
