"""Finding weights: a file, a run folder, a URL, or the name of weights that come with the package."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from detrkit.errors import CheckpointError, DataError

__all__ = ["ASSETS", "DEFAULT_MODEL", "cache_dir", "embedded_names", "fetch", "find_checkpoint", "is_url"]

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEFAULT_MODEL = "dela_detr_lite0"


def embedded_names() -> list[str]:
    """Names of the models whose trained weights come with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def find_checkpoint(path_or_name: str | Path) -> Path:
    """The weight file that is meant: a file, a run folder (its best checkpoint), a URL (kept in :func:`cache_dir`), or
    the name of embedded weights.

    Raises:
        CheckpointError: nothing there; the message lists the names that exist or the files that were looked for.
    """
    text = str(path_or_name)
    if is_url(text):
        return fetch(text)
    path = Path(path_or_name)
    if path.is_dir():
        tried = [path / "best" / "model.safetensors", path / "model.safetensors", path / "last" / "model.safetensors"]
        found = next((candidate for candidate in tried if candidate.is_file()), None)
        if found is None:
            looked = ", ".join(str(candidate.relative_to(path)) for candidate in tried)
            raise CheckpointError(f"{path}: a folder without a checkpoint (looked for {looked})")
        return found
    if path.is_file():
        return path
    embedded = ASSETS / f"{text}.safetensors"
    if path.name == text and embedded.is_file():
        return embedded
    if path.suffix or path.name != text:
        raise CheckpointError(f"{path}: no such checkpoint file")
    names = ", ".join(embedded_names()) or "none"
    raise CheckpointError(
        f"there are no trained weights called '{text}' in the package (it has: {names}), and no file of that name; "
        "give one of these names or the path of a checkpoint"
    )


def is_url(text: str) -> bool:
    """Whether this is a web address rather than a path."""
    return text.startswith(("http://", "https://"))


def cache_dir() -> Path:
    """Where downloads are kept: DETRKIT_CACHE, else detrkit in the user's cache folder."""
    if "DETRKIT_CACHE" in os.environ:
        return Path(os.environ["DETRKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detrkit"


def fetch(url: str, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """The file behind a URL, downloaded once; ``progress(bytes so far, bytes in all or None)`` is called on the way.

    Raises:
        CheckpointError: the download failed; nothing half-finished stays behind.
    """
    name = PurePosixPath(urlsplit(url).path).name or "checkpoint"
    target = cache_dir() / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.is_file():
        return target
    part: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file,
        ):
            part = file.name
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            while block := response.read(1 << 20):
                file.write(block)
                if progress is not None:
                    progress(file.tell(), expected)
            received = file.tell()
        if expected is not None and received != expected:
            raise CheckpointError(f"{url}: the download broke off after {received} of {expected} bytes; try again")
        os.replace(part, target)
        return target
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
        hint = " (the disk is full)" if free < 1 << 20 and target.parent.exists() else ""
        raise CheckpointError(f"{url}: cannot be downloaded: {reason}{hint}") from error
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)


def fetch_image(url: str) -> bytes:
    """The bytes of an image on the web.

    Raises:
        DataError: it cannot be fetched.
    """
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content: bytes = response.read()
            return content
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataError(f"{url}: the image cannot be fetched: {getattr(error, 'reason', None) or error}") from error
