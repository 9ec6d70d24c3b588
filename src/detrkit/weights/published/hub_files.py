"""Files of repositories on the Hugging Face hub, or on another server that speaks its API (``HF_ENDPOINT``)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detrkit.errors import CheckpointError, first_line
from detrkit.files import cache_dir
from detrkit.offline import is_offline

__all__ = ["HUB", "WEIGHTS_FILE", "hub_checkpoint", "upload_to_hub"]

HUB = "hf://"
"""What the address of a repository begins with."""

WEIGHTS_FILE = "model.safetensors"
"""The checkpoint in a repository."""


def hub_checkpoint(repository: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download the checkpoint of a repository into ``hub`` of the cache folder, once for each version.

    Offline, the version that was downloaded last is taken.

    Args:
        repository: ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
        revision: branch, tag or commit; None: the main branch.
        token: access token; None: the one that ``hf auth login`` or ``HF_TOKEN`` has left.

    Raises:
        CheckpointError: no such repository, revision or file, no access, or no connection.
    """
    name, _, given = repository.partition("@")
    address = f"{HUB}{repository}"
    with _telling(address):
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                name,
                WEIGHTS_FILE,
                revision=revision or given or None,
                cache_dir=cache_dir() / "hub",
                endpoint=_endpoint(),
                token=token,
                library_name="detrkit",
                local_files_only=is_offline(),
            )
        )


def upload_to_hub(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Create a repository where there is none, and put files into it with one commit; returns the URL of the commit.

    Args:
        repository: ``OWNER/NAME``.
        files: name in the repository -> file or content.
        message: of the commit.
        private: whether a new repository is private.
        revision: branch; None: the main branch.
        token: access token; None: the one that ``hf auth login`` or ``HF_TOKEN`` has left.

    Raises:
        CheckpointError: no access, no connection, or the server refuses.
    """
    address = f"{HUB}{repository}"
    if is_offline():
        raise CheckpointError(f"{address}: nothing is uploaded, --offline or a variable forbids the network")
    with _telling(address):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(endpoint=_endpoint(), token=token, library_name="detrkit")
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(api.create_commit(repository, operations, commit_message=message, revision=revision).commit_url)


def _endpoint() -> str | None:
    """The server. Read at every call: huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _telling(address: str) -> Iterator[None]:
    """Turn errors of the hub into one line."""
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{address}: needs huggingface-hub: pip install huggingface-hub") from error
    except Exception as error:  # many types of the hub, of its HTTP library and of the disk
        raise CheckpointError(f"{address}: {_reason(error)}") from error


# Type of an error of the hub -> what to say; the first that fits.
_REASONS = (
    ("GatedRepoError", "the owner has to give you access: ask on its page, then log in with 'hf auth login'"),
    ("RepositoryNotFoundError", "no such repository, or it is private and you are not logged in ('hf auth login')"),
    ("RevisionNotFoundError", "the repository has no such revision (branch, tag or commit)"),
    ("RemoteEntryNotFoundError", f"the repository has no {WEIGHTS_FILE}: it was not written by 'weights push'"),
    ("LocalTokenNotFoundError", "log in first: 'hf auth login', or set HF_TOKEN"),
)


def _reason(error: Exception) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for kind, words in _REASONS:
        if kind in kinds:
            return words
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "your token may not do this; log in with one that can write ('hf auth login')"
    if "LocalEntryNotFoundError" in kinds:
        if is_offline():
            return "not in the cache, and --offline or a variable forbids the network"
        return "the server cannot be reached, and the file is not in the cache"
    return first_line(error)
