"""A published checkpoint by name: downloaded (or taken from where you put it), checked, kept as one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detrkit.errors import CheckpointError
from detrkit.weights.official.pth import open_official
from detrkit.weights.ours import read_info, save
from detrkit.weights.published.catalogue import OfficialFile, find_official
from detrkit.weights.published.download import Progress, cache_dir, cached, check_file, download, fetch, is_url

__all__ = ["Pulled", "pull", "pulled_path"]


@dataclass(frozen=True)
class Pulled:
    """A published checkpoint that is here: what it is, our file, the file it came from (None: it was here already)."""

    item: OfficialFile
    path: Path
    source: Path | None


def pulled_path(name: str) -> Path:
    """Where the converted checkpoint of that name is, or would be."""
    return cache_dir() / "checkpoints" / f"{name}.safetensors"


def pull(
    name: str, *, source: str | Path | None = None, to: str | Path | None = None, progress: Progress | None = None
) -> Pulled:
    """Makes a published checkpoint available as one of ours.

    Args:
        name: see :data:`detrkit.weights.CATALOGUE`.
        source: the file (or another address of it) instead of the published address: the only way for files that have
            to be downloaded by hand.
        to: where to write ours, instead of the cache.
        progress: called with (bytes so far, bytes in all or None) of the download.

    Raises:
        CheckpointError: no such name, no address, a download that fails, another file than the published one, or
            weights that do not fit the model; the message says what helps.
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
    """Whether a good file is there; what cannot be read is made anew."""
    try:
        return path.is_file() and read_info(path).name == model
    except CheckpointError:
        return False


def _obtain(item: OfficialFile, source: str | Path | None, progress: Progress | None) -> Path:
    """The published file on this machine."""
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
