"""The web, with bounds: only http and https, so many bytes, so much time."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from detrkit.errors import DataError
from detrkit.offline import no_addresses
from detrkit.weights.published.addresses import is_url

__all__ = ["BLOCK", "blocks", "fetch_image", "open_url", "reason"]

BLOCK = 1 << 20
"""Bytes that are read at once."""

_SLOWEST = 1000  # bytes per second, on average
_PATIENCE = 60.0  # seconds before that is asked for

_IMAGE_BYTES = 512 << 20  # of one image
_IMAGE_SECONDS = 120.0  # for one image
_IMAGE_SILENCE = 30.0  # without a byte


class _OnlyWeb(urllib.request.HTTPRedirectHandler):
    """Refuses redirections away from http and https, which urllib allows to ftp."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not is_url(newurl):
            raise urllib.error.URLError(f"the server sends on to {newurl}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, *, timeout: float, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """Open a web address; spaces and letters outside ASCII in it are encoded.

    Raises:
        OSError, http.client.HTTPException, ValueError: the address cannot be opened.
    """
    parts = urlsplit(url.strip())
    if not is_url(url.strip()):
        raise ValueError("only http and https are fetched")
    if no_addresses():
        raise ValueError("--offline or DETRKIT_OFFLINE forbids it")
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    safe = "/%:=&?~+!$,;'@()*[]#"
    encoded = urlunsplit((parts.scheme.lower(), host, quote(parts.path, safe), quote(parts.query, safe), ""))
    request = urllib.request.Request(encoded, headers={"User-Agent": "detrkit", **(headers or {})})
    response: http.client.HTTPResponse = urllib.request.build_opener(_OnlyWeb).open(request, timeout=timeout)
    return response


def blocks(response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    """The content in blocks.

    Raises:
        ValueError: there is more than ``most`` bytes.
        TimeoutError: after a minute it arrives at less than a kilobyte per second.
    """
    start, received = time.monotonic(), 0
    while block := response.read1(BLOCK):
        received += len(block)
        if received > most:
            raise ValueError(f"more than {most} bytes arrived")
        yield block
        seconds = time.monotonic() - start
        if seconds > _PATIENCE and received < _SLOWEST * seconds:
            raise TimeoutError(f"only {received} bytes arrived in {seconds:.0f} seconds")


def fetch_image(url: str) -> bytes:
    """The bytes of an image: at most half a gigabyte, within two minutes.

    Raises:
        DataError: the image cannot be fetched, or a web page came instead; the message names the URL.
    """
    outcome: list[bytes | BaseException] = []

    def receive() -> None:
        try:
            with open_url(url, timeout=_IMAGE_SILENCE) as response:
                if "text/html" in response.headers.get("Content-Type", ""):
                    raise ValueError("a web page came instead")
                length = response.headers.get("Content-Length", "")
                if length.isdigit() and int(length) > _IMAGE_BYTES:
                    raise ValueError(f"it has {int(length) / 1e6:.0f} MB, at most {_IMAGE_BYTES / 1e6:.0f} are fetched")
                content = b"".join(blocks(response, _IMAGE_BYTES))
                if length.isdigit() and len(content) < int(length):
                    raise ValueError(f"the server broke off after {len(content)} of {length} bytes")
                outcome.append(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.append(error)

    # A server can send a header byte by byte for ever, below every timeout of a socket: the thread is left to it.
    worker = threading.Thread(target=receive, daemon=True)
    worker.start()
    worker.join(_IMAGE_SECONDS)
    if not outcome:
        raise DataError(f"{url}: the image cannot be fetched: it took more than {_IMAGE_SECONDS:.0f} seconds")
    if isinstance(outcome[0], bytes):
        return outcome[0]
    raise DataError(f"{url}: the image cannot be fetched: {reason(outcome[0])}") from outcome[0]


def reason(error: BaseException) -> str:
    """What went wrong, in words."""
    if isinstance(error, http.client.IncompleteRead):
        return f"the server broke off after {len(error.partial)} bytes"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"the server does not speak HTTP as it should ({type(error).__name__})"
    words = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(getattr(words, "strerror", None) or words)
