"""Pull a published checkpoint by name: download it (or take a local file), check it, convert it to our format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detrkit.errors import CheckpointError
from detrkit.weights.official.pth import open_official
from detrkit.weights.ours import read_info, save
from detrkit.weights.published.addresses import is_url
from detrkit.weights.published.catalogue import OfficialFile, find_official
from detrkit.weights.published.download import Progress, cached, check_file, download, fetch, pulled_path

__all__ = ["Pulled", "pull"]


@dataclass(frozen=True)
class Pulled:
    """A pulled checkpoint: its catalogue entry, our file, and the official file (None if it was pulled before)."""

    item: OfficialFile
    path: Path
    source: Path | None


def pull(
    name: str, *, source: str | Path | None = None, to: str | Path | None = None, progress: Progress | None = None
) -> Pulled:
    """Download a published checkpoint and convert it into one of ours.

    Args:
        name: see :data:`detrkit.weights.CATALOGUE`.
        source: a local file or another URL, instead of the published address; required for files that have to be
            downloaded by hand.
        to: path of the converted file, instead of the cache.
        progress: called with (bytes received, total bytes or None).

    Raises:
        CheckpointError: no such name, no address, a failed download, a file that is not the published one, or weights
            that do not fit the model; the message says what to do.
    """
    item = find_official(name)
    target = pulled_path(name) if to is None else Path(to)
    if source is None and _is_pulled(target, item.model):
        return Pulled(item, target, None)
    file = _obtain(item, source, progress)
    digest = check_file(file, sha256=item.sha256, size=item.size)
    opened = open_official(file, name=item.model, options=item.options)
    model, model.categories = opened.model, opened.categories
    extra = {"official": {"name": name, "source": item.source, "file": file.name, "sha256": digest, "AP": item.ap}}
    return Pulled(item, save(model, target, extra=extra), file)


def _is_pulled(path: Path, model: str) -> bool:
    """Whether the converted file exists and is readable; an unreadable one is written again."""
    try:
        return path.is_file() and read_info(path).name == model
    except CheckpointError:
        return False


def _obtain(item: OfficialFile, source: str | Path | None, progress: Progress | None) -> Path:
    """The published file on the local disk."""
    if source is None and item.address is None:
        raise CheckpointError(f"'{item.name}' has no address that a program can use: {item.how_to_get}")
    if source is None:
        return fetch(str(item.address), progress)
    if is_url(str(source)):
        return download(str(source), cached(str(source)), sha256=item.sha256, size=item.size, progress=progress)
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (--from)")
    return path
