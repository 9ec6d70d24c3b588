"""Initial weights from a checkpoint: same classes, other classes, another family, official files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detrkit import weights
from detrkit.config import load_recipe
from detrkit.errors import CheckpointError, RecipeError
from detrkit.models import Detector, create_model
from detrkit.structures import Categories, Category
from detrkit.training.task import build_model
from tests.weights.server import Served, serving

OF: dict[str, dict[str, object]] = {"de_detr_lite0": {}, "dape_lite0": {"one_to_many_queries": 6}}
SMALL = {"num_queries": 5, "hidden_dim": 96, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32}


def classes(*names: str) -> Categories:
    return Categories(Category(number, name) for number, name in enumerate(names, start=1))


def build(name: str, categories: Categories, init: Path | str | None, **options: object) -> Detector:
    section = {"name": name, "pretrained_backbone": False, "init": init and str(init)} | SMALL | options
    return build_model(load_recipe({"model": section}), categories)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two classes."""
    model = build("de_detr_lite0", classes("cat", "dog"), None)
    return weights.save(model, tmp_path_factory.mktemp("init") / "start.safetensors")


def differing(a: Detector, b: Detector) -> set[str]:
    other = b.state_dict()
    return {
        name
        for name, value in a.state_dict().items()
        if value.shape != other[name].shape or not torch.equal(value, other[name])
    }


def test_the_same_number_of_classes_loads_everything(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("de_detr_lite0", classes("bird", "fish"), saved)
    assert differing(model, weights.load(saved)) == set()
    assert model.categories == classes("bird", "fish")
    assert "the head trained as cat, dog is kept for bird, fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (("cat", "dog"), [0, 1], ""),
        (("dog", "cat"), [1, 0], "the rows of the class heads follow the names dog, cat"),
        (("dog", "fish"), [1, 0], "follow the names dog; the head trained as cat is kept for fish"),
        (("Dog", " CAT "), [1, 0], "the rows of the class heads follow the names Dog,  CAT "),
        (("DOG", "dog"), [0, 1], "follow the names dog; the head trained as cat is kept for DOG"),
    ],
)
def test_rows_of_the_class_heads_follow_the_names(
    saved: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], rows: list[int], said: str
) -> None:
    model, old = build("de_detr_lite0", classes(*names), saved).state_dict(), weights.load(saved).state_dict()
    heads = [key for key in old if key.startswith("class_embed.")]
    assert heads
    for key in heads:
        assert torch.equal(model[key], old[key][[*rows, 2]]), "no-object is the last row and stays there"
    lines = capsys.readouterr().err
    assert said in lines if said else lines == ""


def test_other_classes_start_a_new_head_with_a_remark(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("de_detr_lite0", classes("a", "b", "c"), saved)
    changed = differing(model, weights.load(saved))
    assert changed
    assert all("class_embed" in name for name in changed)
    assert model.config.num_classes == 3
    assert "3 class outputs in the file, 4 here: 4 tensors of the class heads start new" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["de_detr_lite0", "dape_lite0"])
@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (
            ("fish", "dog", "cat"),
            [None, 1, 0],
            "the rows of the class heads follow the names dog, cat; fish starts new",
        ),
        (("dog",), [1], "the rows of the class heads follow the names dog\n"),
        (("a", "b", "dog", "c"), [None, None, 1, None], "follow the names dog; a, b, c start new"),
        (("a", "Dog", "b_c", "Cat"), [None, 1, None, 0], "follow the names Dog, Cat; a, b_c start new"),
    ],
)
def test_rows_are_copied_by_name_from_a_detector_with_other_classes(
    name: str,
    names: tuple[str, ...],
    rows: list[int | None],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = build(name, classes("cat", "dog"), None, **OF[name])
    for key, value in old.state_dict().items():  # also biases, which all start alike
        if any(part in key for part in ("class_embed", "label_encoder")):
            value.copy_(torch.randn(value.shape))
    path = weights.save(old, tmp_path / "start.safetensors")
    torch.manual_seed(1)
    fresh = build(name, classes(*names), None, **OF[name]).state_dict()
    torch.manual_seed(1)
    model = build(name, classes(*names), path, **OF[name]).state_dict()
    assert said in capsys.readouterr().err
    heads = [key for key in model if any(part in key for part in ("class_embed", "label_encoder"))]
    assert any("label_encoder" in key for key in heads) == (name == "dape_lite0")
    for key in heads:
        given = old.state_dict()[key]
        for place, row in enumerate(rows):
            assert torch.equal(model[key][place], fresh[key][place] if row is None else given[row]), key
        assert torch.equal(model[key][len(rows) :], given[2:]), "no-object is the last row and stays there"


def test_rows_are_copied_by_name_from_an_official_file_of_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32, "backbone": "resnet18"}
    source = create_model("detr_r50", num_classes=91, **settings)
    torch.save({"model": weights.to_official(source)}, tmp_path / "official.pth")
    section = {"name": "detr_r50", "pretrained_backbone": False, "init": str(tmp_path / "official.pth")} | settings
    model = build_model(load_recipe({"model": section}), classes("nucleus", "dog", "person")).state_dict()
    old = source.state_dict()["class_embed.weight"]
    assert torch.equal(model["class_embed.weight"][1:], old[[18, 1, 91]])
    assert "follow the names dog, person; nucleus starts new" in capsys.readouterr().err


def test_label_augmentation_may_be_added(saved: Path) -> None:
    model = build("dela_detr_lite0", classes("cat", "dog"), saved)
    assert differing(model, weights.load(saved)) == set()


def test_another_family(saved: Path) -> None:
    message = r"start\.safetensors: weights do not fit model 'detr_lite0': \d+ missing .*holds a 'de_detr_lite0'"
    with pytest.raises(CheckpointError, match=message) as e:
        build("detr_lite0", classes("cat", "dog"), saved)
    assert e.value.exit_code == 2


@pytest.mark.parametrize("queries", [3, 7])
def test_another_number_of_queries(saved: Path, queries: int, capsys: pytest.CaptureFixture[str]) -> None:
    model, other = build("de_detr_lite0", classes("cat", "dog"), saved, num_queries=queries), weights.load(saved)
    assert differing(model, other) == {"query_embed.weight"}
    both = min(queries, 5)
    assert torch.equal(model.query_embed.weight[:both], other.query_embed.weight[:both])
    new = ", 2 start new" if queries == 7 else ""
    assert f"5 queries in the file, {queries} here: {both} are taken over{new}\n" in capsys.readouterr().err


def test_shapes_that_differ_elsewhere(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\d+ mismatched .*linear1.* instead of"):
        build("de_detr_lite0", classes("cat", "dog"), saved, ffn_dim=64)


def test_a_run_folder_a_url_or_a_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(saved.read_bytes())
    assert differing(build("de_detr_lite0", classes("cat", "dog"), tmp_path / "run"), weights.load(saved)) == set()
    with serving() as server:
        server.files["start"] = Served(saved.read_bytes())
        model = build("de_detr_lite0", classes("cat", "dog"), server.url("start"))
    assert differing(model, weights.load(saved)) == set()
    with pytest.raises(CheckpointError, match=r"'detrkit weights pull detr_r50' fetches it \(model\.init\)"):
        build("de_detr_lite0", classes("cat", "dog"), "detr_r50")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such checkpoint file \(model\.init\)"):
        build("de_detr_lite0", classes("cat"), tmp_path / "none.safetensors")
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(CheckpointError, match=name):
            build("de_detr_lite0", classes("cat"), tmp_path / name)


def test_official_file_gets_a_new_head(tmp_path: Path) -> None:
    settings = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32, "backbone": "resnet18"}
    source = create_model("detr_r50", num_classes=91, **settings)
    torch.save({"model": weights.to_official(source)}, tmp_path / "official.pth")
    section = {"name": "detr_r50", "pretrained_backbone": False, "init": str(tmp_path / "official.pth")} | settings
    model = build_model(load_recipe({"model": section}), classes("cat", "dog"))
    changed = differing(model, source)
    assert changed
    assert all("class" in name for name in changed)


def test_class_count_that_contradicts_the_data() -> None:
    with pytest.raises(RecipeError, match=r"model\.num_classes = 91, but the data set data has 2 classes"):
        build("de_detr_lite0", classes("cat", "dog"), None, num_classes=91)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("de_detr_lite9", {}, r"no model 'de_detr_lite9'.*Did you mean 'de_detr_lite0'"),
        ("de_detr_lite0", {"num_querys": 5}, r"no option 'num_querys'.*Did you mean 'num_queries'"),
        ("de_detr_lite0", {"num_queries": 0}, r"num_queries must be at least 1, got 0"),
        ("de_detr_lite0", {"backbone": "resnet_5"}, r"no backbone 'resnet_5'"),
    ],
)
def test_models_that_cannot_be_built(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(name, classes("cat", "dog"), None, **options)


def test_image_sizes_of_the_recipe_are_part_of_the_model_configuration() -> None:
    sizes = {"short_sides": [64, 96], "max_side": 128, "eval_short_side": 80, "eval_max_side": 100}
    section = {"name": "de_detr_lite0", "pretrained_backbone": False} | SMALL
    config = build_model(load_recipe({"model": section, "data": sizes}), classes("cat")).config
    assert (config.train_short_sides, config.train_max_side) == ((64, 96), 128)
    assert (config.eval_short_side, config.eval_max_side) == (80, 100)


def test_missing_backbone_weights_are_named(tmp_path: Path) -> None:
    section = {"name": "de_detr_lite0", "backbone_weights": str(tmp_path / "none.pth")} | SMALL
    with pytest.raises(CheckpointError, match=r"none\.pth: backbone weights not found"):
        build_model(load_recipe({"model": section}), classes("cat"))
