"""Models to a local hub and back: the same weights, a card, versions, the cache, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import detrkit
from detrkit.cli.main import run
from detrkit.errors import CheckpointError
from detrkit.models import Detector
from detrkit.weights import read_info
from detrkit.weights.find import find_checkpoint
from tests.hub.hub_server import HubServer
from tests.small import small_model

REPOSITORY = "me/cells"


@pytest.fixture(scope="module")
def model() -> Detector:
    return small_model("dape_lite0").eval()


@pytest.fixture
def checkpoint(model: Detector, tmp_path: Path) -> Path:
    recipe = {"model": {"name": "dape_lite0"}, "data": {"root": "/home/someone/secret/cells"}}
    return detrkit.save(model, tmp_path / "model.safetensors", recipe=recipe)


def same(first: Detector, second: Detector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def files_of(hub: HubServer) -> dict[str, bytes]:
    return hub.commits[REPOSITORY][-1]


def test_there_and_back(hub: HubServer, checkpoint: Path, model: Detector) -> None:
    url = detrkit.push_to_hub(checkpoint, REPOSITORY, licence="apache-2.0")
    assert url.startswith(f"{hub.address}/{REPOSITORY}/commit/")
    assert set(files_of(hub)) == {"README.md", "model.safetensors"}
    loaded = detrkit.from_pretrained(REPOSITORY)
    assert same(loaded, model)
    assert not loaded.training
    assert loaded.config == model.config
    predictor = detrkit.Predictor(f"hf://{REPOSITORY}", device="cpu")
    assert same(predictor.model, model)


def test_nothing_tells_where_the_data_lay(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY)
    content = files_of(hub)
    assert b"someone" not in content["README.md"]
    assert b"someone" not in content["model.safetensors"]
    (tmp_path / "pushed.safetensors").write_bytes(content["model.safetensors"])
    assert read_info(tmp_path / "pushed.safetensors").recipe == {
        "model": {"name": "dape_lite0"},
        "data": {"root": "cells"},
    }
    assert b"secret" in checkpoint.read_bytes(), "the file of the user is as it was"


def test_a_version_is_downloaded_once_and_used_offline(
    hub: HubServer, checkpoint: Path, model: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY)
    first = find_checkpoint(f"hf://{REPOSITORY}")
    assert first.is_relative_to(tmp_path / "cache" / "hub")
    gets = [row for row in hub.requests if row[0] == "GET"]
    find_checkpoint(f"hf://{REPOSITORY}")
    assert [row for row in hub.requests if row[0] == "GET"] == gets, "the second call only asks for the version"
    for variable in ("DETRKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        before = len(hub.requests)
        assert find_checkpoint(f"hf://{REPOSITORY}") == first
        with pytest.raises(CheckpointError, match=r"^hf://me/other: not in the cache, and --offline or a variable"):
            find_checkpoint("hf://me/other")
        with pytest.raises(CheckpointError, match="nothing is uploaded, --offline"):
            detrkit.push_to_hub(checkpoint, REPOSITORY)
        assert len(hub.requests) == before
        monkeypatch.delenv(variable)
    hub.down = True
    assert same(detrkit.from_pretrained(REPOSITORY), model), "without a server the version in the cache is used"


def test_versions(hub: HubServer, checkpoint: Path, model: Detector, tmp_path: Path) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY)
    other = small_model("dape_lite0", seed=1)
    detrkit.push_to_hub(detrkit.save(other, tmp_path / "other.safetensors"), REPOSITORY)
    assert same(detrkit.from_pretrained(REPOSITORY), other)
    old = hub.oid(REPOSITORY, 0)
    assert same(detrkit.from_pretrained(REPOSITORY, revision=old), model)
    assert same(detrkit.load(find_checkpoint(f"hf://{REPOSITORY}@{old}")), model)
    with pytest.raises(CheckpointError, match=r"hf://me/cells@v9: the repository has no such revision"):
        find_checkpoint(f"hf://{REPOSITORY}@v9")


def test_an_interrupted_download_goes_on(hub: HubServer, checkpoint: Path, model: Detector) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY)
    hub.cut = 12_000_000  # the library keeps whole pieces of 10 MiB
    assert same(detrkit.from_pretrained(REPOSITORY), model)
    assert hub.ranges[0] is None
    assert hub.ranges[1] == f"bytes={10 << 20}-"


def test_damage_on_the_way_is_noticed(hub: HubServer, checkpoint: Path) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY)
    content = bytearray(files_of(hub)["model.safetensors"])
    content[-1] ^= 1
    files_of(hub)["model.safetensors"] = bytes(content)
    with pytest.raises(CheckpointError, match="damaged, its weights have another checksum"):
        detrkit.from_pretrained(REPOSITORY)


def test_private_repositories_need_a_token(
    hub: HubServer, checkpoint: Path, model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    detrkit.push_to_hub(checkpoint, REPOSITORY, private=True)
    assert hub.private == {REPOSITORY}
    assert same(detrkit.from_pretrained(REPOSITORY), model)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match=r"^hf://me/cells: your token may not do this"):
        detrkit.push_to_hub(checkpoint, REPOSITORY)


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("me/none", r"^hf://me/none: no such repository, or it is private and you are not logged in"),
        ("cells", r"'cells' is no repository of the hub: give OWNER/NAME"),
        ("a/b/c", r"'a/b/c' is no repository of the hub"),
    ],
)
def test_no_such_repository(hub: HubServer, repository: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        detrkit.from_pretrained(repository)
    assert "\n" not in str(raised.value)


def test_a_repository_of_something_else(hub: HubServer) -> None:
    hub.commits["me/text"] = [{"config.json": b"{}"}]
    with pytest.raises(CheckpointError, match=r"hf://me/text: the repository has no model\.safetensors"):
        find_checkpoint("hf://me/text")


def test_no_server(hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    with pytest.raises(CheckpointError, match=r"^hf://me/cells: "):
        detrkit.push_to_hub(checkpoint, REPOSITORY)
    with pytest.raises(CheckpointError, match=r"^hf://me/cells: the server cannot be reached"):
        detrkit.from_pretrained(REPOSITORY)


def test_what_cannot_be_pushed(hub: HubServer, model: Detector, checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"model": detrkit.to_official(model)}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match=r"official\.pth: not a checkpoint of ours; 'detrkit weights convert'"):
        detrkit.push_to_hub(tmp_path / "official.pth", REPOSITORY)
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged, its weights have another checksum"):
        detrkit.push_to_hub(tmp_path / "damaged.safetensors", REPOSITORY)
    assert not hub.requests


def test_a_local_path_is_loaded_as_it_is(checkpoint: Path, model: Detector) -> None:
    assert same(detrkit.from_pretrained(str(checkpoint)), model)


def test_from_the_command_line(
    hub: HubServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["weights", "push", str(checkpoint), REPOSITORY, "--licence", "mit"]
    assert run([*words, "--to", str(tmp_path / "look")]) == 0
    assert not hub.requests
    card = (tmp_path / "look" / "README.md").read_text(encoding="utf-8")
    assert run(words) == 0
    assert f"--model hf://{REPOSITORY}" in capsys.readouterr().out
    assert files_of(hub)["README.md"].decode() == card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert run(["--offline", *words]) == 2
    assert "nothing is uploaded" in capsys.readouterr().err
