"""Find a weight file by path, run folder, URL, repository of the hub, or name (of embedded or published weights)."""

from __future__ import annotations

from pathlib import Path

from detrkit.errors import CheckpointError
from detrkit.weights.published.addresses import is_url
from detrkit.weights.published.download import fetch, pulled_path
from detrkit.weights.published.first_use import fetch_published, not_here, published_named
from detrkit.weights.published.hub_files import HUB, hub_checkpoint

__all__ = ["ASSETS", "embedded_names", "find_checkpoint"]

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def embedded_names() -> list[str]:
    """Names of the models whose trained weights come with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def find_checkpoint(path_or_name: str | Path, *, fetch_names: bool = False) -> Path:
    """Return the path of a weight file.

    Args:
        path_or_name: a file, a run folder (its best checkpoint), a URL or ``hf://OWNER/NAME[@REVISION]`` (downloaded
            into the cache), the name of embedded weights, of a published checkpoint, or of a model that has one.
        fetch_names: download a published checkpoint that is not in the cache.

    Raises:
        CheckpointError: no such file or name; the message lists the existing names or the files that were tried.
    """
    text = str(path_or_name)
    if not text.strip():
        raise CheckpointError("an empty text names no checkpoint (is a variable not set?)")
    if is_url(text):
        return fetch(text)
    if text.startswith(HUB):
        return hub_checkpoint(text.removeprefix(HUB))
    path = Path(path_or_name)
    if path.is_dir():
        tried = [path / "best" / "model.safetensors", path / "model.safetensors", path / "last" / "model.safetensors"]
        found = next((candidate for candidate in tried if candidate.is_file()), None)
        if found is None:
            names = ", ".join(str(candidate.relative_to(path)) for candidate in tried)
            raise CheckpointError(f"{path}: a folder without a checkpoint (looked for {names})")
        return found
    if path.is_file():
        return path
    embedded = ASSETS / f"{text}.safetensors"
    if path.name == text and embedded.is_file():
        return embedded
    published = published_named(text)
    if published is not None:
        if not fetch_names and not pulled_path(published.name).is_file():
            raise not_here(published)
        return fetch_published(published)
    if path.suffix or path.name != text:
        raise CheckpointError(f"{path}: no such checkpoint file")
    names = ", ".join(embedded_names()) or "none"
    raise CheckpointError(
        f"there are no trained weights called '{text}' in the package (it has: {names}), and no file of that name; "
        "give one of these names, one of 'detrkit weights list', or the path of a checkpoint"
    )
