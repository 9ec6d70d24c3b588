"""A web server on this machine whose answers can be made to go wrong."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file: its content, validator, whether ranges work, and what goes wrong.

    cuts: for each request in turn, after how many bytes of the answer the connection closes (None: never) · length:
    what Content-Length says instead of the truth · unsaid: there is none · status, kind: of the answer · gate: the
    answer waits for it.
    """

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int | None] = field(default_factory=list)
    length: int | None = None
    unsaid: bool = False
    status: int = 200
    kind: str = "application/octet-stream"
    gate: threading.Event | None = None


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; ``asked`` lists (path, Range header) of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    @property
    def ranges(self) -> list[str | None]:
        """The Range headers in order."""
        return [asked for _, asked in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:  # http.server calls it so
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        served = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        if served.gate is not None:
            served.gate.wait()
        whole, start, status = served.content, 0, served.status
        known = self.headers.get("If-Range")
        if asked and served.ranges and known in (None, served.etag):
            start, status = int(re.sub(r"bytes=(\d+)-", r"\1", asked)), 206
            if start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.end_headers()
                return
        body = whole[start:]
        self.send_response(status)
        self.send_header("Content-Type", served.kind)
        if not served.unsaid:
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
def serving() -> Iterator[Server]:
    """A server that runs while the block does."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
