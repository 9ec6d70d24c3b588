"""Models to the hub and from it."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import torch

from detrkit.errors import CheckpointError, DataError
from detrkit.files import scratch_folder, write_bytes
from detrkit.hub.model_card import CardFacts, model_card
from detrkit.models import Detector
from detrkit.report.page import RunRecord
from detrkit.report.run_folder import open_run, with_kept_detections
from detrkit.weights import load, read_info
from detrkit.weights.find import find_checkpoint
from detrkit.weights.ours import copy_with_recipe, is_ours
from detrkit.weights.published.hub_files import HUB, WEIGHTS_FILE, hub_checkpoint, upload_to_hub

__all__ = ["from_pretrained", "push_to_hub", "repository_files"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def from_pretrained(
    repository: str, *, revision: str | None = None, device: torch.device | str = "cpu", token: str | None = None
) -> Detector:
    """Load a model from a repository of the hub, in evaluation mode. Nothing is unpickled, no code is run.

    Args:
        repository: ``OWNER/NAME``, or a local run folder or checkpoint.
        revision: branch, tag or commit; None: the main branch.
        device: where to put the model.
        token: access token; None: the one that ``hf auth login`` or ``HF_TOKEN`` has left.

    Raises:
        CheckpointError: no such repository, no access, no connection, or no checkpoint of ours in it.
    """
    if Path(repository).exists():
        return load(find_checkpoint(repository), device=device)
    name = checked_repository(repository)
    return load(hub_checkpoint(name, revision=revision, token=token), device=device)


def push_to_hub(
    checkpoint: str | Path,
    repository: str,
    *,
    licence: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Model of detrkit",
    token: str | None = None,
) -> str:
    """Upload a checkpoint with a card written from its run; returns the URL of the commit.

    Folders are cut from the paths of the recipe inside the uploaded file: nothing tells where the data lay.

    Args:
        checkpoint: a run folder, or one of our checkpoints; of one inside a run folder the card shows the run.
        repository: ``OWNER/NAME``; made where there is none.
        licence: of the weights, for example ``apache-2.0``; None: the card says that none was chosen.
        private: whether a new repository is private.
        revision: branch; None: the main branch.
        message: of the commit.
        token: access token; None: the one that ``hf auth login`` or ``HF_TOKEN`` has left.

    Raises:
        CheckpointError: no such checkpoint, not one of ours, damaged, no access or no connection.
    """
    name = checked_repository(repository)
    with scratch_folder() as folder:
        files = {path.name: path for path in repository_files(checkpoint, name, folder, licence=licence)}
        return upload_to_hub(name, files, message=message, private=private, revision=revision, token=token)


def repository_files(
    checkpoint: str | Path, repository: str, folder: Path, *, licence: str | None = None
) -> tuple[Path, Path]:
    """Write what :func:`push_to_hub` uploads, ``model.safetensors`` and ``README.md``, into a folder.

    Raises:
        CheckpointError: see :func:`push_to_hub`.
    """
    repository = checked_repository(repository)
    path = find_checkpoint(checkpoint)
    if not is_ours(path):
        raise CheckpointError(f"{path}: not a checkpoint of ours; 'detrkit weights convert' makes one of it")
    info = read_info(path)
    weights, card = folder / WEIGHTS_FILE, folder / "README.md"
    copy_with_recipe(path, weights, _without_folders(info.recipe))
    parameters = sum(parameter.numel() for parameter in load(weights).parameters())
    facts = CardFacts(
        repository=repository, info=read_info(weights), parameters=parameters, run=_run_of(path), licence=licence
    )
    write_bytes(card, model_card(facts).encode())
    return weights, card


def checked_repository(text: str) -> str:
    """The name ``OWNER/NAME`` of a repository.

    Raises:
        CheckpointError: it is none.
    """
    name = text.removeprefix(HUB)
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"'{text}' is no repository of the hub: give OWNER/NAME, for example me/cells")
    return name


def _run_of(path: Path) -> RunRecord | None:
    """The run that a checkpoint is the best of, with its evaluation where the data are still there."""
    if path.parent.name != "best" or not (path.parents[1] / "recipe.yaml").is_file():
        return None
    run = open_run(path.parents[1])
    try:
        return with_kept_detections(run) or run
    except DataError:  # the data are somewhere else; the log has the numbers, without intervals
        return run


def _without_folders(value: Any) -> Any:
    """Values of a recipe with the last part of absolute paths."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value
