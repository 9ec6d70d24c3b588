"""Published weights are fetched when their name is first used, by three callers only, and never offline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.cli.main import run
from detrkit.errors import CheckpointError
from detrkit.models import Detector, create_model
from detrkit.training import RunResult
from detrkit.weights import CATALOGUE, OfficialFile, pulled_path
from detrkit.weights.find import find_checkpoint
from detrkit.weights.published import catalogue, first_use, pull
from tests.data.trees import coco_tree
from tests.small import SMALL
from tests.weights.server import Served, Server

MODEL = "de_conditional_detr_lite0"  # a model without a published file, so that the only one is that of the test
NAME = "tiny_coco"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Detector]:
    """An official file, and its model."""
    torch.manual_seed(0)
    model = create_model(MODEL, **{**SMALL, "num_heads": 2, "num_classes": 91})
    path = tmp_path_factory.mktemp("official") / "tiny.pth"
    torch.save({"model": detrkit.to_official(model)}, path)
    return path.read_bytes(), model


@pytest.fixture
def publish(
    server: Server, content: tuple[bytes, Detector], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OfficialFile]:
    """Puts a published file into the catalogue, at the local server."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("DETRKIT_OFFLINE", raising=False)
    server.files["tiny.pth"] = Served(content[0])

    def add(**more: Any) -> OfficialFile:
        values: dict[str, Any] = {
            "name": NAME,
            "model": MODEL,
            "data": "COCO",
            "epochs": 1,
            "ap": 1.0,
            "source": "https://example.org/authors",
            "address": server.url("tiny.pth"),
            "sha256": hashlib.sha256(content[0]).hexdigest(),
            "size": len(content[0]),
            "mib": 7,
            "options": {**SMALL, "num_heads": 2, "num_classes": 91},
            **more,
        }
        item = OfficialFile(**values)
        entries = {**CATALOGUE, item.name: item}
        for module in (catalogue, first_use):
            monkeypatch.setattr(module, "CATALOGUE", entries)
        monkeypatch.setattr("detrkit.training.auto.model_choice.CATALOGUE", entries)
        return item

    return add


def same(first: Detector, second: Detector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", [NAME, MODEL])
def test_a_predictor_fetches_once(
    publish: Callable[..., OfficialFile],
    server: Server,
    content: tuple[bytes, Detector],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    item = publish()
    assert same(detrkit.Predictor(name, device="cpu").model, content[1])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in (NAME, MODEL, "7 MiB", "licence Apache-2.0", item.source, str(item.address), str(item.sha256)):
        assert part in said
    assert str(pulled_path(NAME).parent) in said
    assert same(detrkit.Predictor(name, device="cpu").model, content[1])
    assert len(server.requests) == 1
    assert capsys.readouterr().err == ""


def test_a_size_that_is_not_published_is_the_servers(
    publish: Callable[..., OfficialFile],
    content: tuple[bytes, Detector],
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(mib=None, size=None, sha256=None)
    detrkit.Predictor(NAME, device="cpu")
    said = capsys.readouterr().err
    assert f"fetching {len(content[0]) / 2**20:.0f} MiB" in said
    assert "no hash is published" in said


def test_predict_fetches(publish: Callable[..., OfficialFile], server: Server, picture: Path, tmp_path: Path) -> None:
    publish()
    assert run(["predict", str(picture), "--model", NAME, "--out", str(tmp_path / "out"), "--no-images"]) == 0
    assert len(server.requests) == 1


def test_a_broken_download_goes_on(
    publish: Callable[..., OfficialFile], server: Server, content: tuple[bytes, Detector]
) -> None:
    publish()
    server.files["tiny.pth"].cuts = [100_000, 0]
    with pytest.raises(CheckpointError, match=r"broke off after 100000 of \d+ bytes"):
        detrkit.Predictor(NAME, device="cpu")
    assert same(detrkit.Predictor(NAME, device="cpu").model, content[1])
    assert server.ranges[-1] == "bytes=100000-"


def test_a_wrong_file_is_refused(publish: Callable[..., OfficialFile]) -> None:
    publish(sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"its SHA-256 begins .* damaged or another file; it was removed"):
        detrkit.Predictor(NAME, device="cpu")
    assert not pulled_path(NAME).exists()


def test_offline(
    publish: Callable[..., OfficialFile],
    server: Server,
    content: tuple[bytes, Detector],
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is asked of the server; what is in the cache is used."""
    publish()
    words = ["predict", str(picture), "--model", NAME, "--out", str(picture.parent / "out"), "--no-images"]
    for place in (0, len(words)):
        assert run([*words[:place], "--offline", *words[place:]]) == 2
        assert "the published weights 'tiny_coco' are not here yet" in capsys.readouterr().err
    for variable in ("DETRKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        with pytest.raises(CheckpointError, match=r"pull tiny_coco' fetches it where there is a network, which --off"):
            detrkit.Predictor(NAME, device="cpu")
        monkeypatch.setenv(variable, "0")
    assert not server.requests
    detrkit.Predictor(NAME, device="cpu")
    monkeypatch.setenv("DETRKIT_OFFLINE", "1")
    assert same(detrkit.Predictor(NAME, device="cpu").model, content[1])
    assert len(server.requests) == 1


def test_offline_opens_no_address_at_all(
    publish: Callable[..., OfficialFile], server: Server, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DETRKIT_OFFLINE also forbids addresses that are given; HF_HUB_OFFLINE only what is fetched by itself."""
    item = publish()
    server.files["photo.png"] = Served(picture.read_bytes(), content_type="image/png")
    monkeypatch.setenv("DETRKIT_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="cannot be downloaded: --offline or DETRKIT_OFFLINE forbids it"):
        find_checkpoint(str(item.address))
    with pytest.raises(CheckpointError, match="--offline or DETRKIT_OFFLINE forbids it"):
        pull.pull(NAME)
    with pytest.raises(detrkit.DataError, match="--offline or DETRKIT_OFFLINE forbids it"):
        detrkit.Predictor(device="cpu").predict(server.url("photo.png"))
    assert not server.requests
    monkeypatch.delenv("DETRKIT_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_checkpoint(str(item.address)).is_file()


def test_nothing_else_fetches(
    publish: Callable[..., OfficialFile], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    create_model(MODEL, **SMALL)
    data = coco_tree(tmp_path / "data")
    for words in (
        ["eval", "--data", str(data), "--checkpoint", NAME],
        ["export", NAME, "--format", "onnx", "--out", str(tmp_path / "m.onnx")],
        ["weights", "inspect", NAME],
        ["train", "detr_r50_coco_500ep", f"model.init={NAME}", f"data.root={data}", f"output={tmp_path / 'run'}"],
    ):
        assert run(words) == 2
        assert "not here yet" in capsys.readouterr().err
    assert not server.requests


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Recipes of calls to ``train``, which trains nothing. The working folder is new and has data."""
    calls: list[Any] = []

    def train(recipe: Any, **options: Any) -> RunResult:
        calls.append(recipe)
        return RunResult(tmp_path, tmp_path / "best" / "model.safetensors", {}, headline=())

    monkeypatch.setattr("detrkit.training.train", train)
    monkeypatch.setattr("detrkit.training.task.require_packaged", lambda name: None)  # not everywhere installed
    monkeypatch.chdir(tmp_path)
    coco_tree(tmp_path / "my_data")
    return calls


def test_training_of_a_named_model_starts_from_it(
    publish: Callable[..., OfficialFile], server: Server, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    assert run(["train", "--data", "my_data", "device=cpu"]) == 0
    for words in (["model.num_heads=4"], ["model.init=null"], ["model.pretrained_backbone=false"]):
        assert run(["train", "--data", "my_data", "--model", MODEL, "device=cpu", *words]) == 0
    assert run(["train", "dela_detr_lite0", "data.root=my_data"]) == 0
    detrkit.auto_recipe("my_data", {"model.name": MODEL}, quiet=True)
    assert not server.requests, "no name, other weights are asked for, or a recipe"
    capsys.readouterr()
    assert run(["train", "--data", "my_data", "--model", MODEL, "device=cpu"]) == 0
    assert len(server.requests) == 1
    assert trained[-1].model.init == NAME
    assert "7 MiB" in capsys.readouterr().err


def test_training_goes_on_without_a_network(
    publish: Callable[..., OfficialFile], server: Server, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No connection, or none that is allowed: said, and in the recipe. A download that broke off ends the command."""
    publish()
    words = ["train", "--data", "my_data", "--model", MODEL, "device=cpu"]
    assert run([*words, "--offline"]) == 0
    assert "forbids here; this training starts without them" in capsys.readouterr().err
    assert not server.requests
    publish(address=server.url("none.pth"))
    assert run(words) == 0
    assert "HTTP 404 Not Found; this training starts without them" in capsys.readouterr().err
    assert [recipe.model.init for recipe in trained] == [None, None]
    assert any(f"a better start, not at hand: {NAME}" in line for line in trained[-1].comments)
    publish()
    server.files["tiny.pth"].cuts = [100_000, 0]
    assert run(words) == 2
    assert "broke off after 100000" in capsys.readouterr().err
    assert len(trained) == 2


def test_by_hand(publish: Callable[..., OfficialFile], trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    publish(address=None, page="https://example.org/page")
    with pytest.raises(CheckpointError, match=r"by hand from https://example\.org/page, then 'detrkit weights pull ti"):
        detrkit.Predictor(MODEL, device="cpu")
    with pytest.raises(CheckpointError, match=r"'dino_r50_4scale_coco_24ep|'dino_r50_4scale_coco_36ep"):
        detrkit.Predictor("dino_r50_4scale", device="cpu")
    assert run(["train", "--data", "my_data", "--model", MODEL, "device=cpu"]) == 0
    assert "by hand" in capsys.readouterr().err


def test_what_a_name_means() -> None:
    """A file of that name; else of the model, the best one that a program can fetch."""
    meant = first_use.published_named
    assert getattr(meant("detr_r50"), "name", None) == "detr_r50"
    assert getattr(meant("detr_r50_coco_50ep"), "name", None) == "detr_r50_coco_50ep"
    assert getattr(meant("relation_detr_r50"), "name", None) == "relation_detr_r50_coco_24ep"
    assert getattr(meant("dino_r50_4scale"), "name", None) == "dino_r50_4scale_coco_36ep"
    assert meant("dape_r50") is None
    assert meant("nothing") is None
