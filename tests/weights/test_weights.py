"""Our checkpoints, official checkpoints, and files that cannot be trusted."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.errors import CheckpointError
from detrkit.models import Detector, create_model
from detrkit.structures import Categories, Category
from detrkit.weights import read_info
from detrkit.weights.official.load import official_names
from tests.small import SMALL


def small(name: str = "de_detr_r50", seed: int = 0, **overrides: Any) -> Detector:
    torch.manual_seed(seed)
    return create_model(name, **{**SMALL, **overrides})


def same(first: Detector, second: Detector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_save_and_load_keep_weights_configuration_and_classes(tmp_path: Path) -> None:
    model = small("dela_detr_r50", roi_resolution=3)
    model.categories = Categories([Category(7, "cat"), Category(9, "dog"), Category(40, None)])
    path = detrkit.save(model, tmp_path / "new" / "model.safetensors", recipe={"a": 1}, extra={"AP": 0.5})
    loaded = detrkit.load(path)
    assert same(model, loaded)
    assert loaded.config == model.config
    assert loaded.name == "dela_detr_r50"
    assert loaded.categories == model.categories
    assert not loaded.training
    info = read_info(path)
    assert info.recipe == {"a": 1}
    assert info.extra == {"AP": 0.5}


def test_half_precision_files_are_half_as_large_and_load_as_float32(tmp_path: Path) -> None:
    model = small()
    whole, half = (detrkit.weights.save(model, tmp_path / name, half=name == "half") for name in ("whole", "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert all(value.dtype != torch.float16 for value in detrkit.load(half).state_dict().values())


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = detrkit.save(small(), tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detrkit.weights.ours.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        detrkit.save(small(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file; run folders and names"):
        detrkit.load(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        detrkit.load(broken)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no detrkit metadata"):
        detrkit.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("detr_r50", {}),
        ("detr_r50", {"position_embedding": "learned", "pre_norm": True}),
        ("de_detr_r50", {}),
        ("de_detr_r50", {"num_feature_levels": 4}),
        ("de_detr_r50_single_scale", {}),
        ("conditional_detr_r50", {}),
        ("de_conditional_detr_r50", {"refine_boxes": False}),
    ],
)
def test_official_names_are_written_and_read(name: str, overrides: dict[str, Any]) -> None:
    model = small(name, **overrides)
    official = detrkit.to_official(model)
    other = small(name, seed=1, **overrides)
    assert not same(model, other)
    detrkit.load_official(other, official)
    assert same(model, other)


def test_training_checkpoints_with_argparse_namespaces_load_safely(tmp_path: Path) -> None:
    model = small()
    state = {f"module.{key}": value for key, value in detrkit.to_official(model).items()}
    state["module.transformer.total_ops"] = torch.zeros(1)
    state["_classes_"] = torch.zeros(1)
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, tmp_path / "official.pth")
    other = small(seed=1)
    report = detrkit.load_official(other, tmp_path / "official.pth")
    assert same(model, other)
    assert len(report.ignored) == 2


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_files_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "raw.pkl"):
        with pytest.raises(CheckpointError, match="cannot be loaded safely") as stop:
            detrkit.load_official(small(), tmp_path / name)
        assert "weights_only" not in str(stop.value), "torch's advice to load it unsafely is not passed on"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"garbage" * 30, b"PK\x03\x04 cut off"])
def test_damaged_files_are_reported(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\.pth: .*\(it is damaged or no checkpoint\)"):
        detrkit.load_official(small(), path)


def test_exported_models_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"model\.onnx: is an exported model; give the checkpoint that it was"):
        detrkit.load_official(small(), path)


def test_aliases_must_agree() -> None:
    state = detrkit.to_official(small())
    alias = "transformer.decoder.bbox_embed.0.layers.0.weight"
    state[alias] = state[alias] + 1
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        detrkit.load_official(small(), state)
    del state[alias]
    detrkit.load_official(small(), state)  # one of the names is enough


def test_errors_list_keys_and_give_advice() -> None:
    state = detrkit.to_official(small())
    del state["query_embed.weight"]
    state["surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 missing \(query_embed.weight\); 1 unexpected \(surprise\)"):
        detrkit.load_official(small(), state)
    with pytest.raises(CheckpointError, match=r"missing \(.*unexpected \(.*looks like 'de_detr_lite0'"):
        detrkit.load_official(small("detr_r50"), detrkit.to_official(small()))


HEADS = ["detr_r50", "conditional_detr_r50", "de_detr_r50", "de_detr_r50_single_scale", "de_conditional_detr_r50"]


TINY: dict[str, Any] = {"backbone": "test_resnet", "hidden_dim": 32, "num_heads": 1}


@pytest.mark.parametrize("ours", [False, True], ids=["official", "ours"])
@pytest.mark.parametrize(("classes", "queries"), [(5, 20), (2, 5), (3, 20), (5, 12)])
@pytest.mark.parametrize("name", HEADS)
def test_partial_loading_keeps_what_fits(name: str, classes: int, queries: int, ours: bool, tmp_path: Path) -> None:
    """More or fewer classes and queries than the model's 3 and 12; softmax and focal, shared and per-layer heads."""
    source = small(name, num_classes=classes, num_queries=queries, **TINY)
    given: Any = detrkit.save(source, tmp_path / "m.safetensors") if ours else detrkit.to_official(source)
    model = small(name, seed=1, **TINY)
    with pytest.raises(CheckpointError, match="pass new_head=True"):
        detrkit.load_official(model, given)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = detrkit.load_official(model, given, new_head=True)
    after, theirs = model.state_dict(), source.state_dict()
    heads = {key for key in after if key.startswith("class_embed.")} if classes != 3 else set()
    assert set(report.fresh) == heads | ({"query_embed.weight"} if queries != 12 else set())
    for key, value in after.items():
        if key in heads:
            assert torch.equal(value, before[key]), key
        elif key == "query_embed.weight":
            both = min(queries, 12)
            assert torch.equal(value[:both], theirs[key][:both])
            assert torch.equal(value[both:], before[key][both:])
        else:
            assert torch.equal(value, theirs[key]), key
    extra = model.config.classification == "softmax"
    assert report.classes == ((classes + extra, 3 + extra) if heads else None)
    assert report.queries == ((queries, 12) if queries != 12 else None)
    assert len(report.remarks()) == (classes != 3) + (queries != 12)


def test_remarks_of_partial_loading() -> None:
    model = small("conditional_detr_r50")
    report = detrkit.load_official(
        model, detrkit.to_official(small("conditional_detr_r50", num_classes=7, num_queries=4)), new_head=True
    )
    assert report.remarks() == [
        "7 class outputs in the file, 3 here: 2 tensors of the class heads start new",
        "4 queries in the file, 12 here: 4 are taken over, 8 start new",
    ]


GROUPED: dict[str, Any] = {**TINY, "decoder_layers": 1, "groups": 3}


@pytest.mark.parametrize("form", ["names", "official", "ours"])
@pytest.mark.parametrize("queries", [4, 20])
def test_partial_loading_within_query_groups(queries: int, form: str, tmp_path: Path) -> None:
    source = small("group_conditional_detr_r50", num_queries=queries, **GROUPED)
    given: Any = detrkit.to_official(source)
    if form == "official":
        torch.save({"model": given, "args": argparse.Namespace(group_detr=3)}, tmp_path / "x.pth")
        given = tmp_path / "x.pth"
    elif form == "ours":
        given = detrkit.save(source, tmp_path / "x.safetensors")
    model = small("group_conditional_detr_r50", seed=1, **GROUPED)
    theirs, before = (one.state_dict()["query_embed.weight"].clone().view(3, -1, 32) for one in (source, model))
    report = detrkit.load_official(model, given, new_head=True)
    after = model.state_dict()["query_embed.weight"].view(3, 12, 32)
    both = min(queries, 12)
    assert torch.equal(after[:, :both], theirs[:, :both])
    assert torch.equal(after[:, both:], before[:, both:])
    end = (
        "4 are taken over, 8 start new in each of 3 groups" if queries == 4 else "12 are taken over in each of 3 groups"
    )
    assert report.remarks() == [f"{queries} queries in the file, 12 here: {end}"]


def test_partial_loading_between_numbers_of_groups(tmp_path: Path) -> None:
    plain = {**GROUPED, "groups": 1}
    grouped = small("group_conditional_detr_r50", num_queries=6, **GROUPED)
    path = detrkit.save(grouped, tmp_path / "x.safetensors")
    model = small("conditional_detr_r50", seed=1, **plain)
    before = model.state_dict()["query_embed.weight"].clone()
    report = detrkit.load_official(model, path, new_head=True)
    after = model.state_dict()["query_embed.weight"]
    assert torch.equal(after[:6], grouped.state_dict()["query_embed.weight"][:6]), "the group used for inference"
    assert torch.equal(after[6:], before[6:]), "and no other group"
    assert report.remarks() == [
        "6 queries in the file, 12 here: 6 are taken over, 6 start new",
        "3 groups of queries in the file, 1 here: 1 are taken over",
    ]
    source = small("conditional_detr_r50", num_queries=10, **plain)
    report = detrkit.load_official(grouped, detrkit.to_official(source), new_head=True)
    assert report.groups == (1, 3), "10 is not divisible by 3"
    assert torch.equal(grouped.state_dict()["query_embed.weight"][:6], source.state_dict()["query_embed.weight"][:6])


def test_partial_loading_is_for_heads_and_queries_only() -> None:
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wider = detrkit.to_official(small(ffn_dim=96, num_classes=5))
    with pytest.raises(CheckpointError, match=r"mismatched \(.*linear1.* \(96,\) instead of \(64,\)"):
        detrkit.load_official(model, wider, new_head=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "unchanged"


def test_our_own_files_are_read_under_our_names(tmp_path: Path) -> None:
    source = small("dela_detr_r50", **TINY)
    model = small(seed=1, **TINY)
    detrkit.load_official(model, detrkit.weights.save(source, tmp_path / "half.safetensors", half=True))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key], atol=1e-3, rtol=1e-3)
    path = detrkit.save(small("detr_r50", **TINY), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: weights do not fit .* holds a 'detr_r50'"):
        detrkit.load_official(model, path)


def test_shared_heads_have_one_name_per_layer() -> None:
    model = small("de_detr_r50_single_scale")
    names = official_names(model)["bbox_embed.0.layers.0.weight"]
    assert names[:2] == ["bbox_embed.0.layers.0.weight", "bbox_embed.1.layers.0.weight"]
    assert len(names) == 4


def test_backbone_weights_from_a_file(tmp_path: Path) -> None:
    import timm

    reference = timm.create_model("resnet18", pretrained=False)
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    model = create_model("detr_r50", **{**SMALL, "backbone": "resnet18"}, pretrained_backbone=tmp_path / "resnet18.pth")
    assert torch.equal(model.state_dict()["backbone.body.conv1.weight"], reference.conv1.weight)
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the weights of timm's 'resnet18'"):
        create_model("detr_r50", **{**SMALL, "backbone": "resnet18"}, pretrained_backbone=tmp_path / "other.pth")
