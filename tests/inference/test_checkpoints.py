from __future__ import annotations

import io
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from detrkit.errors import CheckpointError, DetrkitError
from detrkit.inference import checkpoints
from detrkit.inference.checkpoints import cache_dir, embedded_names, fetch, find_checkpoint
from detrkit.inference.device import resolve_device

URL = "https://example.org/models/best.safetensors?download=1"


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "dela_detr_lite0.safetensors").write_bytes(b"x")
    monkeypatch.setattr(checkpoints, "ASSETS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_embedded_name(assets: Path) -> None:
    assert embedded_names() == ["dela_detr_lite0"]
    assert find_checkpoint("dela_detr_lite0") == assets / "dela_detr_lite0.safetensors"


def test_a_file_of_that_name_comes_first(assets: Path) -> None:
    Path("dela_detr_lite0").write_bytes(b"mine")
    assert find_checkpoint("dela_detr_lite0") == Path("dela_detr_lite0")


def test_unknown_name_lists_those_that_exist(assets: Path) -> None:
    for name in ("dela_detr_lite", "detr_r50"):
        with pytest.raises(CheckpointError, match=rf"called '{name}' in the package \(it has: dela_detr_lite0\)"):
            find_checkpoint(name)


def test_missing_file_is_named(assets: Path) -> None:
    for path in ("nowhere/best.safetensors", "best.safetensors", "runs/cells"):
        with pytest.raises(CheckpointError, match=f"{path}: no such checkpoint file"):
            find_checkpoint(path)


def test_run_folder_gives_best_then_last(assets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"looked for best/model\.safetensors, model\.safetensors"):
        find_checkpoint(run)
    (run / "last" / "model.safetensors").write_bytes(b"x")
    assert find_checkpoint(run) == run / "last" / "model.safetensors"
    (run / "best").mkdir()
    (run / "best" / "model.safetensors").write_bytes(b"x")
    assert find_checkpoint(str(run)) == run / "best" / "model.safetensors"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("DETRKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "detrkit"


class Response(io.BytesIO):
    """What urlopen returns: a stream with headers."""

    def __init__(self, content: bytes, length: int | None) -> None:
        super().__init__(content)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[str]]:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    def install(answer: Any) -> list[str]:
        def urlopen(url: str, timeout: float) -> Any:
            asked.append(url)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(checkpoints.urllib.request, "urlopen", urlopen)
        return asked

    return install


@pytest.mark.parametrize("length", [3_000_000, None])
def test_download_is_kept(serve: Callable[[Any], list[str]], length: int | None, tmp_path: Path) -> None:
    content = bytes(3_000_000)
    asked = serve(Response(content, length))
    seen: list[tuple[int, int | None]] = []
    path = fetch(URL, lambda done, total: seen.append((done, total)))
    assert path.parent == tmp_path / "cache" / "checkpoints"
    assert path.name.endswith("-best.safetensors")
    assert path.read_bytes() == content
    assert seen[-1] == (3_000_000, length)
    assert find_checkpoint(URL) == path
    assert asked == [URL], "the second time nothing is downloaded"


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_download_that_breaks_off_leaves_nothing(serve: Callable[[Any], list[str]], tmp_path: Path) -> None:
    serve(Response(b"half", 8))
    with pytest.raises(CheckpointError, match="broke off after 4 of 8 bytes"):
        fetch(URL)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError(URL, 404, "Not Found", Message(), None),
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
    ],
)
def test_failed_download_is_one_clear_line(serve: Callable[[Any], list[str]], tmp_path: Path, error: Exception) -> None:
    serve(error)
    with pytest.raises(CheckpointError, match=r"example\.org.*cannot be downloaded: (Not Found|Name or|timed out)"):
        fetch(URL)
    assert leftovers(tmp_path) == []


def test_device_names() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(DetrkitError, match=r"torch sees \d+ CUDA devices"):
        resolve_device("cuda:77")
