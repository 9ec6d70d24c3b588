"""Starting from a checkpoint: the same family, possibly other classes or another number of queries."""

from __future__ import annotations

import sys
from pathlib import Path

from detrkit.errors import CheckpointError
from detrkit.models import Detector
from detrkit.weights import load_official
from detrkit.weights.find import find_checkpoint

__all__ = ["start_from"]


def start_from(model: Detector, source: str | Path) -> None:
    """Fill ``model`` from a checkpoint, ours or official: a file, a run folder, a URL, or a name that is known here.

    Where the file has another number of classes the class heads start new; of another number of queries as many as both
    have are taken over. Lines on stderr say so.

    Raises:
        CheckpointError: no such checkpoint, another family, or shapes that differ in more than that.
    """
    try:
        path = find_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (model.init)") from error
    for remark in load_official(model, path, new_head=True).remarks():
        print(f"{path}: {remark}", file=sys.stderr)
