"""Tests of every registered model. New names are included automatically: small here, in full size in `test-all`."""

from __future__ import annotations

import contextlib
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import detrkit
from detrkit.models import list_models
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.structures import Predictions
from tests.models.tester import (
    CLASSES,
    LAYERS,
    QUERIES,
    Case,
    Tools,
    add_noise_to_weights,
    images,
    objects,
    representatives,
    step,
    train_without_batch_statistics,
)
from tests.small import small_model


def _case(name: str, *marks: pytest.MarkDecorator, full: bool = False) -> Any:
    """Mark a case so that all tests of one model run on one worker, which builds the model once."""
    return pytest.param(
        (name, full), id=f"{name}-full" if full else name, marks=[pytest.mark.xdist_group(name), *marks]
    )


SMALL = [_case(name) for name in list_models()]
FULL = [_case(name, pytest.mark.slow, full=True) for name in list_models()]


def _of(cases: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, indirect=True, scope="module")


def _quick_only_for(names: set[str]) -> list[Any]:
    """Return cases for slower tests: these names in `make test`, all other names in `make test-all`."""
    return [_case(name) if name in names else _case(name, pytest.mark.slow) for name in list_models()]


every_model = _of(SMALL)
every_model_in_both_sizes = _of(SMALL + FULL)
every_family = _of(_quick_only_for(representatives()))
# Tracing takes 5 to 60 s per model. Swin with unknown sides did not finish within ten minutes.
_TRACED = {"de_detr_r50"}
quickly_exported = _of([case for case in _quick_only_for(_TRACED) if "swin" not in str(case.id)])
the_default = _of(_quick_only_for({DEFAULT_MODEL}))


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """One case for all tests of a model, so that they share the model and its outputs."""
    name, full = request.param
    return Case(name, full=full)


def assert_same(found: Predictions, wanted: Predictions) -> None:
    """Compare up to float32 rounding: other orders of summation change logits by about 1e-6."""
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes, wanted.boxes, atol=1e-5, rtol=0)


def assert_identical(found: Predictions, wanted: Predictions) -> None:
    """Compare exactly, for the same operations on the same shapes."""
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.boxes, wanted.boxes)


# ------------------------------------------------------------------------------------------------- forward and backward


@every_model_in_both_sizes
def test_forward_returns_the_documented_shapes(case: Case) -> None:
    out = case.evaluated
    layers, batch, queries, classes = out.logits.shape
    assert out.boxes.shape == (layers, batch, queries, 4)
    assert (batch, classes - CLASSES in (0, 1)) == (2, True)
    if not case.full:
        assert (layers, queries) == (LAYERS, QUERIES)
    assert out.logits.isfinite().all()
    assert ((out.boxes >= 0) & (out.boxes <= 1)).all()
    assert out.groups == {}
    assert out.heatmaps == {}
    assert case.trained.out.logits.shape == out.logits.shape
    assert case.trained.out.boxes.shape == out.boxes.shape


@every_model_in_both_sizes
def test_losses_are_finite_and_every_group_has_its_own(case: Case) -> None:
    found, out = case.trained.losses, case.trained.out
    assert found.total.isfinite()
    assert found.total > 0
    assert not [name for name, value in found.terms.items() if not value.isfinite()]
    endings = ["", *(f"_{name}" for name in out.groups)]
    wanted = {f"loss_{term}{ending}" for term in ("class", "bbox", "giou") for ending in endings}
    assert wanted | {f"loss_{name}" for name in out.heatmaps} <= found.terms.keys()


# Parameters that are used but can have a gradient of zero, and the reason.
IDLE = {
    r"decoder\.layers\.0\.self_attn\.(query_content|key_content|value)\.weight": "content starts at zero "
    "and Conditional DETR projects it separately from positions, so the first layer projects zeros",
    r"neck\..+\.se_module\.conv_mask\.(weight|bias)": "softmax over cells: a constant cancels, one cell has weight 1",
}
IDLE_IF_SMALL = {
    r"neck\..+\.se_module\.se_module\..+": "after a ReLU of hidden_dim / 16 units without bias: all 4 can be off"
}


@every_model_in_both_sizes
def test_training_reaches_every_parameter(case: Case) -> None:
    """Unused parameters, as of the relation of Deformable DETR++, are not trainable."""
    gradients = case.trained.gradients
    assert not [name for name, value in gradients.items() if value is None]
    assert not [name for name, value in gradients.items() if not value.isfinite().all()]
    expected = IDLE if case.full else IDLE | IDLE_IF_SMALL
    idle = [name for name, value in gradients.items() if not value.any()]
    assert not [name for name in idle if not any(re.fullmatch(pattern, name) for pattern in expected)]


@every_model
def test_every_trainable_parameter_is_in_one_group(case: Case) -> None:
    grouped = [id(parameter) for group in case.model.parameter_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in case.model.parameters() if parameter.requires_grad)


@every_model
def test_training_and_evaluation_predict_the_same(case: Case) -> None:
    """Without dropout, and with batch norm in evaluation mode."""
    assert_same(case.trained.out, case.evaluated)


@every_model
def test_targets_do_not_change_the_matching_queries(case: Case) -> None:
    with torch.no_grad():
        assert_identical(case.model(*case.images, case.targets), case.evaluated)  # targets are ignored in evaluation
        model = case.copy()
        train_without_batch_statistics(model)
        assert_same(case.trained.out, model(*case.images))


# ------------------------------------------------------------------------------------------------------ unusual batches


@every_model
def test_masked_padding_makes_an_image_independent_of_its_batch(case: Case) -> None:
    sizes = ((75, 99), (96, 130), (64, 64))
    try:
        model = small_model(case.name, mask_backbone_padding=True).eval()
    except ValueError as error:
        assert re.match("mask_backbone_padding: .* averages or attends over the whole canvas", str(error))  # noqa: PT017  # either
        return
    add_noise_to_weights(model)
    padded, mask = images(*sizes)
    with torch.no_grad():
        together = model(padded, mask)
        for index, (height, width) in enumerate(sizes):
            own = slice(index, index + 1)
            alone = model(padded[own, :, :height, :width])
            assert_same(Predictions(together.logits[:, own], together.boxes[:, own]), alone)


@every_model
@pytest.mark.parametrize("counts", [(0, 0), (0, 30)], ids=["none", "none and more than queries"])
def test_any_number_of_objects_trains(case: Case, counts: tuple[int, int]) -> None:
    """Even without objects every parameter is in the graph, as distributed training requires."""
    model = case.copy()
    train_without_batch_statistics(model)
    crowded = max(counts) > QUERIES
    warned = pytest.warns(UserWarning, match=f"{max(counts)} objects but the model only {QUERIES} queries")
    with warned if crowded else contextlib.nullcontext():
        found = step(model, case.images, objects(*counts))
    assert found.losses.total.isfinite()
    assert not [name for name, value in found.gradients.items() if value is None or not value.isfinite().all()]


@every_model
def test_images_of_any_shape_train_and_predict(case: Case) -> None:
    sizes = ((12, 120), (120, 12), (40, 40))
    model, batch = case.copy().train(), images(*sizes)
    assert step(model, batch, objects(1, 5, 0)).losses.total.isfinite()
    with torch.no_grad():
        out = model.eval()(*batch)
    assert all(len(found) > 0 for found in Tools(model.config).detections(out, sizes))


@every_model
def test_one_class_and_fewer_tokens_than_queries(case: Case) -> None:
    model, batch = small_model(case.name, num_classes=1, num_queries=200).train(), images((32, 32))
    targets = objects(2)
    targets[0].labels.zero_()
    assert step(model, batch, targets).losses.total.isfinite()
    with torch.no_grad():
        out = model.eval()(*batch)
    assert out.logits.shape[-1] in (1, 2)
    (found,) = Tools(model.config).detections(out, [(32, 32)])
    assert len(found) > 0
    assert set(found.labels) == {0}


# ------------------------------------------------------------------------------------------------- options of training

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"repeat_label": None, "nms": None},
    "repeat": {"repeat_label": 2},
    "ratio": {"repeat_ratio": 0.5},
    "two_stage": {"repeat_label": 2, "two_stage_match": True},
    "nms": {"nms": 0.5, "nms_decay": None},
    "soft_nms": {"nms": 0.7, "nms_decay": 0.01},
}


@every_model
@pytest.mark.filterwarnings("ignore:an image has 30 objects")
@pytest.mark.parametrize("option", OPTIONS)
def test_label_augmentation_and_nms_work(case: Case, option: str) -> None:
    """They do not affect the weights, so one model serves all options."""
    tools = case.with_options(**OPTIONS[option])
    for count in (0, 1, 30):  # nothing, one object, more than there are queries
        prepared = tools.criterion.prepare(case.objects(count, 1))
        assert tools.criterion(case.evaluated, prepared).total.isfinite()
        wanted = {"repeat": 2 * count, "two_stage": 2 * count, "ratio": max(count, QUERIES // 2 * bool(count))}
        if option in wanted:
            assert len(prepared[0]) == wanted[option]
    maximum = QUERIES * CLASSES if case.focal else QUERIES  # with focal loss, a query can have several classes
    for found in tools.detections(case.evaluated, [(48, 64), (64, 48)]):
        assert len(found) <= maximum
        assert (found.scores[:-1] >= found.scores[1:]).all()
        if option in ("plain", "soft_nms"):  # nothing is removed
            assert len(found) == maximum


def _steps_in_bfloat16(case: Case, number: int) -> None:
    model = case.copy().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    torch.manual_seed(0)
    for _ in range(number):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*case.images, case.targets)
        found = Tools(model.config).losses(out, case.targets)
        assert (out.boxes.dtype, found.total.dtype) == (torch.float32, torch.float32)
        assert found.total.isfinite()
        optimizer.zero_grad()
        found.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.detect(model).boxes.isfinite().all()


@every_model
def test_a_step_in_bfloat16(case: Case) -> None:
    _steps_in_bfloat16(case, 1)


@the_default
def test_twenty_steps_in_bfloat16_stay_finite(case: Case) -> None:
    _steps_in_bfloat16(case, 20)


# --------------------------------------------------------------------------------------------------------------- copies


@every_model_in_both_sizes
def test_saved_and_loaded_it_is_the_same(case: Case, tmp_path: Path) -> None:
    loaded = detrkit.load(detrkit.save(case.model, tmp_path / "model.safetensors"))
    assert (type(loaded), loaded.name, loaded.config) == (type(case.model), case.name, case.model.config)
    assert_identical(case.detect(loaded), case.evaluated)


@every_model
def test_official_names_round_trip(case: Case) -> None:
    official = detrkit.to_official(case.model)
    other = case.copy()
    with torch.no_grad():
        for value in other.state_dict().values():
            value.add_(1)
    report = detrkit.load_official(other, official)
    own = case.model.state_dict()
    assert not report.fresh
    assert all(
        torch.equal(value, own[key]) or key.endswith("num_batches_tracked") for key, value in other.state_dict().items()
    )


@every_model
def test_copied_and_pickled_it_is_the_same(case: Case) -> None:
    for other in (case.copy(), pickle.loads(pickle.dumps(case.model))):
        assert other.config == case.model.config
        assert_identical(case.detect(other), case.evaluated)


class Tuple(nn.Module):
    """A detector for export: tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), (B, H, W) bool -> logits (L, B, Q, C), boxes (L, B, Q, 4)."""
        out = self.model(images, padding_mask)
        return out.logits, out.boxes


@quickly_exported
def test_exported_it_takes_batches_of_any_size(case: Case) -> None:
    """Sizes are larger than the coarsest stride, since a level of one cell is traced as another program.

    One image of each batch fills the canvas, as Salience-DETR's exported filter assumes. ConvNeXt's maps are cropped if
    a side is not a multiple of 32, which is also traced as another program: its sizes are multiples.
    """
    size = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    shapes = {"images": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, "padding_mask": size}
    with torch.no_grad():
        multiples_of_32 = "convnext" in case.name
        example = images((96, 128) if multiples_of_32 else (70, 96), (64, 81), (50, 60))
        program = export(Tuple(case.model), example, dynamic_shapes=shapes).module()
        odd = () if multiples_of_32 else (((65, 97), (33, 40), (60, 60), (64, 64)), ((70, 130),))
        for sizes in (((96, 128), (80, 64)), ((128, 96), (33, 40)), *odd):
            batch = images(*sizes)
            assert_same(Predictions(*program(*batch)), case.model(*batch))
