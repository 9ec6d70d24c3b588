"""Checkpoints that are readable but cannot be meant: metadata of another form, weights that are not numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from detrkit.errors import CheckpointError
from detrkit.inference.predictor import Predictor
from detrkit.models import Detector
from detrkit.structures import Categories, Category
from detrkit.weights import load, load_official, open_official, read_info, save, save_official, to_official
from tests.small import small_model

CLASSES = Categories([Category(3, "cell"), Category(4, "rod"), Category(9, "dust")])


@pytest.fixture
def model() -> Detector:
    model = small_model("detr_lite0")
    model.categories = CLASSES
    return model


@pytest.fixture
def file(model: Detector, tmp_path: Path) -> Path:
    return save(model, tmp_path / "m.safetensors")


def rewrite(file: Path, text: str) -> None:
    save_file(load_file(file), file, metadata={"detrkit": text})


def metadata(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["detrkit"])
        return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops", "is no JSON"),
        ("", "is no JSON"),
        ("[]", "is a list, not a mapping"),
        ("null", "is a NoneType, not a mapping"),
        ("{}", "has no 'name', where there should be str"),
        ("7", "is a int, not a mapping"),
    ],
)
def test_metadata_that_are_no_mapping(file: Path, text: str, message: str) -> None:
    rewrite(file, text)
    for read in (read_info, load):
        with pytest.raises(CheckpointError, match=f"^{file}: its detrkit metadata {message}.*take the original file"):
            read(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config", None, "has config = None, where there should be dict"),
        ("config", [1], r"has config = \[1\]"),
        ("name", ["x"], r"has name = \['x'\], where there should be str"),
        ("categories", "abc", "has categories = 'abc'"),
        ("categories", [1], "has categories that are not {id, name} each"),
        ("categories", [{"name": "x"}], "has categories that are not {id, name} each"),
        ("categories", [{"id": "x", "name": "x"}], "has categories that are not {id, name} each"),
        ("categories", [{"id": 1, "name": ["x"]}], "has a class with the name"),
        ("categories", [{"id": 1, "name": "x", "color": [1]}], "has categories that are not {id, name} each"),
        ("categories", [{"id": 1, "name": "x"}], "names 1 classes, but its model has 3"),
        ("categories", [], "names 0 classes, but its model has 3"),
        ("recipe", "x", "has recipe = 'x'"),
        ("extra", 7, "has extra = 7"),
        ("thresholds", [0.5], r"has thresholds = \[0.5\]"),
        ("thresholds", {"per_class": [0.5, 0.5, 0.5]}, "has thresholds that cannot be used .'overall' is not a number"),
        ("thresholds", {"overall": 2, "per_class": []}, "has thresholds that cannot be used .*between 0 and 1"),
        ("thresholds", {"overall": 0.5, "per_class": [0.5]}, "has thresholds of 1 classes, but its model has 3"),
    ],
)
def test_metadata_of_other_types(file: Path, key: str, value: Any, message: str) -> None:
    rewrite(file, json.dumps({**metadata(file), key: value}))
    with pytest.raises(CheckpointError, match=f"its detrkit metadata {message}"):
        load(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_heads", 0),
        ("num_queries", "x"),
        ("hidden_dim", -5),
        ("backbone", 7),
        ("encoder_layers", None),
        ("no_such", 1),
    ],
)
def test_a_configuration_that_builds_no_model(file: Path, key: str, value: Any) -> None:
    found = metadata(file)
    rewrite(file, json.dumps({**found, "config": {**found["config"], key: value}}))
    with pytest.raises(
        CheckpointError, match=f"^{file}: (made for a model this version cannot build|weights do not fit)"
    ):
        load(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(model: Detector, tmp_path: Path, value: float) -> None:
    """With NaN a model finds nothing, in silence."""
    name, parameter = list(model.named_parameters())[-1]
    parameter.data.view(-1)[0] = value
    message = rf"1 of \d+ tensors hold NaN or infinity, the first is '{name}'"
    file = save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=f"^{file}: {message}"):
        Predictor(file, device="cpu")
    assert torch.equal(load(file, check_finite=False).state_dict()[name], parameter) or value != value
    official = save_official(model, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="hold NaN or infinity"):
        open_official(official, name="detr_lite0", options={"num_heads": 4})
    other = small_model("detr_lite0", seed=1)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message.split(" tensors")[1]):
        load_official(other, to_official(model))
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items()), "unchanged"
    load_official(other, to_official(model), check_finite=False)
