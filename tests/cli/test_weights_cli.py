"""``detrkit weights``, and checkpoints by URL or name in ``predict`` and ``eval``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.cli.main import run
from detrkit.models import Detector, create_model
from detrkit.weights import CATALOGUE, OfficialFile, pulled_path
from detrkit.weights.published import download as downloading
from tests.inference.color_detector import coco_folder, picture
from tests.small import SMALL
from tests.weights.server import Served, Server, serving

# 32 channels per head, so that the inferred number of heads is right.
TINY = {**SMALL, "num_heads": 2}
IMAGE = picture((96, 64), (0, (10, 20, 40, 50)))


class Workplace:
    """A folder with an official file of a tiny model with 91 class slots, a server, and the output of commands."""

    def __init__(self, folder: Path, server: Server, model: Detector, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.server, self.model, self.capfd = folder, server, model, capfd
        self.file = folder / "tiny.pth"
        self.data = self.file.read_bytes()

    def run(self, *words: Any) -> tuple[int, str, str]:
        code = run([str(word) for word in words])
        captured = self.capfd.readouterr()
        return code, captured.out, captured.err


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    return create_model("conditional_detr_lite0", **{**TINY, "num_classes": 91}, eval_short_side=64, eval_max_side=96)


@pytest.fixture
def here(
    tmp_path: Path, model: Detector, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Workplace]:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(downloading, "_PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": detrkit.to_official(model)}, tmp_path / "tiny.pth")
    IMAGE.save(tmp_path / "photo.png")
    with serving() as server:
        place = Workplace(tmp_path, server, model, capfd)
        server.files["tiny.pth"] = Served(place.data)
        monkeypatch.setitem(CATALOGUE, "tiny", catalogue_entry(place, server.url("tiny.pth")))  # type: ignore[arg-type]  # a dict
        yield place


def catalogue_entry(place: Workplace, address: str, **changes: Any) -> OfficialFile:
    options = {key: value for key, value in TINY.items() if key != "backbone"} | {"num_classes": 91}
    sizes = {"eval_short_side": 64, "eval_max_side": 96}
    values: dict[str, Any] = {
        "name": "tiny",
        "model": "conditional_detr_lite0",
        "options": options | sizes,
        "data": "COCO",
        "epochs": 1,
        "ap": 41.0,
        "source": "https://github.com/nobody/nothing",
        "address": address,
        "file": "tiny.pth",
        "size": len(place.data),
        "sha256": hashlib.sha256(place.data).hexdigest()[:8],
    }
    return OfficialFile(**values | changes)


def same(first: Detector, second: Detector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_list(here: Workplace) -> None:
    code, out, err = here.run("weights", "list")
    assert (code, err) == (0, "")
    for name in CATALOGUE:
        assert f"{name} " in out, "names are not cut"
    code, out, _ = here.run("weights", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() == CATALOGUE.keys()
    assert rows["detr_r50"]["sha256"] == "e632da11"
    assert rows["detr_r50"]["family"] == "detr"
    assert rows["detr_r50"]["licence"] == "Apache-2.0"
    assert rows["detr_r50"]["pulled"] is False


def test_pull_then_predict_and_evaluate_by_name(here: Workplace) -> None:
    code, _, err = here.run("weights", "inspect", "tiny")  # which fetches nothing by name, unlike predict
    assert code == 2
    assert err == (
        "detrkit: error: the published weights 'tiny' are not here yet: 'detrkit weights pull tiny' fetches it\n"
    )
    here.server.files["tiny.pth"].cuts = [len(here.data) // 3]
    code, out, err = here.run("weights", "pull", "tiny")
    assert (code, err) == (0, "")
    assert f"kept as {pulled_path('tiny')}" in out
    assert "next: detrkit predict IMAGES --model tiny" in out
    assert here.server.ranges == [None, f"bytes={len(here.data) // 3}-"]
    code, out, _ = here.run("weights", "pull", "tiny")
    assert "here already" in out
    assert here.run("predict", "photo.png", "--model", "tiny", "--threshold", 0, "--out", "found")[0] == 0
    found = json.loads(Path("found/predictions.json").read_text())
    assert {category["id"] for category in found["categories"]} <= set(range(1, 91))
    assert len(found["categories"]) == 80
    assert found["annotations"]


def test_pull_errors(here: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(message: str, *words: Any) -> None:
        code, out, err = here.run("weights", "pull", *words)
        assert (code, out) == (2, "")
        assert err.startswith("detrkit: error: ")
        assert err.count("\n") == 1
        assert message in err, err

    fails("no published checkpoint called 'tinny'. Did you mean 'tiny'?", "tinny")
    fails("by hand from https://drive.google.com", "dela_detr_r50_cityscapes_50ep")
    wrong = catalogue_entry(here, here.server.url("tiny.pth"), sha256="12345678")
    monkeypatch.setitem(CATALOGUE, "tiny", wrong)  # type: ignore[arg-type]  # a dict
    fails("that of the published file 12345678", "tiny")
    monkeypatch.setitem(CATALOGUE, "tiny", catalogue_entry(here, here.server.url("x.pth")))  # type: ignore[arg-type]  # a dict
    fails("HTTP 404", "tiny")
    other = create_model("detr_lite0", **TINY)
    torch.save({"model": detrkit.to_official(other)}, "other.pth")
    unknown = catalogue_entry(here, here.server.url("x.pth"), size=None, sha256=None)
    monkeypatch.setitem(CATALOGUE, "tiny", unknown)  # type: ignore[arg-type]  # a dict
    fails("unexpected (", "tiny", "--from", "other.pth")
    assert not pulled_path("tiny").exists()


def test_urls_in_predict(here: Workplace) -> None:
    url = here.server.url("tiny.pth")
    for out in ("one", "two"):
        with pytest.warns(UserWarning, match="num_heads=2 is assumed"):
            code, _, err = here.run("predict", "photo.png", "--model", url, "--threshold", 0, "--out", out)
        assert code == 0, err
    assert len(here.server.requests) == 1, "downloaded once"
    assert Path("one/results.json").read_bytes() == Path("two/results.json").read_bytes()
    assert json.loads(Path("one/results.json").read_text())
    code, _, err = here.run("predict", "photo.png", "--model", here.server.url("none.pth"))
    assert code == 2
    assert "none.pth: cannot be downloaded: HTTP 404" in err


def test_urls_in_eval(here: Workplace) -> None:
    """An official file with and without the name of its model, and one of our files."""
    data = coco_folder(here.folder / "data", {"a.png": IMAGE}, [("a.png", 3, [10, 20, 30, 30])])
    small = ["data.eval_short_side=64", "data.eval_max_side=96", "--workers", 0, "--device", "cpu", "--json"]
    url = here.server.url("tiny.pth")
    sizes = [f"model.{key}={value}" for key, value in TINY.items() if key not in ("num_classes", "backbone")]
    named = ["model.name=conditional_detr_lite0", *sizes]
    code, out, err = here.run("eval", "--data", data, "--checkpoint", url, *named, *small)
    assert code == 0, err
    score = json.loads(out)
    assert set(score["per_class"]) == {"red", "green", "blue"}
    with pytest.warns(UserWarning, match="num_heads=2 is assumed"):
        code, out, err = here.run("eval", "--data", data, "--checkpoint", url, *small)
    assert code == 0, err
    assert json.loads(out) == score
    ours = create_model("detr_lite0", **TINY)
    ours.categories = detrkit.Categories.from_json(
        [{"id": i, "name": n} for i, n in ((3, "red"), (5, "green"), (9, "blue"))]
    )
    here.server.files["best"] = Served(detrkit.save(ours, "ours.safetensors").read_bytes())
    code, _, err = here.run("eval", "--data", data, "--checkpoint", here.server.url("best"), *small)
    assert code == 0, err
    assert len(here.server.requests) == 2


def test_convert_back_and_forth(here: Workplace) -> None:
    code, out, err = here.run("weights", "convert", "tiny.pth")
    assert code == 0
    assert out == "tiny.safetensors: 'conditional_detr_lite0', 91 class slots, 80 of them named, 12 queries\n"
    assert "num_heads=2 is assumed" in err
    ours = detrkit.load("tiny.safetensors")
    assert same(ours, here.model)
    code, out, err = here.run("weights", "convert", "tiny.safetensors", "--official", "--out", "back.pth")
    assert code == 0, err
    assert "tensors under official names" in out
    back = torch.load("back.pth", weights_only=True)["model"]
    there = torch.load("tiny.pth", weights_only=True)["model"]
    assert back.keys() == there.keys()
    assert all(torch.equal(back[key], there[key]) for key in back)


def test_convert_writes_neither_into_the_cache_nor_over_its_source(here: Workplace) -> None:
    assert here.run("weights", "pull", "tiny")[0] == 0
    Path("tiny.pth").unlink()
    before = sorted(pulled_path("tiny").parent.iterdir())
    code, out, err = here.run("weights", "convert", "tiny", "--official")
    assert (code, err) == (0, "")
    assert out.startswith("tiny.pth: ")
    code, out, _ = here.run("weights", "convert", here.server.url("tiny.pth"))
    assert code == 0
    assert out.startswith("tiny.safetensors: ")
    assert sorted(pulled_path("tiny").parent.iterdir()) == before
    data = Path("tiny.pth").read_bytes()
    for words in (["tiny.pth", "--out", "./tiny.pth"], ["tiny.safetensors", "--official", "--out", "tiny.safetensors"]):
        code, _, err = here.run("weights", "convert", *words, "--force")
        assert code == 2
        assert "would be written over itself" in err
    assert Path("tiny.pth").read_bytes() == data


def test_convert_with_options_that_the_file_does_not_show(here: Workplace) -> None:
    Path("names.txt").write_text("\n".join(f"class of mine {label}" for label in range(91)))
    words = ["--model", "la_conditional_detr_r50", "backbone=tf_efficientnet_lite0", "num_heads=4", "nms=0.5"]
    code, out, err = here.run(
        "weights", "convert", "tiny.pth", *words, "--classes", "names.txt", "--out", "a.safetensors"
    )
    assert (code, err) == (0, "")
    assert "91 of them named" in out
    model = detrkit.load("a.safetensors")
    assert (model.name, model.config.nms) == ("la_conditional_detr_r50", 0.5)
    assert model.categories is not None
    assert model.categories.names[5] == "class of mine 5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pth"], "none.pth: no such checkpoint file"),
        (["tiny.pth", "--official"], "tiny.pth: is no checkpoint of ours"),
        (["tiny.pth", "--model", "detr_r5"], "there is no model 'detr_r5'. Did you mean 'detr_r50'"),
        (["tiny.pth", "--model", "detr_r50", "num_head=4"], "no option 'num_head'. Did you mean 'num_heads'"),
        (["tiny.pth", "--model", "de_detr_lite0"], "tiny.pth: weights do not fit model 'de_detr_lite0'"),
        (["tiny.pth", "--classes", "cityscapes"], "are 9 slots, but the checkpoint has 91"),
        (["tiny.pth", "--out", "photo.png"], "photo.png: exists already; pass --force"),
        (["ours.safetensors"], "ours.safetensors: is one of our checkpoints already; --official turns it"),
        (["ours.safetensors", "--official", "--classes", "coco"], "leave out --model, --classes and KEY=VALUE"),
    ],
)
def test_convert_refuses(here: Workplace, words: list[str], message: str) -> None:
    if words[0] == "ours.safetensors":
        detrkit.save(here.model, "ours.safetensors")
    code, out, err = here.run("weights", "convert", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("tiny.safetensors").exists()


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_unsafe_files_are_refused_everywhere(here: Workplace) -> None:
    torch.save({"model": Evil()}, "evil.pth")
    for words in (["weights", "inspect"], ["weights", "convert"], ["predict", "photo.png", "--model"]):
        code, _, err = here.run(*words, "evil.pth")
        assert code == 2
        assert "evil.pth: cannot be loaded safely (it holds a Python object" in err
    assert not Path("owned").exists()


def test_inspect(here: Workplace) -> None:
    code, out, err = here.run("weights", "inspect", "tiny.pth")
    assert (code, err) == (0, "")
    assert "tiny.pth: an official checkpoint" in out
    assert "conditional_detr_lite0 (family conditional_detr)" in out
    assert "91 slots: person, bicycle" in out
    detrkit.save(here.model, "ours.safetensors", recipe={"model": {"name": "conditional_detr_lite0", "init": None}})
    code, out, _ = here.run("weights", "inspect", "ours.safetensors")
    assert "ours.safetensors: a checkpoint of detrkit" in out
    assert "name: conditional_detr_lite0" in out
    assert "init" not in out
    state = detrkit.to_official(here.model)
    state["some.[new].weight"] = state.pop("query_embed.weight")
    torch.save(state, "other.pth")
    code, out, _ = here.run("weights", "inspect", "other.pth")
    assert code == 0
    assert "an unknown layout" in out
    assert "some.[new].weight" in out
    code, out, _ = here.run("weights", "inspect", "other.pth", "--json")
    found = json.loads(out)
    assert (found["kind"], found["model"]) == ("unknown", "conditional_detr_lite0")
    assert [(group["kind"], group["count"]) for group in found["difference"]] == [("missing", 1), ("unexpected", 1)]
