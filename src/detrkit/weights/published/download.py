"""Downloads that go on where they broke off, and are checked before anybody sees the file.

The bytes so far are kept in ``FILE.part`` beside the target, with a note of what the server said they are part of. A
lock lets one process at a time work on a file; the others find it finished.
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
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from detrkit.errors import CheckpointError
from detrkit.weights.published.catalogue import official_file_at

__all__ = ["Progress", "cache_dir", "cached", "check_file", "download", "fetch", "fetch_again", "file_name", "is_url"]

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""

_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 5  # connections in a row that broke off
_PAUSE = 1.0  # seconds between them
_BLOCK = 1 << 20


def is_url(text: str) -> bool:
    """Whether this is a web address rather than a path."""
    return text.startswith(("http://", "https://"))


def cache_dir() -> Path:
    """Where downloads are kept: DETRKIT_CACHE, else detrkit in the user's cache folder."""
    if "DETRKIT_CACHE" in os.environ:
        return Path(os.environ["DETRKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "detrkit"


def file_name(url: str) -> str:
    """What the file behind a URL is called."""
    return unquote(PurePosixPath(urlsplit(url).path).name).replace("/", "_") or "checkpoint"


def cached(url: str) -> Path:
    """Where the file behind a URL is kept."""
    return cache_dir() / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{file_name(url)}"


def fetch_again(path: Path) -> str:
    """What helps against a bad file, to end a message that names it; empty for files of the user's own."""
    if not path.resolve().is_relative_to(cache_dir().resolve()):
        return ""
    return "; it was downloaded into the cache: delete it and repeat the command"


def fetch(url: str, progress: Progress | None = None) -> Path:
    """The file behind a URL, downloaded once; files of the catalogue are checked. Arguments as :func:`download`."""
    known = official_file_at(url)
    sha256, size = (None, None) if known is None else (known.sha256, known.size)
    return download(url, cached(url), sha256=sha256, size=size, progress=progress)


def download(
    url: str, target: Path, *, sha256: str | None = None, size: int | None = None, progress: Progress | None = None
) -> Path:
    """Downloads to ``target`` unless that is there already, with the right size and hash; returns it.

    Args:
        url: http or https.
        target: the file; it appears whole and checked, or not at all.
        sha256: how the file's SHA-256 begins, in hexadecimal.
        size: its size in bytes.
        progress: called on the way.

    Raises:
        CheckpointError: it cannot be had, or is not the file that is meant. What was received is kept for the next
            try, except where the hash is wrong.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, url):
            if not _is_good(target, sha256=sha256, size=size):
                part = _Part(target.with_name(f"{target.name}.part"))
                _complete(url, part, sha256=sha256, size=size, progress=progress)
                os.replace(part.path, target)
                part.clear()
    except OSError as error:
        raise CheckpointError(f"{url}: cannot be kept as {target}: {_reason(error)}") from error
    return target


def check_file(path: Path, *, sha256: str | None = None, size: int | None = None, name: str | None = None) -> str:
    """The SHA-256 of a file, after its size and hash (or how it begins) have been found right.

    Raises:
        CheckpointError: another size or another hash; the message shows both.
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
    """Whether the file is there and, as far as anything is known of it, the one that is meant."""
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
def _alone(target: Path, url: str) -> Iterator[None]:
    """Holds the lock of a target; says so where it has to wait. The lock goes with the process, however that ends."""
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
    """The bytes received so far, and the note: the server's validator of the file and its whole size."""

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


def _complete(url: str, part: _Part, *, sha256: str | None, size: int | None, progress: Progress | None) -> None:
    """Receives what is lacking and checks the whole."""
    resumed = part.size > 0
    _receive(url, part, size, progress)
    try:
        check_file(part.path, sha256=sha256, size=size, name=url)
    except CheckpointError as error:
        part.clear()
        if not resumed:
            raise CheckpointError(f"{error}; it was removed") from error
        _complete(url, part, sha256=sha256, size=size, progress=progress)  # perhaps the old part was of another file


def _receive(url: str, part: _Part, size: int | None, progress: Progress | None) -> None:
    """Connects until the file is whole; gives up where a connection brings nothing, or after too many of them."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = part.size
        try:
            broken = _transfer(url, part, size, progress)
        except urllib.error.HTTPError as error:
            raise CheckpointError(f"{url}: cannot be downloaded: HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            broken = f"cannot be downloaded: {_reason(error)}"
        if broken is None:
            return
        if attempt == _ATTEMPTS or part.size <= before:
            kept = f" ({part.size} bytes are kept: the same command goes on from there)" if part.size else ""
            raise CheckpointError(f"{url}: {broken}{kept}")
        time.sleep(_PAUSE)


def _transfer(url: str, part: _Part, size: int | None, progress: Progress | None) -> str | None:
    """One connection. Returns what broke it off, None when the file is whole."""
    validator, known = part.read_note()
    if part.size and validator is None and known is None:
        part.clear()  # nothing would tell whether the rest belongs to these bytes
    have = part.size
    headers = {"User-Agent": "detrkit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
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
                part.clear()  # the server sends all of it, or the file there is another one by now
                if response.status == 206:
                    return _transfer(url, part, size, progress)
                have = 0
        if not have:
            length = response.headers.get("Content-Length")
            same = validator is not None and validator == _validator(response)
            total = int(length) if length else known if same else None
            if "text/html" in response.headers.get("Content-Type", ""):
                raise CheckpointError(f"{url}: a web page, not a file; download it by hand and give its path")
        total = total or size  # a server that does not say how much there is cuts a transfer without a sign
        _check_room(url, part, have, total, size)
        part.write_note(_validator(response), total)
        with part.path.open("ab") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                if progress is not None:
                    progress(file.tell(), total)
    if total is not None and part.size < total:
        return f"the download broke off after {part.size} of {total} bytes"
    return None


def _check_room(url: str, part: _Part, have: int, total: int | None, size: int | None) -> None:
    """Before the bytes: whether it can be the file that is meant, and whether the disk has room for it."""
    if size is not None and total is not None and total != size:
        raise CheckpointError(f"{url}: the server has {total} bytes, but the published file has {size}")
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - have > free:
        raise CheckpointError(
            f"{url}: {(total - have) / 1e6:.1f} MB to download, but {part.path.parent} has {free / 1e6:.1f} MB free; "
            "make room, or choose another folder with DETRKIT_CACHE"
        )


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) of a partial answer."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] != "*" else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What identifies this version of the file; weak ETags do not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(getattr(reason, "strerror", None) or reason)
