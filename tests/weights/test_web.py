"""Servers that break off, never end, crawl, send on elsewhere or speak no HTTP: one error with the URL, in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detrkit.errors import CheckpointError, DataError
from detrkit.weights.published import download as downloads
from detrkit.weights.published import web
from detrkit.weights.published.addresses import is_url
from detrkit.weights.published.download import download
from detrkit.weights.published.web import fetch_image, open_url

OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(web, "_IMAGE_BYTES", 3 << 20)
    monkeypatch.setattr(web, "_IMAGE_SECONDS", 2.0)
    monkeypatch.setattr(web, "_PATIENCE", 0.3)
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    monkeypatch.setattr(downloads, "_MOST_BYTES", 5 << 20)


@contextlib.contextmanager
def answering(script: Script) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that reads a request and then does what the script says, and the requests."""
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                requests.append(connection.recv(1 << 16))
                script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        listener.shutdown(socket.SHUT_RDWR)


def sends(data: bytes) -> Script:
    return lambda connection: connection.sendall(data)


def endless(start: bytes, block: bytes, pause: float = 0.0) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(2000):  # longer than any test waits
            connection.sendall(block)
            time.sleep(pause)

    return script


FAULTS: dict[str, tuple[Script, str]] = {
    "breaks off": (sends(OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 10), "broke off after 10 of 1000 bytes"),
    "breaks off in a chunk": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\nxx"),
        "broke off|does not speak HTTP",
    ),
    "closes at once": (lambda connection: connection.close(), "closed the connection without an answer|reset"),
    "speaks no HTTP": (sends(b"\x00\x01\x02 hello\r\n\r\n"), "does not speak HTTP as it should"),
    "sends a page": (sends(OK + b"Content-Type: text/html\r\n\r\n<html>log in</html>"), "a web page came instead"),
    "is not found": (sends(b"HTTP/1.1 404 Not Found\r\n\r\n"), "Not Found"),
    "never ends": (endless(OK + b"\r\n", b"x" * (1 << 20)), "more than 3145728 bytes"),
    "announces too much": (sends(OK + b"Content-Length: 99000000\r\n\r\n"), "it has 99 MB, at most 3 are fetched"),
    "crawls": (endless(OK + b"\r\n", b"x", 0.05), r"only \d+ bytes arrived in"),
    "crawls in the header": (endless(OK, b"X-A: b\r\n", 0.05), "it took more than 2 seconds"),
    "sends on to ftp": (sends(b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"), "neither http nor https"),
    "sends on to a file": (
        sends(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
        "not allowed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_image_that_cannot_be_fetched_is_one_error(fault: str) -> None:
    script, message = FAULTS[fault]
    start = time.monotonic()
    with answering(script) as (address, _), pytest.raises(DataError, match=rf"^{address}/a\.jpg: .*({message})"):
        fetch_image(f"{address}/a.jpg")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "header" not in fault])
def test_a_checkpoint_that_cannot_be_fetched_is_one_error(fault: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with answering(FAULTS[fault][0]) as (address, _), pytest.raises(CheckpointError, match=rf"^{address}/m\.pth: "):
        download(f"{address}/m.pth", tmp_path / "m.pth", size=50_000_000 if fault == "crawls" else None)
    assert time.monotonic() - start < 10
    assert not (tmp_path / "m.pth").exists()


@pytest.mark.parametrize(("size", "kept"), [(1000, 2 << 20), (None, 7 << 20)])
def test_more_bytes_than_the_file_has_are_not_kept(size: int | None, kept: int, tmp_path: Path) -> None:
    """The published size bounds a download, else a limit does: never the disk."""
    seen = [0]
    with (
        answering(endless(OK + b"\r\n", b"x" * (1 << 20))) as (address, _),
        pytest.raises(CheckpointError, match="more than the file has"),
    ):
        download(f"{address}/m", tmp_path / "m", size=size, progress=lambda done, _: seen.append(done))
    assert max(seen) <= kept
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("written", "requested"),
    [
        ("my photo.jpg", b"/my%20photo.jpg "),
        ("caf\u00e9/\u96ea.jpg?q=\u00fc b", b"/caf%C3%A9/%E9%9B%AA.jpg?q=%C3%BC%20b "),
        ("a%20b.jpg", b"/a%20b.jpg "),
        ("a.jpg#part", b"/a.jpg "),
        ("a\r\nX-Evil: 1.jpg", None),
    ],
)
def test_addresses_as_people_write_them(written: str, requested: bytes | None) -> None:
    with answering(sends(OK + b"Content-Length: 1\r\n\r\nx")) as (address, requests):
        assert fetch_image(f"{address}/{written}") == b"x"
    if requested is not None:
        assert requested in requests[0]
    assert b"\r\nX-Evil" not in requests[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a", True),
        ("HTTPS://a", True),
        ("ftp://a", False),
        ("file:///a", False),
        ("http:/a", False),
        ("a", False),
    ],
)
def test_which_texts_are_web_addresses(text: str, expected: bool) -> None:
    assert is_url(text) is expected
    if not expected:
        with pytest.raises(ValueError, match="only http and https"):
            open_url(text, timeout=1)
