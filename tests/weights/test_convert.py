"""Conversion of official files into ours and back, class names, published checkpoints by name."""

from __future__ import annotations

import argparse
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.data.gtfine_files import CITYSCAPES_CATEGORIES as GTFINE_NAMES
from detrkit.errors import CheckpointError
from detrkit.models import Detector, create_model, entry
from detrkit.structures import Category
from detrkit.weights import CATALOGUE, OfficialFile, open_checkpoint, open_official, pull, pulled_path, save_official
from detrkit.weights.official.class_names import CITYSCAPES_CATEGORIES, COCO_CATEGORIES, guess_categories, read_classes
from detrkit.weights.official.recognise import on_meta
from detrkit.weights.published.catalogue import find_official, official_file_at
from tests.small import SMALL
from tests.weights.server import Served, Server

# 32 channels per head, so that the inferred number of heads is right.
TINY = {**SMALL, "num_heads": 2}


def tiny(name: str = "de_detr_lite0", **overrides: Any) -> Detector:
    torch.manual_seed(0)
    return create_model(name, **{**TINY, **overrides})


def official(path: Path, model: Detector, **parts: Any) -> Path:
    torch.save({"model": detrkit.to_official(model), **parts}, path)
    return path


def same(first: Detector, second: Detector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_official_file_becomes_a_model(tmp_path: Path) -> None:
    source = tiny(num_classes=91)
    opened = open_official(official(tmp_path / "x.pth", source))
    assert same(opened.model, source)
    assert not opened.model.training
    assert opened.model.categories is None
    assert opened.categories == COCO_CATEGORIES
    assert opened.remarks() == [
        "taken for 'de_detr_lite0'; the same tensors fit dela_detr_lite0",
        "num_heads=2 is assumed: nothing in the file tells",
    ]
    assert open_checkpoint(detrkit.save(source, tmp_path / "x.safetensors")).categories is None


def test_assumptions_are_reported(tmp_path: Path) -> None:
    path = official(
        tmp_path / "x.pth", tiny(num_classes=9), args=argparse.Namespace(nheads=2, repeat_label=None, nms=False)
    )
    with pytest.warns(UserWarning, match="9 class slots are taken for the classes of Cityscapes") as warned:
        model = open_checkpoint(path)
    assert len(warned) == 1
    assert model.categories == CITYSCAPES_CATEGORIES


def test_files_that_fit_no_model(tmp_path: Path) -> None:
    state = detrkit.to_official(tiny())
    del state["query_embed.weight"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: nearest to '\w+', but 1 missing \(query_embed\.weight\)"):
        open_official(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: weights do not fit model 'detr_lite0': \d+ missing"):
        open_official(tmp_path / "x.pth", name="detr_lite0")


def test_official_files_are_written_for_official_loaders(tmp_path: Path) -> None:
    model = tiny()
    path = save_official(model, tmp_path / "new" / "x.pth")
    data = torch.load(path, weights_only=True)
    assert list(data) == ["model"]
    assert set(data["model"]) == set(detrkit.to_official(model))
    assert "transformer.decoder.bbox_embed.0.layers.0.weight" in data["model"], "aliases too"
    assert same(open_official(path, name="de_detr_lite0").model, model)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_official(model, tmp_path / "file" / "x.pth")


# --- classes ----------------------------------------------------------------------------------------------------------


def test_class_slots_of_the_published_models() -> None:
    assert len(COCO_CATEGORIES) == 91
    assert len(COCO_CATEGORIES.named) == 80
    assert all(category.id == slot for slot, category in enumerate(COCO_CATEGORIES))
    assert COCO_CATEGORIES[90] == Category(90, "toothbrush")
    assert CITYSCAPES_CATEGORIES[0] == Category(0, None)
    assert tuple(CITYSCAPES_CATEGORIES.names[1:]) == GTFINE_NAMES
    assert guess_categories(9) is CITYSCAPES_CATEGORIES
    assert guess_categories(9, {"dataset_file": "mine"}) is None
    assert guess_categories(91, {"dataset_file": "cocodown"}) is COCO_CATEGORIES
    assert guess_categories(20) is None


def test_class_names_from_the_user(tmp_path: Path) -> None:
    text = tmp_path / "names.txt"
    text.write_text("\ncat\ndog\n")
    assert read_classes(str(text), 3).names == [None, "cat", "dog"]
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}]}))
    assert read_classes(str(coco), 5).names == [None, "cat", None, None, "dog"], "label = category id"
    assert list(read_classes(str(coco), 2)) == [Category(1, "cat"), Category(4, "dog")], "or in order"
    assert read_classes("2", 2).names == ["class 0", "class 1"]
    assert read_classes("coco", 91) is COCO_CATEGORIES
    (tmp_path / "bad.json").write_text("[]")
    for given, message in (
        (str(text), r"names\.txt' are 3 slots, but the checkpoint has 7"),
        ("cityscapes", "are 9 slots, but the checkpoint has 7"),
        ("8", "are 8 slots"),
        (str(tmp_path / "none.txt"), r"none\.txt': cannot be read \(No such file"),
        (str(tmp_path / "bad.json"), "not a COCO file with categories"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_classes(given, 7)


# --- the catalogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_catalogue_entries_are_complete(name: str) -> None:
    item = CATALOGUE[name]
    assert item.name == name
    assert item.licence == "Apache-2.0"
    assert item.source.startswith("https://github.com/")
    if item.data != "Objects365":  # its AP is not published
        assert item.ap is not None
        assert 5 < item.ap < 65
    assert (item.address is None) != (item.page is None)
    if item.address is not None:
        assert item.file is not None
        assert item.address.endswith(f"/{item.file}")
        assert official_file_at(item.address) is item
    if "fbaipublicfiles" in (item.address or ""):
        assert item.file == f"{item.file.removesuffix('.pth')[:-9]}-{item.sha256}.pth"  # type: ignore[union-attr]  # above
    if item.size is not None:
        assert item.mib == round(item.size / 2**20)
    config = on_meta(item.model, **item.options).config
    # files of other data sets show their number of classes themselves
    assert config.num_classes == {"COCO": 91, "COCO panoptic": 250, "Cityscapes": 9}.get(item.data, 91)
    assert item.family == entry(item.model).family
    assert "detrkit weights pull" in item.how_to_get


def test_all_published_models_are_listed() -> None:
    """The model zoos of DETR, Conditional DETR, Deformable DETR and DINO, both DE-DETR repositories on both data sets,
    the releases of Relation-DETR with its "++" models and of Salience-DETR."""
    sources: dict[str, int] = {}
    for item in CATALOGUE.values():
        sources[item.source.rpartition("/")[2]] = sources.get(item.source.rpartition("/")[2], 0) + 1
    assert sources == {
        "detr": 7,
        "ConditionalDETR": 4,
        "DE-DETRs": 6,
        "DE-CondDETR": 6,
        "Deformable-DETR": 5,
        "DINO": 10,
        "Relation-DETR": 10,
        "Salience-DETR": 5,
    }
    with pytest.raises(CheckpointError, match=r"no published checkpoint called 'detr_r5'.*Did you mean 'detr_r50'"):
        find_official("detr_r5")


# --- pull -------------------------------------------------------------------------------------------------------------


PUBLISHED: dict[str, Any] = {**TINY, "backbone": "test_resnet", "hidden_dim": 32, "num_heads": 1, "num_classes": 9}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, bytes]:
    """A Cityscapes model and its official file."""
    model = tiny(**PUBLISHED)
    return model, official(tmp_path_factory.mktemp("published") / "x.pth", model).read_bytes()


def add_to_catalogue(monkeypatch: pytest.MonkeyPatch, data: bytes, address: str | None, **changes: Any) -> OfficialFile:
    """Add a file to the catalogue."""
    values: dict[str, Any] = {
        "name": "tiny_cityscapes",
        "model": "de_detr_lite0",
        "options": PUBLISHED,
        "data": "Cityscapes",
        "epochs": 1,
        "ap": 22.2,
        "source": "https://github.com/nobody/nothing",
        "address": address,
        "page": None if address else "https://drive.example.org/folder",
        "file": "tiny.pth",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest()[:8],
        **changes,
    }
    item = OfficialFile(**values)
    monkeypatch.setitem(CATALOGUE, item.name, item)  # type: ignore[arg-type]  # typed as a read-only Mapping
    return item


def test_pull_downloads_checks_and_converts(
    server: Server, published: tuple[Detector, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = published
    half = len(data) // 2
    server.files["tiny.pth"] = Served(data, cuts=[half])
    add_to_catalogue(monkeypatch, data, server.url("tiny.pth"))
    seen: list[int] = []
    pulled = pull("tiny_cityscapes", progress=lambda done, total: seen.append(done))
    assert server.ranges == [None, f"bytes={half}-"], "an interrupted download is resumed"
    assert seen[-1] == len(data)
    assert pulled.path == pulled_path("tiny_cityscapes")
    assert pulled.source is not None
    assert pulled.source.parent == pulled.path.parent
    loaded = detrkit.load(pulled.path)
    assert same(loaded, model)
    assert loaded.config == model.config
    assert loaded.categories == CITYSCAPES_CATEGORIES
    extra = detrkit.weights.read_info(pulled.path).extra["official"]
    assert extra["sha256"] == hashlib.sha256(data).hexdigest()
    assert extra["source"] == "https://github.com/nobody/nothing"
    assert pull("tiny_cityscapes").source is None, "the second pull finds the file"
    assert len(server.requests) == 2
    pulled.path.write_bytes(b"damaged")
    assert same(detrkit.load(pull("tiny_cityscapes").path), model), "converted again from the downloaded file"
    assert len(server.requests) == 2


@pytest.mark.filterwarnings("ignore:.*another process is downloading it")
def test_two_pulls_at_once_download_once_and_keep_a_whole_file(
    server: Server, published: tuple[Detector, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = published
    server.files["tiny.pth"] = Served(data)
    add_to_catalogue(monkeypatch, data, server.url("tiny.pth"))
    with ThreadPoolExecutor(4) as pool:
        pulled = list(pool.map(pull, ["tiny_cityscapes"] * 4))
    assert {found.path for found in pulled} == {pulled_path("tiny_cityscapes")}
    assert same(detrkit.load(pulled[0].path), model)
    assert len(server.requests) == 1
    assert not [path for path in pulled[0].path.parent.iterdir() if path.suffix in (".part", ".draft")]


def test_pull_from_a_file_or_another_address(
    server: Server, published: tuple[Detector, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, data = published
    add_to_catalogue(monkeypatch, data, None)
    with pytest.raises(
        CheckpointError, match=r"by hand from https://drive.*'detrkit weights pull tiny_cityscapes --from FILE'"
    ):
        pull("tiny_cityscapes")
    by_hand = tmp_path / "by_hand.pth"
    with pytest.raises(CheckpointError, match=r"by_hand\.pth: no such file \(--from\)"):
        pull("tiny_cityscapes", source=by_hand)
    by_hand.write_bytes(data)
    to = tmp_path / "mine" / "tiny.safetensors"
    assert pull("tiny_cityscapes", source=by_hand, to=to).path == to
    assert same(detrkit.load(to), model)
    assert not pulled_path("tiny_cityscapes").exists()
    server.files["mirror.pth"] = Served(data)
    assert same(detrkit.load(pull("tiny_cityscapes", source=server.url("mirror.pth")).path), model)


def test_pull_refuses_a_file_that_is_not_the_published_one(
    server: Server, published: tuple[Detector, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, data = published
    server.files["tiny.pth"] = Served(data)
    add_to_catalogue(monkeypatch, data, server.url("tiny.pth"), sha256="00000000")
    with pytest.raises(CheckpointError, match=r"SHA-256 begins .*it was removed"):
        pull("tiny_cityscapes")
    add_to_catalogue(monkeypatch, data, server.url("gone.pth"))
    with pytest.raises(CheckpointError, match=r"gone\.pth: cannot be downloaded: HTTP 404"):
        pull("tiny_cityscapes")
    add_to_catalogue(monkeypatch, data, server.url("tiny.pth"), size=len(data) + 1)
    with pytest.raises(CheckpointError, match=r"the server has \d+ bytes, but the published file has"):
        pull("tiny_cityscapes")
    other = official(tmp_path / "other.pth", tiny("conditional_detr_lite0", num_classes=9))
    add_to_catalogue(monkeypatch, data, None, size=None, sha256=None)
    with pytest.raises(
        CheckpointError,
        match=r"other\.pth: weights do not fit model 'de_detr_lite0': \d+ missing \(.*\d+ unexpected \(.*"
        "looks like 'conditional_detr_lite0'",
    ):
        pull("tiny_cityscapes", source=other)
    assert not pulled_path("tiny_cityscapes").exists()
    with pytest.raises(CheckpointError, match="no published checkpoint called 'nothing'"):
        pull("nothing")
