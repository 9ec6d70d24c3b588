"""Downloads from a local server: complete, interrupted and resumed, wrong, missing, and two at the same time."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.errors import CheckpointError
from detrkit.weights.published import download as module
from detrkit.weights.published.addresses import is_url
from detrkit.weights.published.download import cache_dir, cached, check_file, download, fetch
from detrkit.weights.reading import read_state_dict
from tests.weights.server import Served, Server

DATA = np.random.default_rng(0).bytes(3 * (1 << 20) + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(server: Server) -> Server:
    server.files["m.pth"] = Served(DATA)
    return server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "m.pth"


def visible(folder: Path) -> list[str]:
    """File names in a folder, without lock files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server: Server, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(
        server.url("m.pth"), target, sha256=SHA256, size=len(DATA), progress=lambda *done: seen.append(done)
    )
    assert path == target
    assert target.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert visible(target.parent) == ["m.pth"]
    download(server.url("m.pth"), target, sha256=SHA256)
    assert server.ranges == [None], "the second call sends no request"


def test_an_interrupted_connection_is_resumed(server: Server, target: Path) -> None:
    half = len(DATA) // 2
    server.files["m.pth"].cuts = [half, 1000]
    download(server.url("m.pth"), target, sha256=SHA256)
    assert target.read_bytes() == DATA
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + 1000}-"]


def test_the_next_command_resumes_the_download(server: Server, target: Path) -> None:
    server.files["m.pth"].cuts = [2_000_000, 0]
    with pytest.raises(CheckpointError, match=rf"broke off after 2000000 of {len(DATA)} bytes \(2000000 bytes are"):
        download(server.url("m.pth"), target, sha256=SHA256)
    assert not target.exists()
    download(server.url("m.pth"), target, sha256=SHA256)
    assert server.ranges[-1] == "bytes=2000000-"
    assert target.read_bytes() == DATA
    assert visible(target.parent) == ["m.pth"]


def test_a_complete_part_needs_no_more_bytes(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("m.pth.part").write_bytes(DATA)
    target.with_name("m.pth.part.json").write_text(json.dumps({"validator": '"one"', "total": len(DATA)}))
    download(server.url("m.pth"), target, sha256=SHA256)
    assert target.read_bytes() == DATA
    assert server.ranges == [f"bytes={len(DATA)}-"]


@pytest.mark.parametrize("change", ["no ranges", "another file"])
def test_where_resuming_cannot_work_the_download_starts_again(server: Server, target: Path, change: str) -> None:
    served = server.files["m.pth"]
    served.cuts = [1_000_000, 0]
    with pytest.raises(CheckpointError, match="broke off"):
        download(server.url("m.pth"), target)
    if change == "no ranges":
        served.ranges, expected = False, DATA
    else:
        served.etag, served.data = '"two"', DATA[::-1]
        expected = served.data
    download(server.url("m.pth"), target)
    assert target.read_bytes() == expected
    assert server.ranges[-1] == "bytes=1000000-"


def test_without_a_validator_the_total_size_decides(server: Server, target: Path) -> None:
    served = server.files["m.pth"]
    served.etag, served.cuts = None, [1_000_000, 0]
    with pytest.raises(CheckpointError, match="broke off"):
        download(server.url("m.pth"), target)
    served.data = DATA + b"more"
    download(server.url("m.pth"), target)
    assert target.read_bytes() == DATA + b"more"
    assert server.ranges[-2:] == ["bytes=1000000-", None], "another total size: the whole file again"


def test_an_old_part_of_another_file_is_discarded(server: Server, target: Path) -> None:
    """No validator, the same size, other bytes: only the hash shows it."""
    server.files["m.pth"].etag = None
    target.parent.mkdir()
    target.with_name("m.pth.part").write_bytes(b"x" * 1000)
    target.with_name("m.pth.part.json").write_text(json.dumps({"validator": None, "total": len(DATA)}))
    download(server.url("m.pth"), target, sha256=SHA256)
    assert target.read_bytes() == DATA
    assert server.ranges == ["bytes=1000-", None]


def test_a_part_without_a_note_is_not_trusted(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("m.pth.part").write_bytes(b"x" * 1000)
    download(server.url("m.pth"), target)
    assert target.read_bytes() == DATA
    assert server.ranges == [None]


def test_a_wrong_hash_removes_the_file(server: Server, target: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"SHA-256 begins {SHA256[:8]}, that of the published file 00000000: .*rem"
    ):
        download(server.url("m.pth"), target, sha256="00000000")
    assert visible(target.parent) == []
    assert server.ranges == [None], "the same wrong file is not requested again"


def test_a_wrong_size_is_found_before_the_transfer(server: Server, target: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"the server has {len(DATA)} bytes, but the published file has 5"):
        download(server.url("m.pth"), target, size=5)
    assert visible(target.parent) == []


def test_wrong_content_length(server: Server, target: Path) -> None:
    server.files["m.pth"].length = len(DATA) + 10
    with pytest.raises(CheckpointError, match=rf"broke off after {len(DATA)} of {len(DATA) + 10} bytes"):
        download(server.url("m.pth"), target, sha256=SHA256)
    assert not target.exists()
    server.files["m.pth"].length = 1000
    with pytest.raises(CheckpointError, match="SHA-256 begins"):
        download(server.url("m.pth"), target.with_name("other.pth"), sha256=SHA256)


def test_a_server_without_content_length(server: Server, target: Path) -> None:
    """An interruption is found by the published size, or by the known size of the same version of the file."""
    served = server.files["m.pth"]
    served.cuts, served.no_length = [1_000_000, 500_000], True
    download(server.url("m.pth"), target, size=len(DATA))
    assert target.read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    target.unlink()
    served.cuts, served.no_length = [1_000_000, 0], False
    with pytest.raises(CheckpointError, match="broke off after 1000000"):
        download(server.url("m.pth"), target)
    served.cuts, served.no_length, served.ranges = [2_000_000] * 5, True, False
    with pytest.raises(CheckpointError, match=rf"broke off after \d+ of {len(DATA)} bytes"):
        download(server.url("m.pth"), target)
    assert not target.exists()


def test_a_bad_file_in_the_cache(server: Server, tmp_path: Path) -> None:
    """Downloaded again where its size or hash is known; else the message gives advice, for files in the cache only."""
    target = cached(server.url("m.pth"))
    target.parent.mkdir(parents=True)
    checks: tuple[dict[str, Any], ...] = ({"sha256": SHA256[:8]}, {"size": len(DATA)})
    for known in checks:
        target.write_bytes(DATA[:100])
        assert download(server.url("m.pth"), target, **known).read_bytes() == DATA
    with pytest.raises(
        CheckpointError, match=r"-m\.pth: cannot be loaded safely .*in.* the cache: delete it and repeat"
    ):
        read_state_dict(fetch(server.url("m.pth")))
    (tmp_path / "mine.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"mine\.pth: cannot be loaded safely \([^;]*\)$"):
        read_state_dict(tmp_path / "mine.pth")


def test_no_such_file(server: Server, target: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: cannot be downloaded: HTTP 404 Not Found$"):
        download(server.url("absent.pth"), target)
    assert visible(target.parent) == []


def test_a_web_page_is_no_checkpoint(server: Server, target: Path) -> None:
    server.files["drive"] = Served(b"<html>sign in</html>", content_type="text/html; charset=utf-8")
    with pytest.raises(CheckpointError, match="a web page, not a file; download it by hand"):
        download(server.url("drive"), target)
    assert not target.exists()


def test_no_server(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CheckpointError, match=rf"^http://127\.0\.0\.1:{port}/m\.pth: cannot be downloaded: .*refused"):
        download(f"http://127.0.0.1:{port}/m.pth", target)


def test_no_room_on_the_disk(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"3\.1 MB to download, but .* has 1\.0 MB free; make room"):
        download(server.url("m.pth"), target)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot be kept as .*file/m\.pth: "):
        download(server.url("m.pth"), tmp_path / "file" / "m.pth")


def test_two_threads_share_one_download(server: Server, target: Path) -> None:
    gate = server.files["m.pth"].gate = threading.Event()
    paths: list[Path] = []

    def download_twice(warned: pytest.WarningsRecorder) -> None:
        """The first thread waits at the gate, which opens when the second has warned that it waits for the first."""
        threads = [
            threading.Thread(target=lambda: paths.append(download(server.url("m.pth"), target))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        while not len(warned) and all(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        gate.set()
        for thread in threads:
            thread.join()

    with pytest.warns(UserWarning, match="another process is downloading it; waiting") as warned:
        download_twice(warned)
    assert paths == [target, target]
    assert target.read_bytes() == DATA
    assert server.ranges == [None]


def test_fetch_keeps_files_by_address(server: Server, tmp_path: Path) -> None:
    server.files["other/m.pth"] = Served(b"other")
    first, second = fetch(server.url("m.pth")), fetch(server.url("other/m.pth?download=1"))
    assert first.parent == second.parent == tmp_path / "cache" / "checkpoints"
    assert first == cached(server.url("m.pth"))
    assert (first.read_bytes(), second.read_bytes()) == (DATA, b"other")
    assert first.name.endswith("-m.pth")
    assert second.name.endswith("-m.pth")
    assert cached("https://example.org/").name.endswith("-checkpoint")


def test_files_are_checked_by_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert check_file(path) == check_file(path, sha256=digest[:8].upper(), size=3) == digest
    with pytest.raises(CheckpointError, match="x: 3 bytes, but the published file has 4"):
        check_file(path, size=4)
    with pytest.raises(CheckpointError, match=f"x: its SHA-256 begins {digest[:8]}"):
        check_file(path, sha256="12345678")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("DETRKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "detrkit"


def test_addresses() -> None:
    assert is_url("https://example.org/x")
    assert not is_url("file.pth")
