"""Resumable downloads; a file appears under its name only after its size and hash have been checked.

Received bytes are kept in ``FILE.part`` beside the target, with a note of the server's validator and total size. A
lock lets only one process download a file; other processes wait and find it complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from detrkit.errors import CheckpointError
from detrkit.files import cache_dir, safe_name
from detrkit.weights.published.addresses import name_in
from detrkit.weights.published.catalogue import official_file_at
from detrkit.weights.published.web import blocks, open_url, reason

__all__ = [
    "Progress",
    "cache_dir",
    "cached",
    "check_file",
    "download",
    "fetch",
    "fetch_again",
    "file_name",
    "is_begun",
    "pulled_path",
]

Progress = Callable[[int, int | None], None]
"""Called with (bytes received, total bytes or None)."""

_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 5  # connections in a row that were interrupted
_PAUSE = 1.0  # seconds between them
_MOST_BYTES = 16 << 30  # of a file whose size nobody has said


def pulled_path(name: str) -> Path:
    """Path of the converted published checkpoint with this name, whether or not it exists."""
    return cache_dir() / "checkpoints" / f"{name}.safetensors"


def file_name(url: str) -> str:
    """The file name in a URL."""
    return safe_name(name_in(url), longest=200) or "checkpoint"


def cached(url: str) -> Path:
    """Path in the cache of the file behind a URL."""
    return cache_dir() / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{file_name(url)}"


def fetch_again(path: Path) -> str:
    """Advice for a bad file in the cache, to be appended to an error message; empty for other files."""
    if not path.resolve().is_relative_to(cache_dir().resolve()):
        return ""
    return "; it was downloaded into the cache: delete it and repeat the command"


def fetch(url: str, progress: Progress | None = None) -> Path:
    """Download the file behind a URL into the cache, once; files of the catalogue are checked. See :func:`download`."""
    known = official_file_at(url)
    sha256, size = (None, None) if known is None else (known.sha256, known.size)
    return download(url, cached(url), sha256=sha256, size=size, progress=progress)


def is_begun(url: str) -> bool:
    """Whether the cache has the file behind a URL, or a part of it."""
    return cached(url).is_file() or _part_of(cached(url)).size > 0


def download(
    url: str, target: Path, *, sha256: str | None = None, size: int | None = None, progress: Progress | None = None
) -> Path:
    """Download to ``target`` unless it exists already with the right size and hash; returns ``target``.

    Args:
        url: http or https.
        target: path of the file; it appears complete and checked, or not at all.
        sha256: SHA-256 of the file in hexadecimal, or its first digits.
        size: size in bytes.
        progress: called during the download.

    Raises:
        CheckpointError: the download failed, or the file has another size or hash. Received bytes are kept for the next
            attempt, except where the hash is wrong.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, url):
            if not _is_good(target, sha256=sha256, size=size):
                part = _part_of(target)
                _complete(url, part, sha256=sha256, size=size, progress=progress)
                os.replace(part.path, target)
                part.clear()
    except OSError as error:
        raise CheckpointError(f"{url}: cannot be kept as {target}: {reason(error)}") from error
    return target


def check_file(path: Path, *, sha256: str | None = None, size: int | None = None, name: str | None = None) -> str:
    """Check size and SHA-256 (or its first digits) of a file; returns the SHA-256.

    Raises:
        CheckpointError: the size or the hash differs; the message shows both values.
    """
    shown, actual = name or str(path), path.stat().st_size
    if size is not None and actual != size:
        raise CheckpointError(f"{shown}: {actual} bytes, but the published file has {size}: damaged or another file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and not digest.startswith(sha256.lower()):
        raise CheckpointError(
            f"{shown}: its SHA-256 begins {digest[: max(8, len(sha256))]}, that of the published file {sha256}: "
            "damaged or another file"
        )
    return digest


def _is_good(path: Path, *, sha256: str | None, size: int | None) -> bool:
    """Whether the file exists and has the known size and hash."""
    if not path.is_file():
        return False
    if sha256 is None and size is None:
        return True
    try:
        check_file(path, sha256=sha256, size=size)
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def _locked(target: Path, url: str) -> Iterator[None]:
    """Hold the lock of a target; warn if another process holds it. The lock ends with the process."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn(f"{url}: another process is downloading it; waiting for that", stacklevel=1)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Part:
    """The bytes received so far, and a note with the server's validator of the file and its total size."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def write_note(self, validator: str | None, total: int | None) -> None:
        self._note.write_text(json.dumps({"validator": validator, "total": total}), encoding="utf-8")

    def read_note(self) -> tuple[str | None, int | None]:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return note["validator"], note["total"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, None


def _part_of(target: Path) -> _Part:
    return _Part(target.with_name(f"{target.name}.part"))


def _complete(url: str, part: _Part, *, sha256: str | None, size: int | None, progress: Progress | None) -> None:
    """Receive the missing bytes and check the complete file."""
    resumed = part.size > 0
    _receive(url, part, size, progress)
    try:
        check_file(part.path, sha256=sha256, size=size, name=url)
    except CheckpointError as error:
        part.clear()
        if not resumed:
            raise CheckpointError(f"{error}; it was removed") from error
        _complete(url, part, sha256=sha256, size=size, progress=progress)  # the old part may belong to another file


def _receive(url: str, part: _Part, size: int | None, progress: Progress | None) -> None:
    """Connect until the file is complete; give up after too many connections, or one that brings no bytes."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = part.size
        try:
            broken = _transfer(url, part, size, progress)
        except urllib.error.HTTPError as error:
            raise CheckpointError(f"{url}: cannot be downloaded: HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            broken = f"cannot be downloaded: {reason(error)}"
        if broken is None:
            return
        if attempt == _ATTEMPTS or part.size <= before:
            kept = f" ({part.size} bytes are kept: the same command resumes the download)" if part.size else ""
            raise CheckpointError(f"{url}: {broken}{kept}")
        time.sleep(_PAUSE)


def _transfer(url: str, part: _Part, size: int | None, progress: Progress | None) -> str | None:
    """One connection. Returns the reason for an interruption, None when the file is complete."""
    validator, known = part.read_note()
    if part.size and validator is None and known is None:
        part.clear()  # without a note, it is not known which file these bytes belong to
    have = part.size
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        response = open_url(url, timeout=_TIMEOUT, headers=headers)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if have == known:
            return None
        part.clear()
        return _transfer(url, part, size, progress)
    with response:
        if have:
            start, total = _content_range(response)
            if response.status != 206 or start != have or (known is not None and total != known):
                part.clear()  # the server sends the whole file, or the file on the server has changed
                if response.status == 206:
                    return _transfer(url, part, size, progress)
                have = 0
        if not have:
            length = response.headers.get("Content-Length")
            same = validator is not None and validator == _validator(response)
            total = int(length) if length else known if same else None
            if "text/html" in response.headers.get("Content-Type", ""):
                raise CheckpointError(f"{url}: a web page, not a file; download it by hand and give its path")
        total = total or size  # without a length from the server, an interruption shows only by the known size
        _check_room(url, part, have, total, size)
        part.write_note(_validator(response), total)
        with part.path.open("ab") as file:
            for block in _bounded(url, part, response, most=(total or _MOST_BYTES) - have):
                file.write(block)
                if progress is not None:
                    progress(file.tell(), total)
    if total is not None and part.size < total:
        return f"the download broke off after {part.size} of {total} bytes"
    return None


def _bounded(url: str, part: _Part, response: http.client.HTTPResponse, *, most: int) -> Iterator[bytes]:
    """The blocks that are missing. A server that sends more than it should has another file: nothing of it is kept."""
    try:
        yield from blocks(response, most)
    except ValueError as error:
        part.clear()
        raise CheckpointError(f"{url}: {error}, more than the file has: damaged or another file") from error


def _check_room(url: str, part: _Part, have: int, total: int | None, size: int | None) -> None:
    """Check, before receiving, that the size is the published one and that the disk has room."""
    if size is not None and total is not None and total != size:
        raise CheckpointError(f"{url}: the server has {total} bytes, but the published file has {size}")
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - have > free:
        raise CheckpointError(
            f"{url}: {(total - have) / 1e6:.1f} MB to download, but {part.path.parent} has {free / 1e6:.1f} MB free; "
            "make room, or choose another folder with DETRKIT_CACHE"
        )


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """(first byte, total size) of a partial response."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] != "*" else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """The identifier of this version of the file; weak ETags are not used, as they do not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")
