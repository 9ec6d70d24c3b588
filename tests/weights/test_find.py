"""Weight files found by path, folder, URL or name."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.devices import resolve_device
from detrkit.errors import CheckpointError, DetrkitError
from detrkit.weights import find, pulled_path
from detrkit.weights.find import embedded_names, find_checkpoint
from tests.weights.server import Served, serving


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "dela_detr_lite0.safetensors").write_bytes(b"x")
    monkeypatch.setattr(find, "ASSETS", folder)
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_embedded_name(assets: Path) -> None:
    assert embedded_names() == ["dela_detr_lite0"]
    assert find_checkpoint("dela_detr_lite0") == assets / "dela_detr_lite0.safetensors"


def test_a_file_of_that_name_comes_first(assets: Path) -> None:
    Path("dela_detr_lite0").write_bytes(b"mine")
    assert find_checkpoint("dela_detr_lite0") == Path("dela_detr_lite0")


def test_the_message_for_an_unknown_name_lists_known_names(assets: Path) -> None:
    for name in ("dela_detr_lite", "detr_r5"):
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


def test_published_names_need_a_pull(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'detr_r50' are not here yet: 'detrkit weights pull detr_r50' fetches it"
    ):
        find_checkpoint("detr_r50")
    by_hand = r"by hand from https://drive\.google.*'detrkit weights pull de_detr_r50_coco_50ep --from FILE'"
    with pytest.raises(CheckpointError, match=by_hand):
        find_checkpoint("de_detr_r50_coco_50ep")
    path = pulled_path("detr_r50")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert find_checkpoint("detr_r50") == path
    assert path.is_relative_to(tmp_path / "cache")


def test_a_url_is_downloaded_once(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.files["best.safetensors"] = Served(b"weights")
        path = find_checkpoint(server.url("best.safetensors"))
        assert path.read_bytes() == b"weights"
        assert find_checkpoint(server.url("best.safetensors")) == path
        assert len(server.requests) == 1
        with pytest.raises(CheckpointError, match="HTTP 404"):
            find_checkpoint(server.url("none.pth"))


def test_device_names() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(DetrkitError, match=r"torch sees \d+ CUDA devices"):
        resolve_device("cuda:77")
