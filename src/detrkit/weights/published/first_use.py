"""Published weights by the name of a file or of a model, fetched when the name is first used.

Only :class:`detrkit.Predictor`, ``detrkit predict`` and ``detrkit train --data … --model NAME`` fetch.
"""

from __future__ import annotations

from pathlib import Path

from detrkit.bars import progress_bar
from detrkit.errors import CheckpointError
from detrkit.offline import is_offline
from detrkit.terminal import say
from detrkit.weights.published.catalogue import CATALOGUE, OfficialFile
from detrkit.weights.published.download import cache_dir, pulled_path

__all__ = ["fetch_published", "not_here", "published_named"]


def published_named(name: str) -> OfficialFile | None:
    """The published file that a name means; None where it means none.

    The file of that name, else the one of the highest AP on COCO of the model of that name: of those that have an
    address or were pulled, else of those to be downloaded by hand.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    files = sorted(
        (item for item in CATALOGUE.values() if item.model == name),
        key=lambda item: (item.data != "COCO", -(item.ap or 0)),
    )
    at_hand = (item for item in files if item.address is not None or pulled_path(item.name).is_file())
    return next(at_hand, files[0] if files else None)


def not_here(item: OfficialFile) -> CheckpointError:
    """The error where published weights are needed and were not pulled."""
    return CheckpointError(f"the published weights '{item.name}' are not here yet: {item.how_to_get}")


def fetch_published(item: OfficialFile) -> Path:
    """The converted file of published weights; the first time it is downloaded, and size, licence and source are said.

    Raises:
        CheckpointError: the network may not be used, the file has to be downloaded by hand, or the download failed.
    """
    target = pulled_path(item.name)
    if target.is_file():
        return target
    if is_offline():
        raise CheckpointError(f"{not_here(item)} where there is a network, which --offline or a variable forbids here")
    if item.address is None:
        raise not_here(item)
    from detrkit.weights.published.pull import pull

    what = f"{item.name}: published weights ({item.model}, {item.data}, licence {item.licence}) of {item.source}"
    checked = f"SHA-256 {item.sha256}…" if item.sha256 else "no hash is published"
    where = f"from {item.address} into {cache_dir() / 'checkpoints'}; {checked}"
    said = item.mib is not None
    if said:
        say(f"{what}: fetching {item.mib} MiB {where}")
    with progress_bar(f"downloading {item.name}", in_bytes=True) as bar:

        def progress(done: int, total: int | None) -> None:
            nonlocal said
            if not said:
                said = True
                size = "a file of unknown size" if total is None else f"{total / 2**20:.0f} MiB"
                say(f"{what}: fetching {size} {where}")
            bar.update(done, total)

        return pull(item.name, progress=progress).path
