"""A local web server that sends faulty responses on request."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

T = TypeVar("T", bound=ThreadingHTTPServer)


@dataclass
class Served:
    """One file on the server, and the faults of its responses."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    """Whether Range requests work."""
    cuts: list[int | None] = field(default_factory=list)
    """For each request in turn, the number of bytes after which the connection closes (None: never)."""
    length: int | None = None
    """A wrong Content-Length."""
    no_length: bool = False
    """Send no Content-Length."""
    status: int = 200
    content_type: str = "application/octet-stream"
    gate: threading.Event | None = None
    """The response waits for this event."""


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; ``requests`` lists (path, Range header) of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    @property
    def ranges(self) -> list[str | None]:
        """The Range headers in order."""
        return [requested for _, requested in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:  # the name is fixed by http.server
        requested = self.headers.get("Range")
        self.server.requests.append((self.path, requested))
        served = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        if served.gate is not None:
            served.gate.wait()
        whole, start, status = served.data, 0, served.status
        known = self.headers.get("If-Range")
        if requested and served.ranges and known in (None, served.etag):
            start, status = int(re.sub(r"bytes=(\d+)-", r"\1", requested)), 206
            if start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.end_headers()
                return
        body = whole[start:]
        self.send_response(status)
        self.send_header("Content-Type", served.content_type)
        if not served.no_length:
            self.send_header("Content-Length", str(len(body) if served.length is None else served.length))
        if served.etag:
            self.send_header("ETag", served.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else None
        with contextlib.suppress(OSError):
            self.wfile.write(body[:cut])
        self.close_connection = True


@contextlib.contextmanager
def running(server: T) -> Iterator[T]:
    """A server that runs inside the ``with`` block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def serving() -> contextlib.AbstractContextManager[Server]:
    """A server of files that runs inside the ``with`` block."""
    return running(Server())
